"""What spot nodes really save: the same training undisturbed, and under a trace of preemptions with real kills.

    KUBECONFIG=... python benchmarks/preemption.py --image evergreen-trainer [--every 60] [--sudden 4]

`flight_delay_net` is trained in a pod of its own twice, on the cluster that KUBECONFIG names, whose nodes must see
this machine's files (a node here, or one that mounts the folder): once left alone, paid for at the price on demand;
and once on spot, where the pod is deleted at the instants of a trace, and made anew each time it is gone. The trace's
gaps are exponential, of a seed; one preemption in four comes without notice (no grace period, SIGKILL).

Time runs faster here than in life: five minutes of training with a preemption a minute, a checkpoint every 3 seconds
and some seconds to begin again stand for five hours with one an hour, a checkpoint every 3 minutes and some
minutes to begin again. A pod is paid for from when it is asked for until its trainer has ended or was killed: its
node is taken away then, and the time that a kubelet takes to tell so costs nothing.

    saving      1 - paid on spot / paid on demand
    realised    saving ÷ discount: 1 if preemptions cost nothing (goal: at least 0.93)
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from kubernetes import client, config

from evergreen import storage
from evergreen.settings import PodSettings
from evergreen.spec import loader
from evergreen.training import Job, runner
from evergreen.training.attempt import read_attempts
from evergreen.training.backends import diagnosis, pod
from evergreen.training.outcome import Outcome
from measuring.training import job_of, write_training_set

MODEL = "flight_delay_net"


@dataclass(frozen=True)
class Kill:
    after: float  # seconds since the pod began
    sudden: bool


@dataclass(frozen=True)
class Trained:
    paid: Sequence[float]  # seconds, of each pod
    steps: int
    model: dict[str, str]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--image", required=True)
    arguments.add_argument("--every", type=float, default=60, help="mean seconds between preemptions")
    arguments.add_argument("--sudden", type=int, default=4, help="one in so many comes without notice")
    arguments.add_argument("--discount", type=float, default=0.65, help="of spot, on the price on demand")
    arguments.add_argument("--epochs", type=int, default=60)
    arguments.add_argument("--rows", type=int, default=200_000)
    asked = arguments.parse_args()
    config.load_kube_config()
    draw = np.random.default_rng(2013)

    def trace() -> Iterator[Kill]:
        for turn in count():
            yield Kill(float(draw.exponential(asked.every)), sudden=turn % asked.sudden == 0)

    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o777)  # the trainer is nobody here
        data = write_training_set(Path(scratch, "train.parquet"), asked.rows)
        job = job_of(MODEL, data, checkpoint_seconds=3, epochs=asked.epochs)
        alone = train(job, Path(scratch, "alone"), asked.image, iter([Kill(1e9, False)] * 99))
        spot = train(job, Path(scratch, "spot"), asked.image, trace())
    assert alone.model == spot.model, "preemptions changed the model"
    before, paid, preemptions = sum(alone.paid), sum(spot.paid), len(spot.paid) - 1
    saving = 1 - paid * (1 - asked.discount) / before
    print(f"undisturbed     {before:6.0f} s of pods, {alone.steps} steps")
    print(f"on spot         {paid:6.0f} s of pods, {preemptions} preemptions; the model has the same bytes")
    print(f"each preemption {(paid - before) / preemptions:6.1f} s more")
    print(f"saving          {saving:.1%} at a discount of {asked.discount:.0%}")
    print(f"realised        {saving / asked.discount:.3f}")


def train(job: Job, folder: Path, image: str, kills: Iterator[Kill]) -> Trained:
    """Train in pods, each killed at its time, until the model is there."""
    folder.mkdir()
    folder.chmod(0o777)
    file = storage.storage_path(str(folder / "job.json"))
    job.write(file)
    paid = []
    while not runner.is_training_complete(job.fingerprint, file.parent):
        asked, kill = datetime.now(UTC), next(kills)
        outcome, gone = Made(job, folder, image).ended(kill)
        # None, if it was killed before its trainer had a word.
        new = [record for record in read_attempts(file.parent) if record.started_at > asked]
        over = (new and new[0].ended_at) or gone
        paid.append((over - asked).total_seconds())
        how = "killed" if kill.sudden and outcome is Outcome.PREEMPTED else outcome.name.lower()
        steps = "".join(f", steps {record.resumed_step} to {record.step}" for record in new)
        print(f"  {folder.name}: {how} after {paid[-1]:.1f} s{steps}", flush=True)
    files = {found.name: storage.file_sha256(found) for found in folder.glob("output/*/*")}
    return Trained(paid, max(record.step for record in read_attempts(file.parent)), files)


class Made:
    """One pod of the job."""

    def __init__(self, job: Job, folder: Path, image: str):
        self.api = client.CoreV1Api()
        mount = {"name": "here", "mountPath": str(folder.parent)}
        template = {
            "spec": {
                "containers": [{"name": pod.TRAINER_CONTAINER, "volumeMounts": [mount]}],
                "volumes": [{"name": "here", "hostPath": {"path": str(folder.parent)}}],
            }
        }
        wanted = pod.pod_manifest(
            loader.load_spec(job.model),
            job,
            str(folder / "job.json"),
            "benchmark",
            PodSettings(image=image),
            template,
        )
        self.name = wanted["metadata"]["name"] = f"{wanted['metadata']['name']}-{uuid.uuid4().hex[:6]}"
        self.api.create_namespaced_pod("default", wanted)

    def ended(self, kill: Kill) -> tuple[Outcome, datetime]:
        """Wait until it has ended by itself or was killed, and is gone; gives when that was, too."""
        begun, killed = None, False
        while (found := self.read()) is not None:
            now = time.monotonic()
            if begun is None and diagnosis.has_trainer_started(found):
                begun = now
            if begun and not killed and now - begun > kill.after:
                self.delete(0 if kill.sudden else None)
                killed = True
            if not killed and diagnosis.is_pod_finished(found):
                ended = diagnosis.diagnose_pod(found)
                self.delete(0)
                if ended.outcome is not Outcome.SUCCEEDED:
                    raise SystemExit(f"{self.name}: {ended.message}")
                return ended.outcome, datetime.now(UTC)
            time.sleep(0.1)
        assert killed
        return Outcome.PREEMPTED, datetime.now(UTC)

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
