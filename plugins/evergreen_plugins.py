"""Nothing: Airflow loads the plugins of `evergreen.plugin` by their entry points, in a checkout as from a wheel.

Plugins named here, too, would be registered twice, which Airflow reports as an import error.
"""
