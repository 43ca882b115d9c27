"""What retrains on drift bring, next to weekly ones: a walk-forward backtest of the flights of 2013, in one process.

    python benchmarks/retrain_on_drift.py [--until 2013-12-31] [--home FOLDER] [--picture FILE]

Builds the features of all days, trains a candidate of `flight_delay` each Friday from 1 March on, adds it to the
backtest, and prints what each policy would have delivered, and what the retrains on drift were for. A home that is
given is kept, and what is in it already is not made again: a year takes several minutes, most of it features.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "flight_delay"
FIRST, FIRST_DATE = "2013-01-01", "2013-03-01"
DAYS_AT_ONCE = 31


@contextmanager
def timed(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def build_features(until: str) -> None:
    from evergreen.features.inputs import published_periods
    from evergreen.features.pipeline import run_feature_pipeline
    from evergreen.spec.loader import feature_spec, load_spec
    from evergreen_models.flight_delay import raw

    model = load_spec(NAME)
    calendar = feature_spec(model).calendar
    days = list(calendar.periods_between(FIRST, calendar.shift(until, 1)))
    raw.deliver(days)
    published = set(published_periods(model))
    due = [day for day in days if day not in published]
    for start in range(0, len(due), DAYS_AT_ONCE):
        run_feature_pipeline(model, due[start : start + DAYS_AT_ONCE])


def walk(until: str) -> None:
    from evergreen.backtest import service
    from evergreen.feature_store import training_sets
    from evergreen.spec.loader import feature_spec, load_spec
    from evergreen.training.backends import process
    from evergreen.window import RunReason, Window

    model = load_spec(NAME)
    calendar, as_of = feature_spec(model).calendar, FIRST_DATE
    update_report, service._update_report = service._update_report, lambda *_: True  # once, of the last candidate
    while as_of <= until:
        if calendar.shift(as_of, 7) > until:
            service._update_report = update_report
        start = as_of
        for duration in model.history:
            start = calendar.period_before(start, duration)
        window = Window.from_range(max(start, FIRST), as_of, RunReason.BACKFILL, calendar)
        examples = training_sets.build_training_set(model, window)
        source = training_sets.training_set_dataset(model)
        candidate = process.train_in_process(model, examples, source, training_sets.model_input_columns(model))
        service.add_candidate(model, as_of, examples, candidate)
        print(as_of, flush=True)
        as_of = calendar.shift(as_of, 7)


def show(home: Path, picture: Path | None) -> None:
    from evergreen import backtest

    folder = home / "lake/backtests" / NAME
    results = backtest.BacktestResults.read(folder / "results.json")
    print("\n".join(backtest.summary_lines(results)))
    for deployment in results.policy("on_drift").deployments:
        print(f"on drift, deployed {deployment.as_of}: {deployment.reason}")
    if picture:
        found = re.search(r"<svg.*?</svg>", (folder / "report.html").read_text(), re.DOTALL)
        assert found
        picture.write_text(found.group(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", default="2013-12-31", help="the last day of data")
    parser.add_argument("--home", type=Path, help="keep what is made there")
    parser.add_argument("--only-features", action="store_true", help="and train nothing yet")
    parser.add_argument("--picture", type=Path, help="write the plot of the report, an SVG")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = options.home or Path(scratch)
        os.environ["EVERGREEN_HOME"] = str(home)
        with timed("features"):
            build_features(options.until)
        if options.only_features:
            return
        with timed("candidates and backtest"):
            walk(options.until)
        show(home, options.picture)


if __name__ == "__main__":
    main()
