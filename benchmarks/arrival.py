"""From the last byte of a raw day to the start of its run, and to its published features, at default settings.

    python benchmarks/arrival.py [--days 8]

Days are delivered one by one to a stack that is up, each once the run of the one before is over. Goals: 5 s to the
start of the run, 10 s to published features.
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
from evergreen.settings import settings
from measuring.stack import running

DAG = "flight_delay.features"
CALENDAR = Calendar("1d", "America/New_York")
FIRST = "2013-01-01"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=8)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    names = ("start of its run", "published features", "end of its run")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with running(home, DAG) as airflow:
        from evergreen_models.flight_delay.raw import deliver

        manifests = settings().lake / "features/flight_delay/_manifests"

        airflow.set_dag_paused(DAG, False)
        for number in range(arguments.days + 1):
            known = {run["dag_run_id"] for run in airflow.dag_runs(DAG)}
            day = CALENDAR.shift(FIRST, number)
            deliver([day])
            delivered = time.time()
            while True:
                new = [run for run in airflow.dag_runs(DAG) if run["dag_run_id"] not in known]
                if new and new[0]["end_date"]:
                    break
                time.sleep(0.5)
            assert [run["state"] for run in new] == ["success"], new
            if number:  # the first waits for Airflow to notice that the DAG is no longer paused
                start, end = (datetime.fromisoformat(new[0][key]).timestamp() for key in ("start_date", "end_date"))
                published = (manifests / f"day={day}.json").stat().st_mtime
                for name, instant in zip(names, (start, published, end), strict=True):
                    seconds[name].append(instant - delivered)
    shutil.rmtree(home)
    print(f"\nfrom the last byte of a day, {arguments.days} days: median (longest)")
    for name, values in seconds.items():
        print(f"to the {name:<18} {median(values):6.1f} s ({max(values):.1f} s)")


if __name__ == "__main__":
    main()
