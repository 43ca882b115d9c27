from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="coin",
    owner="tests",
    features="flight_delay",
    feature_service="flight_delay",
    request_columns=["departure_minute"],
    label="late",
    schedule="0 0 * * 1",
    retrain_after="3d",
    train="10d",
    holdout="3d",
    stale_features="rebuild",
    parameters=dict(rounds=20, max_depth=2),
    # Unreachable: its candidates are judged and registered, but never promoted.
    gates=[dict(kind="threshold", metric="auc", at_least=0.99)],
)
