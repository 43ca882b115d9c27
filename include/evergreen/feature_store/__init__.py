"""The feature store: Feast, and the offline engine that Evergreen plugs into it."""
