"""The spec of `flight_delay`: its sources, gates and schedule."""

from evergreen.spec.model import ModelSpec

from .sources import SOURCES

MODEL = ModelSpec(
    name="flight_delay",
    owner="flight-operations",
    description="Probability that a flight out of New York arrives more than 15 minutes late.",
    features=dict(
        timezone="America/New_York",
        first_day="2013-01-01",
        last_day="2013-12-31",
        sources=SOURCES,
        spine="departures",
        views=["carrier_delays", "origin_delays", "destination_delays", "route_delays", "origin_weather", "aircraft"],
    ),
    feature_service="flight_delay",
    request_columns=["departure_minute", "weekday", "distance"],
    label="late",
    schedule="0 0 * * 5",
    train="180d",
    holdout="14d",
    parameters=dict(
        rounds=300, max_depth=5, learning_rate=0.05, subsample=0.8, colsample_bytree=0.5, min_child_weight=20
    ),
    seed=2013,
    training_libraries=["xgboost-cpu", "pyarrow"],
    gates=[
        dict(kind="threshold", metric="auc", at_least=0.60),
        dict(kind="threshold", metric="calibration_error", at_most=0.10),
        dict(kind="baseline", metric="log_loss", baseline="prior"),
        # The confidence holds over the model's whole life: see docs/guides/gates.md.
        dict(kind="against_champion", metric="auc", must_be="not_worse", margin=0.02, confidence=0.95),
        dict(kind="by_slice", metric="auc", group_by="origin", margin=0.05),
        # A day of storms may differ from its week: this gate is for broken features.
        dict(kind="prediction_drift", statistic="ks", at_most=0.6),
        dict(kind="signature"),
        dict(kind="online_equals_offline"),
        dict(kind="serving", quantity="single_p99_ms", at_most=20.0),
    ],
)
