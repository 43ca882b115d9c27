"""The training contract: an attempt reads a job file and leaves a valid model. It runs without Airflow.

python -m evergreen.training <URI of job.json>
"""

from evergreen.training.checkpoints import Checkpoint, Checkpoints
from evergreen.training.job import Job, TrainingResult
from evergreen.training.rows import TrainingRows, open_training_rows

__all__ = ["Checkpoint", "Checkpoints", "Job", "TrainingResult", "TrainingRows", "open_training_rows"]
