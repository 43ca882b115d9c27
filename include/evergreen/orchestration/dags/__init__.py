"""The DAGs of a model: features, retrain, rollback."""
