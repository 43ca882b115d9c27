"""The one package that imports Airflow: it resolves a run's window, and wires steps to tasks."""
