"""The local stack: Airflow, MLflow and Spark on one machine, and the demo that retrains a model on it."""
