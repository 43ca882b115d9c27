"""Evergreen keeps machine-learning models fresh: from raw days to a promoted champion, on Airflow."""

__version__ = "0.1.0"
