"""How long the components of a local Airflow wait for its database."""

import sys

import pytest
from airflow import settings

from evergreen_local.airflow_components import component_commands

pytestmark = pytest.mark.dag


@pytest.fixture
def connect_args(monkeypatch):
    """Return what the scheduler passes to the driver of a database."""

    def read(url):
        _, environment = component_commands(8793, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url})["scheduler"]
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delitem(sys.modules, "evergreen_local.database_connections", raising=False)
        return settings._get_connect_args("sync")

    yield read
    sys.modules.pop("evergreen_local.database_connections", None)


def test_sqlite_is_waited_for(connect_args, tmp_path):
    assert connect_args(f"sqlite:///{tmp_path}/airflow.db") == {"timeout": 60}


def test_drivers_of_other_databases_have_no_such_argument(connect_args):
    assert connect_args("postgresql+psycopg://airflow@localhost/airflow") == {}
