"""Materializing: the newest feature values of a window go to the online store, where serving reads them."""

from __future__ import annotations

from datetime import date, timedelta

from evergreen import lake
from evergreen.features import dataset as features_dataset
from evergreen.model import Model
from evergreen.store.repository import feature_store
from evergreen.window import Window, midnight

_FIRST = timedelta(days=7)  # how far back the first window reaches; older values are stale by any TTL


def materialize(model: Model, window: Window) -> dict[str, str]:
    """Bring the online store up to `window.as_of`; gives the window of days that this materialized.

    The windows done are recorded here, in the lake, because Feast's own watermark starts somewhere else
    on its first use and is lost by a kill. An online value is never replaced by an older one: a window
    that ends no later than one that is recorded does nothing.
    """
    record = lake.dataset(f"online/{model.features_of}")
    done = [date.fromisoformat(manifest.inputs["end"]) for manifest in record.manifests()]
    if done and max(done) >= window.end:
        print(f"online features are as of {max(done)} already: nothing to do as of {window.end}")
        return {}
    start = max([window.start, window.end - _FIRST, *done])
    features = features_dataset(model)
    days = {
        manifest.partition: manifest.content
        for manifest in features.manifests()
        if lake.day_partition(start) <= manifest.partition < lake.day_partition(window.end)
    }
    store = feature_store()
    views = [
        projection.name
        for projection in store.get_feature_service(model.feature_service).feature_view_projections
    ]
    print(f"materializing {', '.join(views)}: {start} until {window.end}", flush=True)
    store.materialize(start_date=midnight(start, window.timezone), end_date=window.as_of, feature_views=views)
    inputs = {"start": start.isoformat(), "end": window.end.isoformat(), "days": days}
    record.publish(f"as_of={window.end}", lake.fingerprint(inputs), {}, inputs)
    return {"start": start.isoformat(), "end": window.end.isoformat()}
