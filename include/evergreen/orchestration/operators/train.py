"""The task that trains a candidate: in a process, or in pods of a cluster (`EVERGREEN_TRAINING_BACKEND`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import TaskDeferralError, TaskDeferralTimeout

from evergreen.orchestration.dag_run import dag_run_name
from evergreen.orchestration.handover import TrainedCandidate
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec

if TYPE_CHECKING:
    from evergreen.orchestration.operators.pod import TrainerPod
    from evergreen.storage import UPath


class TrainOperator(BaseOperator):
    """Train a candidate from a job file, in a process or in pods (`EVERGREEN_TRAINING_BACKEND`).

    **When it fails,** the end of its log says why and what to do. Clearing it is always safe: training resumes from
    the job's last checkpoint, and a pod that is still running is adopted.

    **When it is deferred,** it waits for its pod without occupying a worker; the pod's log is part of the task's log.
    """

    template_fields: Sequence[str] = ("training_set_reference",)

    def __init__(self, *, model: ModelSpec, training_set_reference: Any, **options: Any):
        super().__init__(
            **{
                "doc_md": type(self).__doc__,
                "execution_timeout": training_timeout(model),
                # Of transient failures: pauses grow from 5 seconds to minutes. Preemptions are not counted here.
                "retries": 5,
                "retry_exponential_backoff": 2.0,
                "max_retry_delay": timedelta(minutes=10),
                **options,
            }
        )
        self.model, self.training_set_reference = model.name, training_set_reference
        self._pod: TrainerPod | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        return self.execute_complete(context)

    def execute_complete(self, context: Any, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Train, or continue with the event of the pod's trigger."""
        from evergreen.feature_store import training_sets
        from evergreen.training import candidates
        from evergreen.training.backends import process

        model = loader.load_spec(self.model)
        source = training_sets.training_set_dataset(model)
        training_set = source.resolve(self.training_set_reference)
        inputs = (model, training_set, source, training_sets.model_input_columns(model))
        if event or settings().training_backend == "pod":
            run_job = partial(self._run_in_pods, context, model, event)
            candidate = candidates.train_candidate(*inputs, run_job, is_running=bool(event))
        else:
            candidate = process.train_in_process(*inputs, dag_run_name(context))
        return TrainedCandidate(
            training_set_reference=self.training_set_reference, candidate_reference=candidate.reference
        ).dump()

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Any) -> Any:
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralError, TaskDeferralTimeout):
            # The trigger is gone without an event. Were this the last try, nobody would end the pod.
            _delete_pods(dag_run_name(context))
            raise

    def on_kill(self) -> None:
        from evergreen.training.outcome import RetryableTrainingError

        if self._pod:
            self._pod.on_kill()
        else:
            # Called in a signal handler: the exception unwinds the stack, which ends the training process.
            raise RetryableTrainingError("the task was ended from outside")

    def _run_in_pods(self, context: Any, model: ModelSpec, event: Mapping[str, Any] | None, job_file: UPath) -> None:
        """Attempt the job until there is a result; an attempt that is preempted is followed by another at once."""
        from evergreen.orchestration.operators.pod import TrainerPod
        from evergreen.training import Job, runner
        from evergreen.training.backends import pod
        from evergreen.training.job import jobs_root
        from evergreen.training.outcome import Outcome, RetryableTrainingError

        preemptions, uri, folder = 0, str(job_file), job_file.parent
        if event:
            preemptions = event["state"]["preemptions"]
            if event["state"]["job"] != uri:
                _delete_pods(dag_run_name(context))
                raise RetryableTrainingError(
                    f"{model.name}'s code, data or parameters changed while it was trained: the next try trains anew"
                )
        pods, limit = settings().pods, model.resources.max_preemptions
        template = pod.load_pod_template(pods.template) if pods.template else None
        manifest = pod.pod_manifest(
            model, Job.read(job_file, jobs_root(folder)), uri, dag_run_name(context), pods, template
        )
        while True:
            state = {"job": uri, "preemptions": preemptions}
            self._pod = TrainerPod(manifest=manifest, pods=pods, timeout=training_timeout(model), state=state)
            ended = self._pod.attempt(event)
            if ended.outcome is Outcome.SUCCEEDED or runner.is_training_complete(folder.name, folder):
                return
            ended.raise_unless_resumable(model.name, preemptions, limit)
            preemptions += 1
            message = "Attempt %s was preempted: %s. The next one begins at once (%s of %s)"
            self.log.warning(message, preemptions, ended.message, preemptions, limit)
            event = None


def delete_leftover_pods(context: Mapping[str, Any]) -> None:
    """Delete what pods a run that has failed has left: a callback of its DAG.

    There is one if its task was ended by hand in the second between making its pod and waiting for it in the
    triggerer, or was killed in its last try.
    """
    if settings().training_backend == "pod":
        _delete_pods(f"{context['dag'].dag_id} {context['run_id']}")


def _delete_pods(run: str) -> None:
    from evergreen.orchestration.operators.pod import delete_pods_of_run

    delete_pods_of_run(run, settings().pods)


def training_timeout(model: ModelSpec) -> timedelta:
    """Time for all attempts of one try of the task."""
    return model.resources.time_limit(settings().pods.startup_timeout_minutes)
