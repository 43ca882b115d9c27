"""The MLflow registry: versions, their files and signatures, and the aliases that follow the ledger."""
