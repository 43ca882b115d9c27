"""The spec of `departure_counts`: hours as periods, some of them without any departure, and a daily retrain."""

from evergreen.spec.model import ModelSpec

from .sources import SOURCES

MODEL = ModelSpec(
    name="departure_counts",
    owner="flight-operations",
    description="Number of flights that leave an airport of New York in an hour, one hour ahead.",
    features=dict(
        period="1h",
        timezone="America/New_York",
        first_day="2013-01-01",
        last_day="2013-12-31",
        # Each night one run builds the hours of the day. Without a schedule it is a run per hour.
        schedule="0 0 * * *",
        sources=SOURCES,
        spine="hours",
        views=["recent_departures", "airport_weather"],
    ),
    feature_service="departure_counts",
    request_columns=["hour_of_day", "weekday"],
    label="departures",
    schedule="30 0 * * *",  # when they are built
    train="28d",
    holdout="14d",
    parameters=dict(rounds=150, max_depth=5, learning_rate=0.08, subsample=0.8, min_child_weight=10),
    seed=2013,
    training_libraries=["xgboost-cpu", "pyarrow"],
    gates=[
        dict(kind="threshold", metric="mae", at_most=4.0),
        dict(kind="baseline", metric="mae", baseline="recent_departures__same_hour_yesterday"),
        dict(kind="against_champion", metric="poisson_deviance", must_be="not_worse", margin=0.2, confidence=0.95),
        dict(kind="by_slice", metric="mae", group_by="origin", margin=1.0),
        dict(kind="signature"),
        dict(kind="online_equals_offline"),
    ],
    score=dict(),  # the hours of each day, when their features are published
)
