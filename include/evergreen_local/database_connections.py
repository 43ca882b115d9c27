"""How components of a local Airflow connect to its database: Airflow's `sql_alchemy_connect_args`.

Airflow imports this, and decides which database it is: by its environment, or by its `airflow.cfg`.
"""

from __future__ import annotations

from airflow.configuration import conf

_SQLITE_TIMEOUT_S = 60

CONNECT_ARGS = {"timeout": _SQLITE_TIMEOUT_S} if conf.get("database", "sql_alchemy_conn").startswith("sqlite") else {}
"""Of the driver of the database. Those of other databases have no such argument."""
