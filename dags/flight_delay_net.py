from evergreen.orchestration.dags import airflow_dags

globals().update(airflow_dags("flight_delay_net"))
