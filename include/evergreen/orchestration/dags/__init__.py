"""The DAGs of a model: features, retrain, monitor, score, rollback. A DAG file has those of one model."""

from __future__ import annotations

import logging

from airflow.sdk import DAG
from airflow.sdk.definitions.param import ParamsDict

from evergreen.errors import EvergreenError
from evergreen.orchestration.dags.features import features_dag
from evergreen.orchestration.dags.monitor import monitor_dag
from evergreen.orchestration.dags.retrain import retrain_dag
from evergreen.orchestration.dags.rollback import rollback_dag
from evergreen.orchestration.dags.score import score_dag
from evergreen.orchestration.task_lineage import describe_tasks
from evergreen.spec import loader

log = logging.getLogger(__name__)


class DagFileError(EvergreenError):
    """A DAG file has no DAGs, because its model folder is invalid."""


def airflow_dags(model_name: str) -> dict[str, DAG]:
    """Return the DAGs of a model by variable name. A DAG file is `globals().update(airflow_dags("churn"))`.

    Only this model's folder is loaded, so an error in it is an import error of this file and of no other.

    Raises:
        DagFileError: the model folder is invalid. Airflow shows its cause, which says what to correct, in front.
    """
    try:
        model = loader.load_spec(model_name)
        dags = {"retrain": retrain_dag(model), "rollback": rollback_dag(model)}
        if model.monitor:
            dags["monitor"] = monitor_dag(model)
        if model.score:
            dags["score"] = score_dag(model, model.score)
        if model.builds_features:
            dags["features"] = features_dag(model)
        for dag in dags.values():
            describe_tasks(model_name, dag)
            for task in dag.tasks:
                # Airflow copies the DAG's params to each task, and validates each copy whenever it serializes one:
                # most of the time of a parse. A task finds the DAG's params in its context anyway.
                task.params = ParamsDict()
    except EvergreenError as error:
        log.exception("the model folder %s is invalid", model_name)
        # Python prints causes first, and one without a traceback by its message alone: that is what users see first.
        cause = error.with_traceback(None)
        cause.__cause__, cause.__suppress_context__ = None, True
        raise DagFileError(f"{model_name} has no DAGs until this is corrected; other models have theirs") from cause
    return {f"{model_name}_{kind}": dag for kind, dag in dags.items()}
