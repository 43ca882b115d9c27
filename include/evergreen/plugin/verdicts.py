"""Serves gate reports in Airflow's web server: the target of the link "Gate report" of the task `judge`.

    GET /evergreen/<dag_id>/verdicts/<number of the ledger's entry>

Only for users who may see the runs of that DAG: without a check of its own, a plugin's route is open to everybody.
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

    app = FastAPI(title="Evergreen", docs_url=None, redoc_url=None, openapi_url=None)
    can_read_runs = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.RUN))

    @app.get("/{dag_id}/verdicts/{number}", dependencies=[can_read_runs])
    def show_gate_report(dag_id: str, number: int) -> HTMLResponse:
        from evergreen import ledger, storage
        from evergreen.errors import EvergreenError
        from evergreen.lake import datasets
        from evergreen.spec import loader

        model = dag_id.partition(".")[0]
        if model not in loader.model_names():
            raise HTTPException(404, f"no model is named {model}")
        try:
            report = datasets.lake_path(ledger.read_verdict_event(model, number).evidence["report"])
        except EvergreenError as error:
            raise HTTPException(404, str(error)) from None
        stored = storage.read_version(report)
        if stored is None:
            problem = f"the report of entry {number} is missing: {report}"
            raise HTTPException(404, f"{problem}. Clear the task judge of its run to render it again.")
        # The page has no script and fetches nothing. If a script ever got in, it must not run with Airflow's rights.
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
        return HTMLResponse(stored.data, headers={"Content-Security-Policy": policy})

    return app


class VerdictsPlugin(AirflowPlugin):
    """Registers the application in the web server."""

    name = "evergreen_verdicts"
    fastapi_apps = (
        [{"app": create_report_app(), "url_prefix": "/evergreen", "name": "Evergreen"}]
        if any(word in ("api-server", "api_server") for word in sys.argv)
        else []
    )
