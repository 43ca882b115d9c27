"""The engines: Airflow, MLflow, Spark Connect."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from evergreen.cli.doctor.seen import Clock, Seen, Silent, Wrong
from evergreen.client.airflow import Airflow, AirflowError
from evergreen.settings import shown
from evergreen_local.services import host_of

_PARTS = {
    "metadatabase": "its database",
    "scheduler": "its scheduler",
    "dag_processor": "its DAG processor",
    "triggerer": "its triggerer",
}


def not_up() -> Seen:
    raise Wrong("is not up", "`evergreen up` starts it, or EVERGREEN_AIRFLOW names one elsewhere")


def airflow(url: str) -> Seen:
    """Airflow: all of its parts alive, of this version, lets us in, and has read every DAG file."""
    base = shown(url)
    clock = Clock()
    answer = _get(f"{base}/api/v2/monitor/health")
    ahead = clock.ahead_by_header(answer.headers.get("date"))
    health = answer.json()
    if ill := [what for part, what in _PARTS.items() if (health.get(part) or {}).get("status") != "healthy"]:
        raise Wrong(f"{', '.join(ill)}: no sign of life", "look at its log, and start it anew")
    found = _get(f"{base}/api/v2/version").json()["version"]
    _same("Airflow", found, version("apache-airflow"))
    try:
        errors = Airflow(url).import_errors()
    except AirflowError as error:
        raise Wrong(str(error), "correct EVERGREEN_AIRFLOW") from None
    if errors:
        last = (errors[0]["stack_trace"].strip().splitlines() or [""])[-1]
        raise Wrong(
            f"{len(errors)} DAG files cannot be read: {errors[0]['filename']}: {last}",
            "mend it: `airflow dags list-import-errors` tells more",
        )
    return Seen(f"Airflow {found}, all parts alive, lets us in", ahead)


def mlflow(url: str) -> Seen:
    """MLflow: of this version, answers to this name, reads its registry, and keeps artifacts."""
    clock = Clock()
    answer = _get(f"{url}/version")
    ahead = clock.ahead_by_header(answer.headers.get("date"))
    found = answer.text.strip()
    _same("MLflow", found, version("mlflow"))
    _get(f"{url}/api/2.0/mlflow/registered-models/search?max_results=1")
    # Artifacts go through the server; one that does not serve them leaves them to its clients, and answers 503.
    probe, data = f"{url}/api/2.0/mlflow-artifacts/artifacts/evergreen-doctor/probe", uuid.uuid4().hex
    try:
        put = httpx.put(probe, content=data, timeout=30, trust_env=False)
        if put.status_code == 503 and "no-serve-artifacts" in put.text:
            return Seen(f"MLflow {found}, reads its registry; artifacts do not go through it", ahead)
        kept = put.status_code == 200 and httpx.get(probe, timeout=30, trust_env=False).text == data
        httpx.delete(probe.rpartition("/")[0], timeout=30, trust_env=False)
    except httpx.HTTPError as error:
        raise Wrong(f"does not answer when it is sent an artifact: {error}", _ARTIFACTS) from None
    if not kept:
        raise Wrong(f"cannot keep an artifact: {put.status_code} {put.text[:200]}", _ARTIFACTS)
    return Seen(f"MLflow {found}, reads its registry, keeps artifacts", ahead)


_ARTIFACTS = "look at its log: its own credentials, its bucket, or its disk"


def spark(url: str, lake: Path) -> Seen:
    """Spark Connect: lets us in, is of this version, and reads and writes the same lake as we do."""
    host, port = host_of(url, 15002)
    try:
        socket.create_connection((host, port), timeout=5).close()  # its client would try for minutes
    except OSError as error:
        raise Silent(f"does not answer: {error}", "start it, or correct EVERGREEN_SPARK") from None
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    probe = lake / f".doctor-{uuid.uuid4().hex}"
    session = None
    try:
        session = SparkSession.builder.remote(url).create()
        _same("Spark", session.version, version("pyspark"))
        probe.mkdir(parents=True)
        (probe / "ours").write_text("probe\n")
        try:
            read = session.read.text(f"file://{probe}/ours").count()
            session.range(1).write.parquet(f"file://{probe}/theirs")
        except PySparkException as error:
            raise Wrong(
                f"does not see the lake as we do: {_first(error)}",
                f"mount the same volume at {lake} for both, writable, and run both as one user",
            ) from None
        if read != 1 or not list((probe / "theirs").glob("*.parquet")):
            raise Wrong(
                "writes to another folder of the same name", f"mount the same volume at {lake} for both"
            )
        try:
            shutil.rmtree(probe)
        except PermissionError:
            raise Wrong(
                "writes files that we may not remove", f"run both as one user: this one is {os.geteuid()}"
            ) from None
    except PySparkException as error:
        raise Wrong(
            f"does not let us in: {_first(error)}", "give both the same SPARK_CONNECT_AUTHENTICATE_TOKEN"
        ) from None
    finally:
        if session:
            session.stop()
        # Left behind by a session that was not made: a local one would be refused in this process from then on.
        os.environ.pop("SPARK_CONNECT_MODE_ENABLED", None)
        shutil.rmtree(probe, ignore_errors=True)
    return Seen(f"Spark {version('pyspark')}, reads and writes the lake")


def _get(url: str) -> httpx.Response:
    """A good answer of a server.

    Raises:
        Wrong: there is none.
    """
    where = f"{urlsplit(shown(url)).scheme}://{urlsplit(shown(url)).netloc}"
    try:
        answer = httpx.get(url, timeout=10, trust_env=False, follow_redirects=True)
    except httpx.HTTPError as error:
        raise Silent(f"does not answer: {error}", f"start it, or correct the address {where}") from None
    if answer.status_code == 403 and "host" in answer.text.lower():
        raise Wrong(
            f"does not answer to the name {urlsplit(url).netloc}",
            "add it, with its port, to the server's --allowed-hosts (MLFLOW_SERVER_ALLOWED_HOSTS)",
        )
    if answer.status_code in (401, 403):
        raise Wrong(f"does not let us in: {answer.status_code}", "give user and password in its address")
    if answer.is_error:
        said = " ".join(answer.text.split())[:200]
        raise Wrong(
            f"answers {answer.status_code}: {said}", "look at its log; its database may be gone or too old"
        )
    return answer


def _same(what: str, theirs: str, ours: str) -> None:
    """Versions are the same but for patches."""
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise Wrong(
            f"is {what} {theirs}, and this side is {ours}",
            "run the same version on both sides: build the images anew, then `evergreen migrate`",
        )


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
