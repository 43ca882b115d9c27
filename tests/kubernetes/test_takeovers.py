"""Whoever waited for a pod is gone: the next one finds it, in whatever state it is by then."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from airflow.sdk.exceptions import TaskDeferralError

from evergreen.errors import EvergreenError
from evergreen.training.outcome import RetryableTrainingError
from support.cluster import Cluster
from support.relay import Relay
from support.training_tasks import Trial, context, expected
from support.waiting import eventually

pytestmark = pytest.mark.kubernetes

Begin = Callable[..., Trial]


@pytest.fixture
def left(trial: Begin, cluster: Cluster) -> Begin:
    """A trial whose pod was made, and for which nobody waits."""

    def begin(**options: object) -> Trial:
        job = trial(deferrable=True, watched=False, **options)
        job.join(60)
        cluster.made(job.pod)
        return job

    return begin


def phase(cluster: Cluster, job: Trial) -> str:
    found = cluster.pod(job.pod)
    return found.status.phase if found else ""


def test_a_pod_that_is_at_work(trial: Begin, left: Begin, cluster: Cluster, deferrable: bool) -> None:
    job = left(steps=60)
    cluster.at_work(job.pod, None, 3)
    assert trial(of=job, deferrable=deferrable).value() == expected(60)
    assert len(job.attempts) == 1


def test_a_pod_that_has_succeeded_meanwhile(trial: Begin, left: Begin, cluster: Cluster, deferrable: bool) -> None:
    job = left(steps=5)
    eventually("it succeeds", lambda: phase(cluster, job) == "Succeeded")
    assert trial(of=job, deferrable=deferrable).value() == expected(5)
    assert len(job.attempts) == 1


def test_a_pod_that_has_failed_for_good_is_not_made_again(trial: Begin, left: Begin, cluster: Cluster) -> None:
    job = left(misbehaves="data")
    eventually("it fails", lambda: phase(cluster, job) == "Failed")
    error = trial(of=job).error()
    assert isinstance(error, EvergreenError)
    assert "the data say so" in str(error)
    assert len(job.attempts) == 1


def test_a_pod_that_has_failed_is_made_again_with_what_was_corrected(
    trial: Begin, left: Begin, cluster: Cluster
) -> None:
    job = left(misbehaves="memory", resources={"memory_gib": 0.1})
    eventually("it fails", lambda: phase(cluster, job) == "Failed")
    trial(of=job, resources={"memory_gib": 0.2}).error()
    assert [attempt.allocation.memory_gib for attempt in job.attempts] == [0.1, 0.2]


def test_a_pod_that_has_failed_for_what_may_pass_is_made_again(trial: Begin, left: Begin, cluster: Cluster) -> None:
    job = left(misbehaves="crash")
    eventually("it fails", lambda: phase(cluster, job) == "Failed")
    assert isinstance(trial(of=job).error(), RetryableTrainingError)
    assert len(job.attempts) == 2


def test_a_pod_that_waits_for_what_was_corrected_is_made_anew(trial: Begin, left: Begin, cluster: Cluster) -> None:
    job = left(steps=5, pods={"image": "nowhere.invalid/trainer:1"})
    waiting = cluster.made(job.pod)
    corrected = trial(of=job)
    eventually("it is given up", lambda: cluster.made(job.pod).metadata.deletion_timestamp)
    cluster.delete(waiting, grace=0)  # kubelets take their time with what never began
    assert corrected.value() == expected(5)


def test_two_runs_that_want_the_same_share_its_pods(trial: Begin, cluster: Cluster) -> None:
    first = trial(steps=100)
    pod, done = cluster.at_work(first.pod, None, 5)
    second = trial(of=first, deferrable=True)
    cluster.delete(pod)
    cluster.at_work(first.pod, pod, done + 5)
    assert first.value() == second.value() == expected(100)
    assert len(first.attempts) == 2


def test_a_task_that_is_ended_takes_its_pod_along_and_is_no_success(trial: Begin, cluster: Cluster) -> None:
    job = trial(steps=100)
    _, done = cluster.at_work(job.pod, None, 15)
    job.task.on_kill()
    error = job.error()
    assert isinstance(error, RetryableTrainingError)
    assert "ended from outside" in str(error)
    eventually("its pod is gone", lambda: cluster.pod(job.pod) is None)

    assert trial(of=job).value() == expected(100)
    assert job.attempts[-1].resumed_step >= done


def test_a_trigger_that_breaks_leaves_no_pod(trial: Begin, left: Begin, cluster: Cluster) -> None:
    job = left(steps=100)
    _, done = cluster.at_work(job.pod, None, 5)
    with pytest.raises(TaskDeferralError):
        job.in_a_new_process().resume_execution("__fail__", {"error": "Trigger failure"}, context())
    eventually("its pod is gone", lambda: cluster.pod(job.pod) is None)

    assert trial(of=job).value() == expected(100)
    assert job.attempts[-1].resumed_step >= done


@pytest.mark.cpus(2)
def test_training_goes_on_while_the_api_server_is_away(
    trial: Begin, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relayed_cluster() as (relay, kube_config):
        connection = {"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(kube_config)}}
        monkeypatch.setenv("AIRFLOW_CONN_RELAYED", json.dumps(connection))
        jobs = []
        for deferrable in (False, True):
            jobs.append(trial(deferrable=deferrable, steps=250, pods={"connection": "relayed"}))
            cluster.at_work(jobs[-1].pod, None, 5)
        relay.cut()
        time.sleep(20)  # longer than the provider tries by itself
        relay.mend()
        for job in jobs:
            assert job.value() == expected(250)
            assert len(job.attempts) == 1


@contextmanager
def relayed_cluster() -> Iterator[tuple[Relay, Mapping[str, Any]]]:
    """A relay before the API server, and the kubeconfig that leads to it."""
    kube_config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    [cluster] = kube_config["clusters"]
    there = urlsplit(cluster["cluster"]["server"])
    assert there.hostname
    address = (there.hostname, there.port or 443)
    with Relay(lambda: address) as relay:
        cluster["cluster"] |= {"server": f"https://{relay.address}", "tls-server-name": there.hostname}
        yield relay, kube_config
