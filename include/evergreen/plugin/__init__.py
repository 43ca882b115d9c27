"""Airflow plugins: the gate report page, and imports that all tasks share."""
