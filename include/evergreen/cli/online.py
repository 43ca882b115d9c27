"""The online store, by hand."""

from __future__ import annotations

from collections.abc import Sequence

from evergreen.cli.progress import Progress
from evergreen.spec import loader


def rebuild(names: Sequence[str], progress: Progress) -> None:
    """Write anew what the online store holds for these models; models of the same features share it."""
    from evergreen.feature_store import online_store

    known = {model.features_of: model for model in map(loader.load, names)}
    for features, model in known.items():
        written = online_store.rebuild(model)
        if written:
            progress.say(f"✓ {features}: online again, the days {written['start']} up to {written['end']}")
        else:
            progress.say(f"{features}: nothing was ever online; a run of {model.name}.retrain writes it")
