"""From the last byte of a raw day to the start of its run, at default settings.

    python benchmarks/arrival.py [--days 8]

Days are delivered one by one to a stack that is up, each once the run of the one before is over. Goal: 15 s.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

from evergreen.periods import Calendar
from measuring.stack import running

DAG = "flight_delay.features"
CALENDAR = Calendar("1d", "America/New_York")
FIRST = "2013-01-01"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=8)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    starts, ends = [], []
    with running(home, DAG) as airflow:
        from evergreen_models.flight_delay.raw import deliver

        airflow.set_dag_paused(DAG, False)
        for number in range(arguments.days + 1):
            known = {run["dag_run_id"] for run in airflow.dag_runs(DAG)}
            deliver([CALENDAR.shift(FIRST, number)])
            delivered = time.time()
            while True:
                new = [run for run in airflow.dag_runs(DAG) if run["dag_run_id"] not in known]
                if new and new[0]["end_date"]:
                    break
                time.sleep(0.5)
            assert [run["state"] for run in new] == ["success"], new
            if number:  # the first waits for Airflow to notice that the DAG is no longer paused
                starts.append(datetime.fromisoformat(new[0]["start_date"]).timestamp() - delivered)
                ends.append(datetime.fromisoformat(new[0]["end_date"]).timestamp() - delivered)
    shutil.rmtree(home)
    print(f"\nfrom the last byte of a day, {arguments.days} days: median (longest)")
    print(f"to the start of its run   {median(starts):6.1f} s ({max(starts):.1f} s)")
    print(f"to its published features {median(ends):6.1f} s ({max(ends):.1f} s)")


if __name__ == "__main__":
    main()
