"""`evergreen preview` and `evergreen check` in a notebook, with plots.

::

    from evergreen import notebook

    notebook.preview("early_bird", "2013-01-10")
    notebook.check("early_bird", "2013-01-10")

Both return an object that notebooks show as HTML, and that can be used by code: the rows and profiles of a preview, the
faults of a check. They work where the commands do: in a project's folder, or with `EVERGREEN_PROJECT`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

from evergreen.cli.check import find_model_faults
from evergreen.cli.check.locations import ModelFault
from evergreen.cli.check.period import TableSample, resolve_period, sample_features, try_period
from evergreen.settings import use_project_of_folder
from evergreen.spec.loader import load_spec

__all__ = ["FeaturePreview", "ModelCheck", "check", "preview"]

_SIGNS = {"passed": "✓", "failed": "✗", "skipped": "–"}


@dataclass(frozen=True)
class FeaturePreview:
    """The tables of one period of a model: profile and first rows of each."""

    model: str
    period: str
    tables: Sequence[TableSample]

    def _repr_html_(self) -> str:
        from evergreen.reports.page import jinja_environment
        from evergreen.reports.table_plots import MAX_PANELS, plot_columns, plot_label

        tables = []
        for sample in self.tables:
            profile = sample.profile
            left_out = [column.name for column in profile.columns if column.counts][MAX_PANELS:]
            tables.append(
                {
                    "name": profile.name,
                    "row_count": profile.row_count,
                    "headers": [f"{column.name}: {column.type}" for column in profile.columns],
                    "rows": [["–" if value is None else str(value) for value in row.values()] for row in sample.rows],
                    "plots": [plot for plot in (plot_columns(profile), plot_label(profile)) if plot],
                    "note": f"without a plot: {', '.join(left_out)}" if left_out else "",
                }
            )
        template: Any = jinja_environment().get_template("notebook.html.j2").module
        return str(template.preview(self.model, self.period, tables))


@dataclass(frozen=True)
class ModelCheck:
    """What is wrong with a model; with a period, also what each step of its trial has found, and its verdict."""

    model: str
    period: str | None
    faults: Sequence[ModelFault]
    steps: Sequence[Mapping[str, Any]] = ()
    verdict: Mapping[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Whether there are no faults."""
        return not self.faults

    def __str__(self) -> str:
        place = self.model + (f" on {self.period}" if self.period else "")
        return "\n".join([f"{place}: {len(self.faults)} faults", *(f"  - {f.to_fault()}" for f in self.faults)])

    def _repr_html_(self) -> str:
        from evergreen.gates.verdict import Verdict
        from evergreen.reports.gate_table import GATE_COLUMNS, gate_rows
        from evergreen.reports.page import jinja_environment

        faults = [(fault.to_fault().location, fault.problem, fault.fix) for fault in self.faults]
        steps = [
            (_SIGNS[step["state"]], step["step"], f"{step['seconds']:.1f}" if "seconds" in step else "", step["detail"])
            for step in self.steps
        ]
        gates = gate_rows(Verdict.model_validate(self.verdict), load_spec(self.model).gates) if self.verdict else []
        template: Any = jinja_environment().get_template("notebook.html.j2").module
        return str(template.check(self.model, self.period, faults, steps, GATE_COLUMNS, gates))


def preview(model: str, period: str | None = None, table: str | None = None, rows: int = 5) -> FeaturePreview:
    """Compute the features of one period, by default the first, without storing them; of all tables, or of one.

    Raises:
        ChecksFailedError: raw data or features have faults.
        EvergreenError: there is no such model, period or table.
    """
    _read_again()
    period = resolve_period(model, period)
    return FeaturePreview(model, period, sample_features(model, period, table, rows))


def check(model: str, period: str | None = None) -> ModelCheck:
    """Find everything wrong with a model that needs no data; with a period, and if nothing is, try the model on it.

    Raises:
        EvergreenError: there is no such period, or something failed that is no fault of the model.
    """
    _read_again()
    faults = find_model_faults(model)
    if faults or period is None:
        return ModelCheck(model, period, faults)
    period = resolve_period(model, period)
    result = try_period(model, period)
    return ModelCheck(model, period, result.faults, result.steps, result.verdict)


def _read_again() -> None:
    """Find the project of the current folder, and let its files be read as they are now: people edit them meanwhile."""
    use_project_of_folder(Path.cwd())
    invalidate_caches()
    load_spec.cache_clear()
    for module in [module for module in sys.modules if module.startswith("evergreen_models.")]:
        del sys.modules[module]
