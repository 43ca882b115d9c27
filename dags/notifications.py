# Airflow reads only files with this word, its name, in them.
from evergreen.orchestration.dags.notifications import notifications_dag

notifications = notifications_dag(owner="flight-operations")
