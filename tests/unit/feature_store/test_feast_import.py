"""What reading features imports of Feast, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

REPORT = """
import feast, typeguard
try:
    feast.Entity(name="zone", join_keys=7)
except typeguard.TypeCheckError:
    print("checked")
except Exception:
    print("unchecked")
"""


def report(*imports: str) -> str:
    code = "\n".join([*imports, REPORT])
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_a_process_that_reads_imports_feast_without_checks_of_types() -> None:
    restored = "import typeguard; assert typeguard.typechecked.__module__.startswith('typeguard')"
    assert report("import evergreen.feature_store.repository", restored) == "unchecked"


DECLARED = """
import feast, typeguard
from feast.types import Int64

CALLS = (
    lambda: feast.Entity(name=7),
    lambda: feast.Field(name="hour", dtype=Int64, tags=7),
    lambda: feast.FeatureView(name="hours", source=None, ttl="1d"),
    lambda: feast.FeatureService(name="service", features=7),
)
for call in CALLS:
    try:
        call()
    except typeguard.TypeCheckError as error:
        print("checked", end=" ")
feast.Entity(name="zone", join_keys=["zone"])
"""


def test_declarations_are_checked_where_a_repository_is() -> None:
    code = f"from evergreen.feature_store import feast_import; feast_import.check_declarations()\n{DECLARED}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["checked"] * 4


def test_a_check_imports_feast_with_the_checks_of_declarations_only() -> None:
    code = f"from evergreen.cli.check import find_model_faults; find_model_faults('flight_delay')\n{DECLARED}"
    code += "\nprint('slow' if 'typeguard' in feast.Entity.to_proto.__code__.co_names else 'fast')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [*["checked"] * 4, "fast"]


def test_other_processes_keep_the_checks() -> None:
    assert report("import evergreen.features.definitions, evergreen.cli") == "checked"
    assert report("import feast, evergreen.feature_store.repository") == "checked"
