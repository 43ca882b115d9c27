"""Which task is described by what, for Airflow's provider of OpenLineage.

The provider asks an operator's method `get_openlineage_facets_on_complete` after the task's state was reported, or its
failure, and only where lineage is sent. A task has handed over its result by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG

from evergreen.orchestration.handover import (
    EvaluatedCandidate,
    FeaturesPlan,
    JudgedVerdict,
    LookPlan,
    RetrainPlan,
    ScoredLook,
    StepResult,
    TrainedCandidate,
)
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason

if TYPE_CHECKING:
    from evergreen.lineage_events.description import TaskLineage

Results = Callable[[str], Any]
"""Returns what a task of the run has handed over, by its id; None if it has not."""
Describe = Callable[[ModelSpec, Any, Results], "TaskLineage"]
"""Describes a task by its own result, and by those of tasks before it."""

_ON_COMPLETE, _ON_FAILURE = "get_openlineage_facets_on_complete", "get_openlineage_facets_on_failure"


def describe_tasks(model: str, dag: DAG) -> None:
    """Let the tasks of a DAG of this model say what they have read and written."""
    kind = dag.dag_id.rpartition(".")[2]
    for task in dag.tasks:
        name = f"{kind}.{task.task_id}"
        if name in DESCRIPTIONS:
            setattr(task, _ON_COMPLETE, partial(describe_instance, model, name))
            # A task that has failed has published nothing that counts; what it has checked, it has.
            setattr(task, _ON_FAILURE, partial(describe_instance, model, name if name == _CHECK else None))


def describe_instance(model: str, name: str | None, task_instance: Any) -> Any:
    """Return what the provider asks for; nothing without a `name`, or of a task that has handed over nothing.

    One that was skipped has handed over nothing.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage

    def read_result(task_id: str) -> Any:
        return task_instance.xcom_pull(task_ids=task_id)

    result = read_result(task_instance.task_id) if name else None
    if name is None or (result is None and name not in _WITHOUT_RESULT):
        return OperatorLineage()
    lineage = DESCRIPTIONS[name](loader.load_spec(model), result, read_result)
    return OperatorLineage(
        inputs=list(lineage.inputs), outputs=list(lineage.outputs), run_facets=dict(lineage.run_facets)
    )


def _check_raw(model: ModelSpec, _: Any, results: Results) -> TaskLineage:
    from evergreen.lineage_events import feature_tasks

    return feature_tasks.describe_check(model, FeaturesPlan.load(results("plan")).build_periods)


def _publish(model: ModelSpec, result: Any, _: Results) -> TaskLineage:
    from evergreen.lineage_events import feature_tasks

    return feature_tasks.describe_publication(model, StepResult.load(result).periods)


def _announce(model: ModelSpec, result: Any, _: Results) -> TaskLineage:
    from evergreen.lineage_events import feature_tasks
    from evergreen.orchestration.dags.features import features_asset

    return feature_tasks.describe_announcement(model, result, features_asset(model.name).uri)


def _materialize(model: ModelSpec, result: Any, _: Results) -> TaskLineage:
    from evergreen.lineage_events import feature_tasks

    return feature_tasks.describe_materialization(model, result)


def _training_set(model: ModelSpec, result: Any, _: Results) -> TaskLineage:
    from evergreen.lineage_events import model_tasks

    return model_tasks.describe_training_set(model, result)


def _train(model: ModelSpec, result: Any, _: Results) -> TaskLineage:
    from evergreen.lineage_events import model_tasks

    trained = TrainedCandidate.load(result)
    return model_tasks.describe_training(model, trained.training_set_reference, trained.candidate_reference)


def _backtest(model: ModelSpec, _: Any, results: Results) -> TaskLineage:
    from evergreen.lineage_events import model_tasks

    trained = TrainedCandidate.load(results("train"))
    return model_tasks.describe_backtest(model, trained.training_set_reference, trained.candidate_reference)


