"""Takes the pictures of the tutorial: `python docs/screenshots.py FOLDER`, before its `evergreen down`.

FOLDER is the project that the tutorial made, whose services are up. It needs Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

IMAGES = Path(__file__).parent / "images"
MAX_BYTES = 200_000
# A page draws for so long, in a time that the browser does not wait for: it has no clock but this.
DRAWING_TIME_MS = 20_000


@dataclass(frozen=True)
class Picture:
    """A page of a service, and the window that is pictured: its size, and how many pixels each of its units becomes."""

    name: str
    service: str
    path: str
    width: int
    height: int
    scale: float = 1.0


PICTURES = (
    # The first: Airflow's interface gives the browser the token that its other pages ask for.
    Picture("tutorial-grid", "airflow", "/dags/rain.retrain/runs/as_of_2013-03-18", 1700, 960, scale=0.8),
    Picture("tutorial-gate-report", "airflow", "/evergreen/rain.retrain/verdicts/1", 1340, 1100),
    Picture("tutorial-registry", "mlflow", "/#/models/rain", 1700, 1080, scale=0.75),
)


def take_picture(browser: str, profile: Path, url: str, picture: Picture) -> Path:
    """Write the PNG file of a page, and return its path.

    Raises:
        SystemExit: the browser has written none, or one that is too large for the docs.
    """
    file = IMAGES / f"{picture.name}.png"
    file.unlink(missing_ok=True)
    command = [
        browser,
        "--headless",
        "--no-sandbox",  # pages of this machine only; in a container, root has no sandbox
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        f"--window-size={picture.width},{picture.height}",
        f"--force-device-scale-factor={picture.scale}",
        f"--virtual-time-budget={DRAWING_TIME_MS}",
        f"--screenshot={file}",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if not file.exists():
        sys.exit(f"{browser} has written no picture of {url}:\n{done.stderr[-2000:]}")
    if file.stat().st_size > MAX_BYTES:
        sys.exit(f"{file} has {file.stat().st_size:,} bytes, more than {MAX_BYTES:,}: choose a smaller window")
    return file


def service_addresses(project: Path) -> dict[str, str]:
    done = subprocess.run(["evergreen", "status", "--json"], cwd=project, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return {row["service"]: row["url"] for row in json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the project of the tutorial, with its services up")
    project = parser.parse_args().folder
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium is on PATH: apt-get install chromium")
    addresses = service_addresses(project)
    with TemporaryDirectory() as profile:
        for picture in PICTURES:
            print(take_picture(browser, Path(profile), addresses[picture.service] + picture.path, picture))


if __name__ == "__main__":
    main()
