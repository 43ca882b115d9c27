"""Runs one job in this process: `python -m evergreen.training job.json output-folder`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from evergreen.lake import sha256
from evergreen.training.job import RESULT, Job, Result


def main(job_file: Path, output: Path) -> None:
    """Train, then leave a result that names every file of the model with its hash."""
    job = Job.read(job_file)
    output.mkdir(parents=True, exist_ok=True)
    metrics, environment = import_module(f"models.{job.model}.train").fit(job, output)
    files = {file.name: sha256(file) for file in sorted(output.iterdir()) if file.name != RESULT}
    Result(fingerprint=job.fingerprint, files=files, metrics=metrics, environment=environment).write(
        output / RESULT
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
