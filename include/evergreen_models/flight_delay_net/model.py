"""The spec of `flight_delay_net`: the features of `flight_delay`, and also carrier, origin and destination."""

from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="flight_delay_net",
    owner="flight-operations",
    description="Probability that a flight out of New York arrives more than 15 minutes late, by a neural network.",
    features="flight_delay",
    feature_service="flight_delay",
    request_columns=["departure_minute", "weekday", "distance", "carrier", "origin", "dest"],
    label="late",
    schedule="0 1 * * 5",  # an hour after flight_delay, which uses the same cores
    train="180d",
    holdout="14d",
    parameters=dict(
        embedding_sizes=dict(carrier=4, origin=2, dest=8),
        min_category_rows=50,
        hidden_sizes=[128, 64],
        dropout=0.1,
        mask_rate=0.02,
        epochs=8,
        batch_rows=1024,
        learning_rate=0.003,
        weight_decay=0.1,
        shuffle_rows=131_072,
    ),
    seed=2013,
    training_libraries=["torch", "numpy", "pyarrow", "safetensors", "onnx"],
    resources=dict(cpu=2, memory_gib=4, timeout_minutes=60, checkpoint_seconds=30),
    gates=[
        dict(kind="threshold", metric="auc", at_least=0.60),
        dict(kind="threshold", metric="calibration_error", at_most=0.10),
        dict(kind="against_champion", metric="auc", must_be="not_worse", margin=0.02, confidence=0.95),
        dict(kind="signature"),
        dict(kind="online_equals_offline"),
        dict(kind="serving", quantity="single_p99_ms", at_most=20.0),
    ],
)
