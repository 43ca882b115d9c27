"""Makes the plugins of `evergreen.plugin` known to Airflow."""

from evergreen.plugin.preload import PreloadPlugin
from evergreen.plugin.verdicts import VerdictsPlugin

__all__ = ["PreloadPlugin", "VerdictsPlugin"]
