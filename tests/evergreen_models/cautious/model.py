from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="cautious",
    owner="tests",
    features="flight_delay",
    feature_service="flight_delay",
    request_columns=["departure_minute"],
    label="late",
    schedule="0 0 * * 1",
    train="10d",
    holdout="7d",
    parameters=dict(rounds=20, max_depth=2),
    # Lenient, because this model tests approvals.
    gates=[
        dict(kind="threshold", metric="auc", at_least=0.5),
        dict(kind="against_champion", metric="auc", must_be="not_worse", margin=0.3),
    ],
    approval=dict(timeout_hours=1),
    monitor=None,  # each candidate is decided on its week, and then asked about
)
