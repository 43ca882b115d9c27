"""The training contract: a job file goes in, a valid model comes out. Runs where there is no Airflow.

python -m evergreen.training <URI of job.json>
"""

from evergreen.training.checkpoints import Checkpoint, Checkpoints
from evergreen.training.job import Job, TrainingResult

__all__ = ["Checkpoint", "Checkpoints", "Job", "TrainingResult"]
