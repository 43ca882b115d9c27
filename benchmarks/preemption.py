"""What spot nodes really save: the same training undisturbed, and under a trace of preemptions with real kills.

    KUBECONFIG=... python benchmarks/preemption.py --image evergreen-trainer [--every 60] [--sudden 0.25]

`flight_delay_net` is trained in a pod of its own twice, on the cluster that KUBECONFIG names, whose nodes must see
this machine's files (a node here, or one that mounts the folder): once left alone, paid for at the price on demand;
and once on spot, where the pod is deleted at the instants of a trace, and made anew each time it is gone. The trace's
gaps are exponential, of a seed; some preemptions come without notice (no grace period, SIGKILL).

Time runs faster here than in life: five minutes of training with a preemption a minute, a checkpoint every 3 seconds
and some seconds to begin again stand for five hours with one an hour, a checkpoint every 3 minutes and some
minutes to begin again. A pod is paid for from when it is asked for until its trainer has ended or was killed: its
node is taken away then, and the time that a kubelet takes to tell so costs nothing.

    saving      1 - paid on spot / paid on demand
    realised    saving ÷ discount: 1 if preemptions cost nothing (goal: at least 0.93)
    work lost   seconds of training that were done twice, by the attempts' own records
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kubernetes import client, config

from evergreen import lake
from evergreen import model as models
from evergreen.settings import Pods
from evergreen.training import Job, diagnosis, fitting, pod, storage
from evergreen.training.attempt import Attempt, attempts
from evergreen.training.outcome import Outcome
from measuring.training import job_of, write_training_set

MODEL = "flight_delay_net"


@dataclass(frozen=True)
class Kill:
    after: float  # seconds since the pod began
    sudden: bool


@dataclass(frozen=True)
class Trained:
    paid: float  # seconds of pods
    records: Sequence[Attempt]
    model: dict[str, str]

    @property
    def steps(self) -> int:
        return max(record.step for record in self.records)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--image", required=True)
    arguments.add_argument("--every", type=float, default=60, help="mean seconds between preemptions")
    arguments.add_argument("--sudden", type=float, default=0.25, help="share of them without notice")
    arguments.add_argument("--discount", type=float, default=0.65, help="of spot, on the price on demand")
    arguments.add_argument("--epochs", type=int, default=60)
    arguments.add_argument("--rows", type=int, default=200_000)
    asked = arguments.parse_args()
    config.load_kube_config()
    draw = np.random.default_rng(2013)

    def trace() -> Iterator[Kill]:
        while True:
            yield Kill(float(draw.exponential(asked.every)), bool(draw.random() < asked.sudden))

    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o777)  # the trainer is nobody here
        data = write_training_set(Path(scratch, "train.parquet"), asked.rows)
        job = job_of(MODEL, data, checkpoint_seconds=3, epochs=asked.epochs)
        alone = train(job, Path(scratch, "alone"), asked.image, iter([Kill(1e9, False)] * 99))
        spot = train(job, Path(scratch, "spot"), asked.image, trace())
    assert alone.model == spot.model, "preemptions changed the model"
    done_twice = sum(
        before.step - after.resumed_at for before, after in zip(spot.records, spot.records[1:], strict=False)
    )
    saving = 1 - spot.paid * (1 - asked.discount) / alone.paid
    print(f"undisturbed     {alone.paid:6.0f} s of pods, {alone.steps} steps")
    print(
        f"on spot         {spot.paid:6.0f} s of pods, {len(spot.records) - 1} preemptions; the model has the same bytes"
    )
    print(f"work lost       {done_twice / spot.steps * alone.paid:6.0f} s, where the records know of it")
    print(f"saving          {saving:.1%} at a discount of {asked.discount:.0%}")
    print(f"realised        {saving / asked.discount:.3f}")


def train(job: Job, folder: Path, image: str, kills: Iterator[Kill]) -> Trained:
    """Train in pods, each killed at its time, until the model is there."""
    folder.mkdir()
    folder.chmod(0o777)
    file = storage.path(str(folder / "job.json"))
    job.write(file)
    paid = 0.0
    while not fitting.is_done(job.fingerprint, file.parent):
        outcome, seconds = Made(job, folder, image).ended(next(kills))
        paid += seconds
        print(f"  {folder.name}: a pod of {seconds:.1f} s: {outcome.name.lower()}", flush=True)
    files = {found.name: lake.sha256(found) for found in folder.glob("output/*/*")}
    return Trained(paid, attempts(file.parent), files)


class Made:
    """One pod of the job."""

    def __init__(self, job: Job, folder: Path, image: str):
        self.api = client.CoreV1Api()
        mount = {"name": "here", "mountPath": str(folder.parent)}
        template = {
            "spec": {
                "containers": [{"name": pod.CONTAINER, "volumeMounts": [mount]}],
                "volumes": [{"name": "here", "hostPath": {"path": str(folder.parent)}}],
            }
        }
        wanted = pod.manifest(
            models.load(job.model), job, str(folder / "job.json"), "benchmark", Pods(image=image), template
        )
        self.name = wanted["metadata"]["name"] = f"{wanted['metadata']['name']}-{uuid.uuid4().hex[:6]}"
        self.asked = time.monotonic()
        self.api.create_namespaced_pod("default", wanted)

    def ended(self, kill: Kill) -> tuple[Outcome, float]:
        """Wait until it has ended by itself or was killed, and is gone; gives the seconds that it is paid for, too."""
        begun = killed = over = None
        while (found := self.read()) is not None:
            now = time.monotonic()
            if begun is None and diagnosis.has_begun(found):
                begun = now
            if begun and not killed and now - begun > kill.after:
                self.delete(0 if kill.sudden else None)
                killed = now
            if over is None and diagnosis.says_how_it_ended(found):
                over = now
            if over and not killed:
                ended = diagnosis.ended(found)
                self.delete(0)
                if ended.outcome is not Outcome.SUCCEEDED:
                    raise SystemExit(f"{self.name}: {ended.sentence}")
                return ended.outcome, over - self.asked
            time.sleep(0.1)
        assert killed
        # One without notice is gone at once, as the API server sees it.
        return Outcome.PREEMPTED, (over or time.monotonic()) - self.asked

    def delete(self, grace: int | None) -> None:
        self.api.delete_namespaced_pod(self.name, "default", grace_period_seconds=grace)

    def read(self) -> dict[str, Any] | None:
        try:
            found = self.api.read_namespaced_pod(self.name, "default")
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        return self.api.api_client.sanitize_for_serialization(found)


if __name__ == "__main__":
    main()
