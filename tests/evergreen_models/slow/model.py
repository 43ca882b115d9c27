"""A model that learns slowly and without a library, for tests of interruptions; its data set its behavior."""

from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="slow",
    owner="tests",
    features="flight_delay",
    feature_service="flight_delay",
    request_columns=["departure_minute"],
    label="late",
    schedule="0 0 * * 1",
    train="10d",
    holdout="3d",
    resources=dict(cpu=1, memory_gib=0.25, shm_gib=0.0625, timeout_minutes=5, checkpoint_seconds=1, max_preemptions=3),
    # Defaults, which the data override.
    parameters=dict(steps=80, step_seconds=0.1, write_seconds=0.5, misbehaves=""),
    gates=[dict(kind="threshold", metric="auc", at_least=0.99)],
)
