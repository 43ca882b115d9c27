"""Where the newest reports on a model are: `evergreen report`."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from rich.console import Console
from rich.text import Text
from upath import UPath

from evergreen import ledger
from evergreen.cli.options import print_json
from evergreen.errors import EvergreenError
from evergreen.lake import datasets
from evergreen.ledger import VerdictRecorded
from evergreen.spec.loader import load_spec


def show_reports(name: str, as_of: str | None, console: Console, *, opens: bool = False, as_json: bool = False) -> None:
    """Print where the gate report of the newest verdict is, or of that as of a period, and the monitoring report.

    The latter is on the champion, and so left out with a period. With `opens`, a browser shows them.

    Raises:
        EvergreenError: there is no report, or it is in an object store and cannot be opened from there, or no browser
            can be started.
    """
    load_spec(name)  # else one with a typo would have no verdict
    places = find_reports(name, as_of)
    if not places:
        period = f" as of {as_of}" if as_of else ""
        raise EvergreenError(
            f"{name} has no report{period}: retrain it, or see `evergreen history {name}` for its dates"
        )
    if as_json:
        print_json(console, places)
    else:
        for title, place in places.items():
            console.print(Text(f"{title}: {place}"), soft_wrap=True)
    if opens:
        for place in places.values():
            if not isinstance(place, Path):
                fix = "open the links of the tasks judge and watch in Airflow"
                raise EvergreenError(f"{place} is in an object store, which a browser cannot read: {fix}")
            if not webbrowser.open(place.absolute().as_uri()):
                raise EvergreenError(f"no browser can be started here: open {place} on a machine that has one")


def find_reports(name: str, as_of: str | None = None) -> dict[str, Path | UPath]:
    """Return the places of the reports that exist: `gate report` and `monitoring report`."""
    from evergreen.monitoring.record import REPORT_FILE, monitoring_dataset, record_partition  # imports DuckDB

    state = ledger.read_state(name)
    fields = {"as_of": as_of} if as_of else {}
    places: dict[str, Path | UPath] = {}
    entry = state.entries.find_last(VerdictRecorded, **fields)
    if entry and isinstance(entry.event, VerdictRecorded) and (path := entry.event.evidence.get("report")):
        places["gate report"] = datasets.lake_path(path)
    if state.champion_content and as_of is None:
        dataset = monitoring_dataset(name)
        manifest = dataset.manifest(record_partition(state.champion_content))
        if manifest and REPORT_FILE in manifest.files:
            places["monitoring report"] = dataset.published_path(manifest, REPORT_FILE)
    return {title: place for title, place in places.items() if place.is_file()}
