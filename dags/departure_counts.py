from evergreen.orchestration.dags import airflow_dags

globals().update(airflow_dags("departure_counts"))
