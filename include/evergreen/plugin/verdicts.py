"""Serves reports in Airflow's web server.

They are the targets of the links "Gate report" of the task `judge`, and "Monitoring report" of the task `watch`.

    GET /evergreen/<dag_id>/verdicts/<number of the ledger's entry>
    GET /evergreen/<dag_id>/monitoring                                  of the champion

and, in the same application, since Airflow mounts one under a prefix, the metrics (`evergreen.plugin.metrics`).

Reports are only for users who may see the runs of that DAG: without a check of its own, a plugin's route is open to
everybody.
"""

from __future__ import annotations

import sys
from typing import Any

from airflow.plugins_manager import AirflowPlugin


def create_report_app() -> Any:
    """Return the FastAPI application. Only the web server needs it; other components do not load FastAPI."""
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag
    from fastapi import Depends, FastAPI, HTTPException
    from fastapi.responses import HTMLResponse

    from evergreen.plugin.metrics import add_metrics_route

    app = FastAPI(title="Evergreen", docs_url=None, redoc_url=None, openapi_url=None)
    add_metrics_route(app)
    can_read_runs = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.RUN))

    def find_model(dag_id: str) -> str:
        from evergreen.spec import loader

        model = dag_id.partition(".")[0]
        if model not in loader.model_names():
            raise HTTPException(404, f"no model is named {model}")
        return model

    def create_response(page: bytes) -> HTMLResponse:
        # The page has no script and fetches nothing. If a script ever got in, it must not run with Airflow's rights.
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/{dag_id}/verdicts/{number}", dependencies=[can_read_runs])
    def show_gate_report(dag_id: str, number: int) -> HTMLResponse:
        from evergreen import ledger, storage
        from evergreen.errors import EvergreenError
        from evergreen.lake import datasets

        model = find_model(dag_id)
        try:
            report = datasets.lake_path(ledger.read_verdict_event(model, number).evidence["report"])
        except EvergreenError as error:
            raise HTTPException(404, str(error)) from None
        stored = storage.read_version(report)
        if stored is None:
            problem = f"the report of entry {number} is missing: {report}"
            raise HTTPException(404, f"{problem}. Clear the task judge of its run to render it again.")
        return create_response(stored.data)

    @app.get("/{dag_id}/monitoring", dependencies=[can_read_runs])
    def show_monitoring_report(dag_id: str) -> HTMLResponse:
        from evergreen import ledger
        from evergreen.errors import EvergreenError
        from evergreen.monitoring.record import read_report

        model = find_model(dag_id)
        try:
            champion = ledger.read_state(model).champion_content
            report = read_report(model, champion) if champion else None
        except EvergreenError as error:
            raise HTTPException(404, str(error)) from None
        if report is None:
            missing = "there is no report on its data: run its monitor DAG" if champion else "it has no champion"
            raise HTTPException(404, f"{model}: {missing}")
        return create_response(report)

    return app


class VerdictsPlugin(AirflowPlugin):
    """Registers the application in the web server."""

    name = "evergreen_verdicts"
    fastapi_apps = (
        [{"app": create_report_app(), "url_prefix": "/evergreen", "name": "Evergreen"}]
        if any(word in ("api-server", "api_server") for word in sys.argv)
        else []
    )
