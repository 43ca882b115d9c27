"""Attempts that end by themselves: what the person who looks at the task is told, and whether it is tried again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen.errors import EvergreenError
from evergreen.training.outcome import RetryableTrainingError
from support.cluster import Cluster
from support.training_tasks import Trial, template

pytestmark = pytest.mark.kubernetes

NEVER, LATER = EvergreenError, RetryableTrainingError


@pytest.mark.parametrize(
    ("misbehaves", "kind", "says"),
    [
        ("data", NEVER, "ended as bad data: the data say so"),
        ("code", NEVER, "ended as bad code: KeyError: 'no such column'"),
        ("memory", NEVER, "ended as out of memory: .*raise resources.memory_gib"),
        (
            "/dev/shm",
            NEVER,
            r"ended as out of memory: no space is left on /dev/shm \(64 MiB of memory\): raise .*shm_gib",
        ),
        ("mapped", NEVER, r"ended as out of memory: it was killed \(SIGBUS\): .*raise resources.shm_gib"),
        ("crash", LATER, "ended as unknown: exit code 3: about to crash"),
    ],
)
def test_the_cause_and_the_way_out(
    trial: Callable[..., Trial], misbehaves: str, kind: type[Exception], says: str
) -> None:
    error = trial(misbehaves=misbehaves).error()
    assert isinstance(error, kind)
    assert re.search(says, str(error))


def test_the_trigger_sees_it_too(trial: Callable[..., Trial]) -> None:
    error = trial(deferrable=True, misbehaves="data").error()
    assert isinstance(error, NEVER)
    assert "ended as bad data: the data say so" in str(error)


def test_attempt_over_its_time_is_ended_and_the_next_one_resumes(trial: Callable[..., Trial], deferrable: bool) -> None:
    job = trial(deferrable=deferrable, steps=120, resources={"timeout_minutes": 0.1})
    error = job.error()
    assert isinstance(error, LATER)
    assert "it took longer than resources.timeout_minutes, 0.1" in str(error)

    again = job.again()
    again.join(60)
    assert again.attempts[-1].resumed_step > 0


def test_a_full_volume(trial: Callable[..., Trial], shared: Path) -> None:
    tiny = {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}
    error = trial(misbehaves="/tmp", pods={"template": template(shared / "tiny.yaml", shared, volumes=[tiny])}).error()
    assert isinstance(error, NEVER)
    assert "no space is left on /tmp (1 MiB of memory): give that volume more in EVERGREEN_PODS__TEMPLATE" in str(error)


@pytest.mark.parametrize(
    ("command", "limits", "kind", "says"),
    [
        (
            "echo connecting; echo no such bucket; exit 3",
            {},
            LATER,
            "ended as unknown: init container 'fetch' .* exit code 3, so training did not begin: no such bucket",
        ),
        (
            "exec python -c 'print(len(b\"x\" * 2**30))'",
            {"memory": "64Mi"},
            NEVER,
            r"ended as out of memory: init container 'fetch' .* \(OOMKilled\): raise its limit",
        ),
    ],
    ids=["fails", "out of memory"],
)
def test_an_init_container(
    trial: Callable[..., Trial],
    shared: Path,
    cluster: Cluster,
    command: str,
    limits: dict[str, str],
    kind: type[Exception],
    says: str,
) -> None:
    fetch = {"name": "fetch", "image": cluster.image, "imagePullPolicy": "IfNotPresent",
             "command": ["sh", "-c", command], "resources": {"limits": limits}}  # fmt: skip
    file = template(shared / f"init-{len(limits)}.yaml", shared, initContainers=[fetch])
    error = trial(pods={"template": file}).error()
    assert isinstance(error, kind)
    assert re.search(says, str(error))
