"""Builds the Grafana dashboard: `python deploy/monitoring/dashboard.py` writes dashboards/evergreen.json.

The JSON is committed, for Grafana and for people who import it by hand. A test compares it with what is built here,
and asks a Prometheus every query.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parent / "dashboards" / "evergreen.json"

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SELECTOR = 'model=~"$model", team=~"$team"'
_COLUMNS = 24  # of Grafana's grid
_RED, _GREEN, _ORANGE = "red", "green", "orange"

Query = tuple[str, str]
"""An expression of PromQL, and the legend of its series."""


def latest(metric: str, *labels: str, matchers: str = "") -> str:
    """Return the expression of a metric by model, whatever API server it is from."""
    selector = ", ".join(filter(None, (_SELECTOR, matchers)))
    return f"max by ({', '.join(('model', 'team', *labels))}) ({metric}{{{selector}}})"


def panel(
    kind: str,
    title: str,
    queries: Sequence[Query],
    *,
    unit: str = "none",
    description: str = "",
    width: int = 12,
    height: int = 8,
    steps: Sequence[tuple[float | None, str]] = (),
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a panel without its place. `steps` are colours from a value on, the first from None."""
    defaults: dict[str, Any] = {"unit": unit}
    if steps:
        defaults["color"] = {"mode": "thresholds"}
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"value": value, "color": color} for value, color in steps],
        }
    targets = [
        {"refId": chr(ord("A") + n), "datasource": _DATASOURCE, "expr": expression, "legendFormat": legend}
        for n, (expression, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": _DATASOURCE,
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": dict(options or {}),
        "targets": targets,
    }


def stat(title: str, expression: str, **arguments: Any) -> dict[str, Any]:
    """Return a panel with one number."""
    options = {"colorMode": "background", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return panel("stat", title, [(expression, "")], width=6, height=4, options=options, **arguments)


def alarm(title: str, expression: str, **arguments: Any) -> dict[str, Any]:
    """Return a panel with a number that is green while it is 0."""
    return stat(title, expression, steps=[(None, _GREEN), (1, _ORANGE)], **arguments)


def panels() -> list[dict[str, Any]]:
    """Return all panels, in order."""
    lateness = f"evergreen:champion_lateness_seconds{{{_SELECTOR}}}"
    features_lateness = f"evergreen:features_lateness_seconds{{{_SELECTOR}}}"
    colors = [(None, _GREEN), (0, _RED)]
    return [
        alarm("Late champions", f"count({lateness} > 0) or vector(0)"),
        alarm("Late features", f"count({features_lateness} > 0) or vector(0)"),
        alarm("Approvals waiting", f"sum({latest('evergreen_approvals_waiting')}) or vector(0)"),
        alarm("Parts that cannot be read", 'sum(max by (model, part) (evergreen_scrape_error{model=~"$model"}))'),
        panel(
            "timeseries",
            "Age of the champion's data",
            [(f"evergreen:champion_data_age_seconds{{{_SELECTOR}}}", "{{model}}")],
            unit="s",
        ),
        panel(
            "timeseries",
            "Lateness",
            [(lateness, "champion of {{model}}"), (features_lateness, "features of {{model}}")],
            unit="s",
            description="By `fresh_within` of the spec: above 0, it is late.",
            steps=colors,
        ),
        panel(
            "timeseries",
            "Newest verdict",
            [(f"{latest('evergreen_verdict', 'outcome')} == 1", "{{model}}: {{outcome}}")],
            options={"legend": {"displayMode": "table", "placement": "right"}},
        ),
        panel(
            "timeseries",
            "Gates of the newest verdict that block",
            [
                (
                    latest("evergreen_verdict_gates", "outcome", matchers='outcome!="passed"'),
                    "{{model}}: {{outcome}}",
                )
            ],
        ),
        panel("timeseries", "Rejected in a row", [(latest("evergreen_verdicts_rejected_in_a_row"), "{{model}}")]),
        panel("timeseries", "Missing periods", [(latest("evergreen_features_missing_periods"), "{{model}}")]),
        panel(
            "timeseries",
            "Share of the confidence that the newest comparison had",
            [
                (
                    f"{latest('evergreen_comparison_alpha', 'gate')} / "
                    f"{latest('evergreen_comparison_alpha_budget', 'gate')}",
                    "{{model}}: {{gate}}",
                )
            ],
            unit="percentunit",
            description="As this gets small, only large gains are proved.",
        ),
        panel(
            "timeseries",
            "Challengers",
            [(f"{latest('evergreen_challengers', 'state')} == 1", "{{model}}: {{state}}")],
        ),
        panel(
            "timeseries",
            "Training attempts of 30 days",
            [(latest("evergreen_training_attempts", "outcome"), "{{model}}: {{outcome}}")],
        ),
        panel(
            "timeseries",
            "Cost of training of 30 days",
            [(latest("evergreen_training_cost", "currency"), "{{model}}: {{currency}}")],
            unit="none",
            description="Without EVERGREEN_PRICES there are no prices.",
        ),
    ]


def place(items: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the panels with an id and a place, from left to right."""
    x = y = height = 0
    for number, item in zip(count(1), items, strict=False):
        position = item["gridPos"]
        if x + position["w"] > _COLUMNS:
            x, y, height = 0, y + height, 0
        yield {**item, "id": number, "gridPos": {**position, "x": x, "y": y}}
        x, height = x + position["w"], max(height, position["h"])


def variable(name: str) -> dict[str, Any]:
    """Return a variable with the values of a label; all of them are chosen at first."""
    query = f"label_values(evergreen_champion, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def build() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    datasource = {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}}
    return {
        "uid": "evergreen",
        "title": "Evergreen models",
        "tags": ["evergreen"],
        "schemaVersion": 36,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-30d", "to": "now"},
        "templating": {"list": [datasource, variable("team"), variable("model")]},
        "panels": list(place(panels())),
    }


def render() -> str:
    """Return the text of the file."""
    return json.dumps(build(), indent=1) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(render())
