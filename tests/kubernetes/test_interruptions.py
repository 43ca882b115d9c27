"""Pods are taken away in every way and at every moment: the model is the one that nothing interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from evergreen import storage
from support.cluster import Cluster
from support.training_tasks import STEP_S, Trial, expected
from support.waiting import eventually

pytestmark = pytest.mark.kubernetes

INTERVAL_S = 1  # between checkpoints, in tests/evergreen_models/slow
WRITE_S = INTERVAL_S / 2  # so that half of all moments are in the midst of writing one
LOST_AT_MOST = (INTERVAL_S + WRITE_S) / STEP_S + 2


def interruptions(cluster: Cluster, trial: Trial, steps: int) -> Iterator[tuple[str, int]]:
    """Interrupt the trial in all ways, one after the other; gives how, and the step it had done then."""
    pod, done = cluster.made(trial.pod), 0
    cluster.delete(pod)
    yield "while it started", done

    for way in (cluster.delete, cluster.evict):
        pod, done = cluster.at_work(trial.pod, pod, done + 5)
        way(pod)
        yield way.__name__, done

    pod, done = cluster.at_work(trial.pod, pod, done + 5)
    with cluster.drained(pod):
        waiting = cluster.made(trial.pod, pod)
        assert waiting.spec.node_name != pod.spec.node_name, "no pod goes to the node that is drained"
    yield "drained", done

    pod, done = cluster.at_work(trial.pod, pod, done + 15)
    eventually("a checkpoint is being written", lambda: half_a_checkpoint(trial))
    cluster.delete(pod, grace=1)  # with 0 the API server would not wait until it is dead, and nobody could
    yield "at short notice", done

    pod = cluster.made(trial.pod, pod)
    eventually("the model is there", (trial.folder / "output" / "result.json").exists)
    cluster.delete(pod, grace=0)
    yield "when all was done", steps


def half_a_checkpoint(trial: Trial) -> bool:
    """Whether there are files of a checkpoint that is none yet."""
    names = storage.list_names(trial.folder / "checkpoints")
    return any("." not in name and f"{name}.json" not in names for name in names)


@pytest.mark.drains_node
def test_job_interrupted_in_every_way_ends_in_the_same_model(
    trial: Callable[..., Trial], cluster: Cluster, deferrable: bool
) -> None:
    steps = 180
    job = trial(deferrable=deferrable, steps=steps, write_seconds=WRITE_S, resources={"max_preemptions": 10})
    told = dict(interruptions(cluster, job, steps))

    assert job.value() == expected(steps)
    started = job.attempts  # those that were ended before their first word have no record
    for before, after in pairwise(started):
        assert before.last_heartbeat <= after.started_at, "two attempts at once"
    assert len(started) in (len(told), len(told) - 1)
    resumed = [attempt.resumed_step for attempt in started[-4:]]
    for done, at in zip([told["delete"], told["evict"], told["drained"]], resumed, strict=False):
        assert at >= done, "who is asked to leave leaves nothing behind"
    assert resumed[3] >= told["at short notice"] - LOST_AT_MOST


def test_preemptions_beyond_the_limit_end_the_task_and_it_resumes(
    trial: Callable[..., Trial], cluster: Cluster
) -> None:
    # Deferrable: their number rides with the trigger.
    job = trial(deferrable=True, steps=150, resources={"max_preemptions": 1})
    pod, done = cluster.at_work(job.pod, None, 5)
    cluster.delete(pod)
    pod, done = cluster.at_work(job.pod, pod, done + 5)
    cluster.delete(pod)
    error = job.error()
    assert "was preempted 2 times, and resources.max_preemptions allows 1" in str(error)
    assert "clear the task, and it goes on from its last checkpoint" in str(error)
    eventually("its pod is gone", lambda: cluster.pod(job.pod) is None)

    again = job.again()
    assert again.value() == expected(150)
    assert again.attempts[-1].resumed_step >= done
