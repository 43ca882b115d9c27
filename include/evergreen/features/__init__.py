"""The steps that turn raw days into published features: `checks.raw → build → checks.built → publish`.

Each is a function over days that runs from a task, a test or a notebook, and may be run again or twice
at once: what is published or built already is found by its fingerprint and not made again.

    inputs      what the features of a day are made from, and so their fingerprint
    claims      which run makes which day, when several want it
    checks      of raw files and of built features (Great Expectations)
    build       the features of many days in one go (Spark)
    publish     makes built days visible
    make        all of them, one after the other
"""

from evergreen.features.inputs import features_dataset
from evergreen.features.tables import FeatureTables

__all__ = ["FeatureTables", "features_dataset"]
