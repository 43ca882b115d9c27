"""The DAG family of every model folder. Add a folder under include/models, and its DAGs are here.

(Airflow looks into a file only if it names both itself and a DAG; this sentence is load-bearing.)
"""

from evergreen import model as models
from evergreen.orchestration.features import features_dag
from evergreen.orchestration.retrain import retrain_dag
from evergreen.orchestration.rollback import rollback_dag

for _name in models.names():
    _model = models.load(_name)
    if _model.builds_features:
        globals()[f"{_name}_features"] = features_dag(_model)
    globals()[f"{_name}_retrain"] = retrain_dag(_model)
    globals()[f"{_name}_rollback"] = rollback_dag(_model)