def _evaluate(model: ModelSpec, result: Any, results: Results) -> TaskLineage:
    from evergreen.lineage_events import model_tasks

    evaluated, plan = EvaluatedCandidate.load(result), RetrainPlan.load(results("plan"))
    return model_tasks.describe_evaluation(
        model,
        ("training_sets", evaluated.training_set_reference),
        evaluated.candidate_reference,
        plan.champion_version,
        evaluated.evaluation_reference,
    )


def _judge(model: ModelSpec, result: Any, _: Results) -> TaskLineage:
    from evergreen.lineage_events import model_tasks

    return model_tasks.describe_verdict(model, JudgedVerdict.from_judge(result).entry)


def _register(model: ModelSpec, result: Any, results: Results) -> TaskLineage:
    from evergreen.lineage_events import model_tasks

    return model_tasks.describe_registration(model, JudgedVerdict.from_judge(results("judge")).entry, result)


def _promote(model: ModelSpec, result: Any, _: Results) -> TaskLineage:
    from evergreen.lineage_events import model_tasks

    return model_tasks.describe_champion_change(model, result)


def _rollback(model: ModelSpec, result: Any, results: Results) -> TaskLineage:
    return _promote(model, result["champion"], results)


def _watch(model: ModelSpec, result: Any, _: Results) -> TaskLineage:
    from evergreen.lineage_events import monitoring_tasks

    return _monitoring(model, result, monitoring_tasks.DATA_RULES)


def _measure(model: ModelSpec, _: Any, results: Results) -> TaskLineage:
    from evergreen.lineage_events import monitoring_tasks

    return _monitoring(model, results("watch"), monitoring_tasks.MEASURE_RULES)


def _monitoring(model: ModelSpec, plan: Any, rules: tuple[str, ...]) -> TaskLineage:
    from evergreen.lineage_events import monitoring_tasks
    from evergreen.lineage_events.description import TaskLineage

    if LookPlan.load(plan).run_reason is RunReason.BACKFILL:  # which records nothing
        return TaskLineage()
    return monitoring_tasks.describe_monitoring(model, rules)


def _examples(model: ModelSpec, result: Any, _: Results) -> TaskLineage:
    from evergreen.lineage_events import model_tasks

    return model_tasks.describe_look_set(model, result)


def _evaluate_look(model: ModelSpec, result: Any, results: Results) -> TaskLineage:
    from evergreen.lineage_events import model_tasks

    scored, plan = ScoredLook.load(result), LookPlan.load(results("plan"))
    assert plan.challenger_version
    return model_tasks.describe_evaluation(
        model,
        ("looks", scored.examples_reference),
        plan.challenger_version,
        plan.champion_version,
        scored.evaluation_reference,
    )


def _score(model: ModelSpec, result: Any, _: Results) -> TaskLineage:
    from evergreen.lineage_events import model_tasks

    return model_tasks.describe_predictions(model, result)


_CHECK = "features.check_raw"
_WITHOUT_RESULT = (_CHECK, "monitor.measure")
# All others read and write nothing but what they plan: `build` and `check_features` work on what `publish` publishes.
DESCRIPTIONS: Mapping[str, Describe] = {
    _CHECK: _check_raw,
    "features.publish": _publish,
    "features.announce": _announce,
    "features.materialize": _materialize,
    "retrain.materialize": _materialize,
    "retrain.training_set": _training_set,
    "retrain.train": _train,
    "retrain.backtest": _backtest,
    "retrain.evaluate": _evaluate,
    "retrain.judge": _judge,
    "retrain.register": _register,
    "retrain.promote": _promote,
    "monitor.watch": _watch,
    "monitor.measure": _measure,
    "monitor.examples": _examples,
    "monitor.evaluate": _evaluate_look,
    "monitor.judge": _judge,
    "monitor.conclude": _promote,
    "monitor.roll_back": _promote,
    "score.score": _score,
    "rollback.rollback": _rollback,
}
