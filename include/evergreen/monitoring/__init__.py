"""Monitoring: whether what a model gets and answers is still what it has learned from.

Distributions are kept as histograms, one per period and column (`histograms`), and compared by effect sizes
(`effect_sizes`). `alarms` decides on them which changes somebody has to hear of; it is pure, and causal: what it says
of a day depends on no later day. `service` reads and publishes.
"""
