"""The whole chain under Airflow against the same step functions in one plain process.

    python benchmarks/chain.py [--days 59]

Both make the features of the days, one day at a time, then train, judge, register and promote as of the day
after them. Under Airflow that is a backfill and a run of the retrain DAG, on a stack that is up already. The
plain process pays for its imports and its Spark once, which counts. Both must publish the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from evergreen.periods import Calendar
from measuring.stack import deliver, environment, metered

NAME = "flight_delay"
CALENDAR = Calendar("1d", "America/New_York")
FIRST = "2013-01-01"


def plain(days: list[str]) -> None:
    """The steps, one after the other, in this process; prints the seconds of each stage."""
    seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        seconds[name] += time.monotonic() - began

    with stage("imports"):
        from evergreen import evaluation
        from evergreen.feature_store import online_store, training_sets
        from evergreen.features import build, checks, pipeline
        from evergreen.promotion import service
        from evergreen.registry import versions
        from evergreen.spec import loader
        from evergreen.training.backends import process
        from evergreen.window import RunReason, Window

    model = loader.load_spec(NAME)
    for day in days:
        with stage("check_raw"):
            wanted = checks.validate_raw_files(model, [day])
        with stage("build"):
            folders = build.build_features(model, wanted)
        with stage("check_features"):
            checks.validate_features(model, folders)
        with stage("publish"):
            pipeline.publish_features(model, wanted, folders)
    window = Window.from_range(FIRST, CALENDAR.shift(days[-1], 1), RunReason.MANUAL, Calendar("1d", "America/New_York"))
    with stage("plan"):
        assert versions.get_champion_version(model) is None
    with stage("materialize"):
        online_store.materialize_features(model, window)
    with stage("training_set"):
        examples = training_sets.build_training_set(model, window)
    with stage("train"):
        source = training_sets.training_set_dataset(model)
        candidate = process.train_in_process(model, examples, source, training_sets.model_input_columns(model))
    with stage("evaluate"):
        scores = evaluation.collect_evidence(model, examples, candidate, None)
    with stage("judge"):
        case = service.EvaluationContext("one process", window.run_reason, examples, candidate, scores, None)
        judged = service.judge_candidate(model, case)
    with stage("register"):
        version = versions.register_candidate(
            model,
            examples,
            candidate,
            judged,
            service.verdict_report_path(model, judged),
        )
    with stage("promote"):
        held = service.promote_version(
            model, service.PromotionRequest(judged, version, window.run_reason), actor="one process"
        )
        assert held is None
    print("RESULT" + json.dumps(seconds))


def under_airflow(home: Path, days: list[str]) -> tuple[float, float, dict[str, float], int]:
    """Wall seconds, seconds until the stack was up, seconds per stage summed over its tasks, peak memory."""
    os.environ["EVERGREEN_HOME"] = str(home)
    from evergreen.client.airflow import AirflowClient
    from evergreen.spec import loader
    from evergreen_local import backfilling, retraining, stack
    from evergreen_local.progress import Progress

    model = loader.load_spec(NAME)
    features, retrain = f"{NAME}.features", f"{NAME}.retrain"
    with Progress() as progress, metered(home) as meter:
        try:
            began = time.monotonic()
            addresses = stack.bring_up_stack(progress)
            airflow = AirflowClient(addresses.airflow)
            backfilling.wait_until_parsed(airflow, [features, retrain], progress)
            up = time.monotonic() - began
            began = time.monotonic()
            retraining._build_features(airflow, features, model, days, progress)
            retraining._run_as_of(airflow, retrain, CALENDAR.shift(days[-1], 1), progress)
            wall = time.monotonic() - began
            seconds: dict[str, float] = defaultdict(float)
            for dag_id in (features, retrain):
                for instance in airflow.task_instances(dag_id):
                    seconds[instance["task_id"]] += instance["duration"] or 0.0
        finally:
            stack.stop_stack(progress)
    return wall, up, seconds, meter.peak


def same_bytes(one: Path, other: Path) -> int:
    """How many manifests both homes have published; fails unless all are equal.

    Of what is made: reports of checks tell how many days were asked about at once, and evaluations hold latencies.
    """
    made = ("features", "training_sets", "models")
    found = sorted(path.relative_to(one) for name in made for path in (one / "lake" / name).rglob("_manifests/*.json"))
    for path in found:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=59)
    parser.add_argument("--plain", action="store_true", help="only the plain process, in EVERGREEN_HOME")
    arguments = parser.parse_args()
    days = [CALENDAR.shift(FIRST, n) for n in range(arguments.days)]
    if arguments.plain:
        return plain(days)

    scratch = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    homes = {kind: scratch / kind for kind in ("plain", "airflow")}
    deliver(homes["plain"], arguments.days)
    shutil.copytree(homes["plain"], homes["airflow"])

    print(f"{datetime.now():%H:%M:%S} plain process, {arguments.days} days", flush=True)
    with metered(homes["plain"]) as meter:
        began = time.monotonic()
        out = subprocess.run(
            [sys.executable, __file__, "--plain", "--days", str(arguments.days)],
            env=environment(homes["plain"]),
            capture_output=True,
            text=True,
        )
        alone = time.monotonic() - began
    if out.returncode:
        sys.exit(out.stderr)
    stages = json.loads(out.stdout.split("RESULT")[-1])

    print(f"{datetime.now():%H:%M:%S} under Airflow", flush=True)
    wall, up, tasks, peak = under_airflow(homes["airflow"], days)
    published = same_bytes(homes["plain"], homes["airflow"])
    shutil.rmtree(scratch)

    print(f"\n{'stage':<16}{'plain s':>10}{'Airflow task s':>16}")
    for name in stages:
        print(f"{name:<16}{stages[name]:>10.1f}{tasks.get(name, 0):>16.1f}")
    print(f"{'wall':<16}{alone:>10.1f}{wall:>16.1f}")
    print(f"{'peak memory GiB':<16}{meter.peak / 2**30:>10.2f}{peak / 2**30:>16.2f}")
    print(f"\nthe stack was up after {up:.0f} s; {published} manifests are equal")
    print(f"wall under Airflow ÷ wall in one plain process: {wall / alone:.2f}")


if __name__ == "__main__":
    main()
