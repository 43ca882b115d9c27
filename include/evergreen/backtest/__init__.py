"""Walk-forward backtest: what the gates, and simpler policies, would have done over the dates of a backfill.

Each run of a backfill trains a candidate with only what was known as of its date, and ends with `add_candidate`. Runs
may come in any order, concurrently, twice, or be killed: the report depends on the set of candidates alone. Nothing
here reads or changes the registry, an alias or online features.

    backtests/flight_delay/                      in the lake: a dataset with one partition per date
        results.json  report.html                of all dates with the newest spec
        cache/                                   scores and verdicts by fingerprint; may be deleted at any time
"""

from evergreen.backtest.service import add_candidate
from evergreen.reports.backtest import BacktestResults, summary_lines

__all__ = ["BacktestResults", "add_candidate", "summary_lines"]
