"""The page about trust: each line of an attacker's table names tests that exist, or says that it is not defended."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from support.documents import DOCS, ROOT, table_below

pytestmark = pytest.mark.unit

PAGE = DOCS / "trust.md"
ATTACKERS = re.findall(r"^## A hostile .*$", PAGE.read_text(), re.MULTILINE)
LINES = [row for attacker in ATTACKERS for row in table_below(PAGE, attacker)]
TEST_LINK = re.compile(r"\[(test_\w+)\]\(([^)]+)\)")


def defined_functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("attempt", "outcome", "tests"), LINES, ids=[row[0][:60] for row in LINES])
def test_a_line_is_shown_by_tests_or_not_defended(attempt: str, outcome: str, tests: str) -> None:
    links = TEST_LINK.findall(tests)
    assert links or outcome.startswith("not defended: ")
    for name, target in links:
        assert name in defined_functions((DOCS / target).resolve()), f"{target} has no {name}"


def test_all_attackers_have_lines() -> None:
    assert len(ATTACKERS) == 4
    assert len(LINES) >= 30


def test_the_manifests_grant_what_the_page_lists() -> None:
    """On a cluster, tests/kubernetes/test_rights.py asks the API server."""
    manifests = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/training.yaml").read_text()))
    granted = {"trainer": "nothing"}
    for role in (manifest for manifest in manifests if manifest["kind"] == "Role"):
        rules = [f"`{rule['resources'][0]}`: {', '.join(rule['verbs'])}" for rule in role["rules"]]
        granted[role["metadata"]["name"]] = "; ".join(rules)
    listed = {account.strip("`"): rights for account, rights, _ in table_below(PAGE, "### In the cluster")}
    assert listed == granted
    bound = {b["roleRef"]["name"]: b["subjects"] for b in manifests if b["kind"] == "RoleBinding"}
    for role, [subject] in bound.items():
        assert (subject["kind"], subject["name"]) == ("ServiceAccount", role)
    assert set(bound) == set(granted) - {"trainer"}
