"""What a home holds after retrains, printed as JSON: to be compared with another home's, wherever each of them is.

Hashes are of bytes, so what is equal here is equal. Left out is what no two machines share: how long serving took, and
the version of Python.
"""

from __future__ import annotations

import json

from upath import UPath

from evergreen import ledger, storage
from evergreen.lake import datasets
from evergreen.registry import aliases
from evergreen.settings import settings
from evergreen.training import runner

MODEL = "flight_delay"
# They hold names of runs, times, or latencies; and versions of what runs there.
_OF_ONE_RUN = ("online", "arrivals", "evaluations", "verdicts", "checks")
_OF_ONE_MACHINE = "result.json"


def state() -> dict[str, object]:
    contents = {}
    for folder in sorted(settings().lake.glob("**/_manifests")):
        name = str(folder.parent.relative_to(settings().lake))
        if not name.startswith(_OF_ONE_RUN):
            for manifest in datasets.open_dataset(name).manifests():
                files = {file: held.sha256 for file, held in manifest.files.items()}
                files.pop(_OF_ONE_MACHINE, None)
                contents[f"{name}/{manifest.partition}"] = files
    verdicts: dict[str, object] = {}
    promoted = []
    for entry in ledger.read_state(MODEL).entries:
        if isinstance(entry.event, ledger.VerdictRecorded):
            records = {r.gate: r for r in entry.event.verdict.results if "serving" not in r.gate}
            verdicts[str(entry.event.as_of)] = {
                name: (record.outcome, record.candidate, record.champion) for name, record in records.items()
            }
        if isinstance(entry.event, ledger.VersionPromoted):
            promoted.append(str(entry.event.as_of))
        if isinstance(entry.event, ledger.ChampionRolledBack):
            promoted.append(f"back from {promoted[-1]}")
    repair = aliases.repair_aliases(MODEL)
    predictions: dict[str, list[str]] = {}
    for evaluation in datasets.open_dataset(f"evaluations/{MODEL}").manifests():
        as_of = evaluation.inputs["periods"][1]
        predictions.setdefault(as_of, []).append(evaluation.files["scores"].sha256)
    return {
        "contents": contents,
        "predictions": {as_of: sorted(set(found)) for as_of, found in predictions.items()},
        "verdicts": verdicts,
        "promoted": promoted,
        "aliases": "right"
        if all(alias.status == "consistent" for alias in repair)
        else [alias.message for alias in repair],
        "staged": len(list(settings().lake.glob("**/_staging/*/*"))),
        "models": sorted(job.name for job in jobs() if runner.is_training_complete(job.name, job)),
        "jobs": len(jobs()),
    }


def jobs() -> list[UPath]:
    """Folders of all training jobs."""
    folder = storage.storage_path(f"{settings().jobs}/{MODEL}")
    return [path for path in folder.iterdir() if (path / "job.json").exists()]  # beside them lies their data


if __name__ == "__main__":
    print(json.dumps(state()))
