# Airflow reads only files with this word, its name, in them.
from evergreen.orchestration.dags.maintenance import maintenance_dag

maintenance = maintenance_dag(owner="flight-operations")
