"""The page that a person reads before believing, or approving, a promotion.

>>> page = render(about, gates, verdict, evidence)  # doctest: +SKIP

One file of HTML: every gate with its reason, intervals against their limits, both models on the same rows, slices,
drift, serving, and whatever is missing with the problem that made it so. Bad evidence is shown as what it is.
Equal inputs give equal bytes.
"""

from evergreen.reports.gate_report import AlphaBudget, GateReportContext, render_gate_report

__all__ = ["AlphaBudget", "GateReportContext", "render_gate_report"]
