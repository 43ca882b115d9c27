"""Checks of published features: what made them, what would make them now, and the tables that others read."""

from __future__ import annotations

from datetime import UTC, datetime

from evergreen.cli.doctor.databases import import_feast
from evergreen.cli.doctor.outcomes import CheckFailedError, CheckPassed
from evergreen.errors import EvergreenError, Fault, TableError
from evergreen.features import inputs, staleness
from evergreen.features.definitions import declared_serving
from evergreen.features.observed_serving import find_views_served_late, publication_delays
from evergreen.features.staleness import StaleFeatures
from evergreen.lake.datasets import open_dataset, partition_period
from evergreen.lake.tables import configured_table_format, read_table_states
from evergreen.spec.loader import feature_spec, load_spec, model_names
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window


def check_features() -> CheckPassed:
    """Check the features that the next retrain of each model reads: it does not mix what different code has made."""
    count = 0
    refused: list[tuple[str, StaleFeatures]] = []
    rebuilt: list[tuple[str, StaleFeatures]] = []
    errors: list[str] = []
    for name in model_names():
        try:
            model = load_spec(name)
            feature_spec(model)
        except EvergreenError:
            continue  # as the check of models says
        try:
            stale = stale_features_of_next_retrain(model)
        except EvergreenError as error:
            errors.append(str(error))
            continue
        count += len(stale.published)
        if stale.periods:
            (refused if model.stale_features == "refuse" else rebuilt).append((name, stale))
    if refused or errors:
        problems = [*errors, *(f"{name} is not retrained: {stale.summary}" for name, stale in refused)]
        fixes = dict.fromkeys(stale.rebuild_advice for _, stale in refused) or ["correct its feature repository"]
        raise CheckFailedError("; ".join(problems), "; ".join(fixes))
    if rebuilt:
        return CheckPassed(
            "; ".join(f"the next retrain of {name} rebuilds: {stale.summary}" for name, stale in rebuilt)
        )
    return CheckPassed(f"{count} periods that the next retrains read, none stale")


def check_serving() -> CheckPassed:
    """Check that features are served as early as their views declare: by when their periods were last published."""
    import_feast()
    count, faults, errors = 0, list[Fault](), list[str]()
    for name in model_names():
        try:
            model = load_spec(name)
            if not model.builds_features:
                continue
            calendar = feature_spec(model).calendar
        except EvergreenError:
            continue  # as the check of models says
        try:
            declared = declared_serving(name)
        except EvergreenError as error:
            errors.append(str(error))
            continue
        if not declared:
            continue
        count += len(declared)
        stamps = inputs.features_dataset(model).publication_stamps()
        published_at = {
            partition_period(partition): datetime.fromtimestamp(stamp.time_ns / 1e9, UTC)
            for partition, stamp in stamps.items()
        }
        faults += find_views_served_late(declared, publication_delays(published_at, calendar), name)
    if faults or errors:
        problems = [*errors, *(f"{fault.location} {fault.problem}" for fault in faults)]
        fixes = dict.fromkeys(fault.fix for fault in faults) or ["correct its feature repository"]
        raise CheckFailedError("; ".join(problems), "; ".join(fixes))
    return CheckPassed(f"{count} views declare when they are served, none is later")


def check_tables() -> CheckPassed:
    """Check that all tables can be read: their format's library is installed, and no log is damaged."""
    table_format = configured_table_format()
    assert table_format, "without a format there is nothing to check"
    count = 0
    problems: list[str] = []
    for name in model_names():
        try:
            model = load_spec(name)
        except EvergreenError:
            continue  # as the check of models says
        places = [f"training_sets/{name}", f"verdict_tables/{name}"]
        for place in [f"features/{name}", *places] if model.feature_model == name else places:
            states, faults = read_table_states(open_dataset(place), table_format)
            count += sum(state is not None for state in states.values())
            problems += faults
    if problems:
        raise TableError("; ".join(problems))
    return CheckPassed(f"{count} tables, all readable")


def stale_features_of_next_retrain(model: ModelSpec) -> StaleFeatures:
    """Return which published features the next retrain reads would be made differently now."""
    import_feast()
    from evergreen.feature_store import training_sets

    spec, published = feature_spec(model), inputs.published_periods(model)
    if not published:
        return staleness.find_stale_features(model, {})
    calendar = spec.calendar
    start = end = calendar.shift(published[-1], 1)
    for duration in model.history:
        start = calendar.period_before(start, duration)
    window = Window.from_range(max(spec.first_period, start), end, RunReason.MANUAL, calendar)
    # From the newest training set, because opening the feature store may write to it.
    newest = training_sets.newest_training_set(model)
    ttls = [view["ttl_seconds"] for view in newest.inputs["definitions"].values()] if newest else []
    periods = staleness.periods_in_reach(model, window, ttls)
    return staleness.find_stale_features(model, inputs.published_manifests(model, periods))
