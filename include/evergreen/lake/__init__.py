"""The lake: datasets that are published partition by partition, and fingerprints of data and code."""
