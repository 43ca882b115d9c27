"""The DAGs of every model: a folder under include/evergreen_models is enough.

(Airflow only parses files that contain the words "airflow" and "DAG"; this sentence is load-bearing.)
"""

from evergreen.orchestration.dags.features import features_dag
from evergreen.orchestration.dags.retrain import retrain_dag
from evergreen.orchestration.dags.rollback import rollback_dag
from evergreen.spec import loader

for _name in loader.model_names():
    _model = loader.load_spec(_name)
    if _model.builds_features:
        globals()[f"{_name}_features"] = features_dag(_model)
    globals()[f"{_name}_retrain"] = retrain_dag(_model)
    globals()[f"{_name}_rollback"] = rollback_dag(_model)
