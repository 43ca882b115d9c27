"""Reports for people: the gate report of a verdict, and the report of a backtest.

>>> page = render_gate_report(context, gates, verdict, evidence)  # doctest: +SKIP

Each is one HTML file. Evidence that is missing or invalid is named with its problem. Equal inputs give equal bytes.
Importing this package loads no plotting library, so that the terminal and the approval form can share its gate table.
"""

from evergreen.reports.gate_report import AlphaBudget, GateReportContext, render_gate_report

__all__ = ["AlphaBudget", "GateReportContext", "render_gate_report"]
