"""The online store, by hand."""

from __future__ import annotations

from collections.abc import Sequence

from evergreen.cli.progress import Progress
from evergreen.spec import loader


def run_online_rebuild(names: Sequence[str], progress: Progress) -> None:
    """Write anew what the online store holds for these models; models of the same features share it."""
    from evergreen.feature_store import online_store

    known = {model.feature_model: model for model in map(loader.load_spec, names)}
    for features, model in known.items():
        written = online_store.rebuild_online_store(model)
        if written:
            progress.print(f"✓ {features}: online again, the days {written['start']} up to {written['end']}")
        else:
            progress.print(f"{features}: nothing was ever online; a run of {model.name}.retrain writes it")
