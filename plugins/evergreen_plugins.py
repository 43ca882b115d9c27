"""What Airflow loads: the code is in `evergreen.plugin`."""

from evergreen.plugin.preload import PreloadPlugin
from evergreen.plugin.verdicts import VerdictsPlugin

__all__ = ["PreloadPlugin", "VerdictsPlugin"]
