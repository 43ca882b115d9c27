"""The task that trains a candidate: in a process, or in pods of a cluster (`EVERGREEN_TRAINING_BACKEND`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
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
        return self._train(context)

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Continue once the trigger of the pod has fired; the name is `operators.pod.RESUME_METHOD`."""
        return self._train(context, event)

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

    def _train(self, context: Any, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        from evergreen import storage
        from evergreen.feature_store import training_sets
        from evergreen.training import candidates
        from evergreen.training.backends import process

        model = loader.load_spec(self.model)
        source, features = training_sets.training_set_dataset(model), training_sets.model_input_columns(model)
        training_set = source.resolve(self.training_set_reference)
        published = None if event else candidates.find_published_candidate(model, training_set, features)
        if published:
            fingerprint = published.fingerprint[:12]
            self.log.info("model %s is published already with fingerprint %s", published.partition, fingerprint)
        else:
            job_file = str(candidates.prepare_job(model, training_set, source, features))
            if event or settings().training_backend == "pod":
                self._run_in_pods(context, model, job_file, event)
            else:
                process.run_attempts(model, storage.storage_path(job_file), dag_run_name(context))
            # Whatever an attempt or Airflow reports, only a complete model is success.
            published = candidates.publish_candidate(model, training_set, features)
        return TrainedCandidate(
            training_set_reference=self.training_set_reference, candidate_reference=published.reference
        ).dump()

    def _run_in_pods(self, context: Any, model: ModelSpec, job_file: str, event: Mapping[str, Any] | None) -> None:
        """Attempt the job until there is a result; an attempt that is preempted is followed by another at once.

        Raises:
            TaskDeferred: an attempt goes on, and the trigger waits for it.
            RetryableTrainingError, TrainingError: as of `AttemptResult.raise_unless_resumable`.
        """
        from evergreen import storage
        from evergreen.training import runner
        from evergreen.training.outcome import Outcome, RetryableTrainingError

        preemptions = 0
        if event:
            state = event["state"]
            preemptions = state["preemptions"]
            if state["job"] != job_file:
                _delete_pods(dag_run_name(context))
                raise RetryableTrainingError(
                    f"{model.name}'s code, data or parameters changed while it was trained: the next try trains anew"
                )
        folder = storage.storage_path(job_file).parent
        while True:
            self._pod = self._build_trainer_pod(context, model, job_file, preemptions)
            ended = self._pod.attempt(event)
            if ended.outcome is Outcome.SUCCEEDED or runner.is_training_complete(folder.name, folder):
                return
            ended.raise_unless_resumable(model.name, preemptions, model.resources.max_preemptions)
            preemptions += 1
            self.log.warning(
                "Attempt %s was preempted: %s. The next one begins at once (%s of %s)",
                preemptions,
                ended.message,
                preemptions,
                model.resources.max_preemptions,
            )
            event = None

    def _build_trainer_pod(self, context: Any, model: ModelSpec, job_file: str, preemptions: int) -> TrainerPod:
        from evergreen import storage
        from evergreen.orchestration.operators.pod import TrainerPod
        from evergreen.training.backends import pod
        from evergreen.training.job import Job

        pods = settings().pods
        template = pod.load_pod_template(pods.template) if pods.template else None
        job = Job.read(storage.storage_path(job_file))
        manifest = pod.pod_manifest(model, job, job_file, dag_run_name(context), pods, template)
        state = {"job": job_file, "preemptions": preemptions}
        return TrainerPod(manifest=manifest, pods=pods, timeout=training_timeout(model), state=state)


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
    """Time for all attempts of one try of the task: each waits for a node, starts, trains, and shuts down."""
    resources, startup = model.resources, settings().pods.startup_timeout_minutes
    return timedelta(minutes=(resources.max_preemptions + 1) * (2 * startup + resources.timeout_minutes + 5))
