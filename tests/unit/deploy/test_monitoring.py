"""Rules and dashboard name metrics that exist, and the dashboard is what its program builds."""

from __future__ import annotations

import importlib.util
import json
import re
from types import ModuleType
from typing import Any

import pytest
import yaml

from evergreen.plugin.model_metrics import MODEL_METRICS
from evergreen.settings import REPOSITORY

pytestmark = pytest.mark.unit

FOLDER = REPOSITORY / "deploy/monitoring"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]
]


def load_dashboard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard", FOLDER / "dashboard.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DASHBOARD = json.loads((FOLDER / "dashboards/evergreen.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_committed_dashboard_is_what_the_program_builds() -> None:
    module = load_dashboard()
    assert module.DASHBOARD.read_text() == module.render(), "run python deploy/monitoring/dashboard.py"


def test_rules_and_panels_name_metrics_that_exist() -> None:
    known = {metric.name + ("_total" if metric.is_counter else "") for metric in MODEL_METRICS}
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]:
        named = set(re.findall(r"\bevergreen[_:]\w+", expression))
        assert named
        assert named <= known | recorded, expression


def test_labels_in_queries_are_those_of_the_metric() -> None:
    labels = {metric.name: {*metric.label_names} for metric in MODEL_METRICS}
    for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]:
        for name, selector in re.findall(r"\b(evergreen_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)[=!]", selector)) <= labels[name], expression


def test_panels_do_not_overlap() -> None:
    cells = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, panel["title"]
        cells |= own
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tested = (FOLDER / "rules_test.yaml").read_text()
    for rule in RULES:
        if "alert" in rule:
            assert f"alertname: {rule['alert']}\n" in tested
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["labels"]["severity"] in ("info", "warning", "critical")
