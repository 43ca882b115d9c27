"""The training contract: a job file goes in, a valid model comes out. Runs where there is no Airflow.

python -m evergreen.training job.json
"""

from evergreen.training.job import Job, Result

__all__ = ["Job", "Result"]
