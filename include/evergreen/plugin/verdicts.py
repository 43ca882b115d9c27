"""Shows the page about a verdict in Airflow's web server: where the link "Gate report" of the task `judge` leads.

    GET /evergreen/<dag_id>/verdicts/<number of the ledger's entry>

For whoever may see the runs of that DAG, and nobody else: a plugin's routes are open unless it asks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from airflow.plugins_manager import AirflowPlugin


def create_report_app() -> Any:
    """The pages as an application of their own, made only in the web server: others need not load FastAPI."""
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag
    from fastapi import Depends, FastAPI, HTTPException
    from fastapi.responses import HTMLResponse

    pages = FastAPI(title="Evergreen", docs_url=None, redoc_url=None, openapi_url=None)
    may_see = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.RUN))

    @pages.get("/{dag_id}/verdicts/{number}", dependencies=[may_see])
    def show_gate_report(dag_id: str, number: int) -> HTMLResponse:
        from evergreen import ledger
        from evergreen.errors import EvergreenError
        from evergreen.spec import loader

        name = dag_id.partition(".")[0]
        if name not in loader.model_names():
            raise HTTPException(404, f"no model is named {name}")
        try:
            page = Path(ledger.read_verdict_event(name, number).evidence["report"])
        except EvergreenError as error:
            raise HTTPException(404, str(error)) from None
        if not page.is_file():
            raise HTTPException(404, f"the report of entry {number} is gone: {page}")
        # The page holds no script and fetches nothing; should one ever get in, it must not run in Airflow's name.
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
        return HTMLResponse(page.read_text(), headers={"Content-Security-Policy": policy})

    return pages


class VerdictsPlugin(AirflowPlugin):
    name = "evergreen_verdicts"
    fastapi_apps = (
        [{"app": create_report_app(), "url_prefix": "/evergreen", "name": "Evergreen"}]
        if any(word in ("api-server", "api_server") for word in sys.argv)
        else []
    )
