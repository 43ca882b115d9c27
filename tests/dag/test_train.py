"""The task that trains, as far as no cluster is asked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

import pytest
from airflow.sdk import DAG

from evergreen import model as models
from evergreen.orchestration.train import Train, longest
from evergreen.settings import Pods
from evergreen.training import Job, pod
from evergreen.training.outcome import TryAgain

pytestmark = pytest.mark.dag


@pytest.fixture
def manifest() -> dict[str, Any]:
    job = Job(
        model="flight_delay",
        fingerprint="f" * 64,
        train="s3://bucket/jobs/data.parquet",
        features=("a",),
        label="label",
        parameters={},
        seed=1,
        threads=2,
        gpu=0,
        processes=1,
        checkpoint_seconds=60,
        modules={},
        libraries={},
    )
    pods = Pods(image="trainer", secret="store", service_account="trainer", image_pull_secret="pull")
    return pod.manifest(models.load("flight_delay"), job, "s3://bucket/jobs/job.json", "a run", pods)


def missing(wanted: Any, found: Any, where: str = "pod") -> list[str]:
    """What of `wanted` is not in `found`."""
    if isinstance(wanted, Mapping):
        if not wanted:
            return []
        if not isinstance(found, Mapping):
            return [where]
        return [
            lost for key, value in wanted.items() for lost in missing(value, found.get(key), f"{where}.{key}")
        ]
    if isinstance(wanted, list):
        if len(wanted) != len(found or []):
            return [where] if wanted else []
        return [
            lost
            for n, pair in enumerate(zip(wanted, found, strict=True))
            for lost in missing(*pair, f"{where}[{n}]")
        ]
    return [] if wanted == found else [f"{where}: {found!r}, not {wanted!r}"]


def test_the_operator_makes_the_pod_that_was_asked_for(manifest: dict[str, Any]) -> None:
    from evergreen.orchestration.pod import TrainerPod
    from kubernetes.client import ApiClient

    operator = TrainerPod(
        manifest=manifest,
        pods=Pods(image="trainer"),
        longest=timedelta(hours=1),
        state={"job": "j", "preemptions": 0},
    )
    made = ApiClient().sanitize_for_serialization(operator.build_pod_request_obj(dry_run=True))
    assert missing(manifest, made) == []


def test_the_trigger_is_made_again_from_what_it_says_of_itself() -> None:
    from evergreen.orchestration.pod import TrainerPodTrigger

    trigger = TrainerPodTrigger(
        pod_name="flight-delay-0123",
        pod_namespace="default",
        trigger_start_time=datetime.now(UTC),
        base_container_name="trainer",
        trigger_kwargs={"evergreen": {"job": "s3://bucket/jobs/job.json", "preemptions": 2, "pod": "uid"}},
    )
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    again = getattr(import_module(module), name)(**arguments)
    assert again.serialize() == (path, arguments)


def test_one_try_has_time_for_all_its_attempts() -> None:
    model = models.load("flight_delay")
    with DAG(
        "any", default_args={"execution_timeout": timedelta(minutes=1), "retry_delay": timedelta(seconds=7)}
    ):
        task = Train(task_id="train", model=model, examples={})
    attempts = model.resources.preemptions + 1
    assert task.execution_timeout == longest(model) >= timedelta(minutes=attempts * model.resources.minutes)
    assert task.retry_delay == timedelta(seconds=7)
    assert task.doc_md


def test_a_training_process_is_ended_with_its_task() -> None:
    """The signal's handler calls `on_kill`; what it raises unwinds the wait for the process, which ends that."""
    with pytest.raises(TryAgain, match="ended from outside"):
        Train(task_id="train", model=models.load("flight_delay"), examples={}).on_kill()
