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

from evergreen.cli.doctor.seen import CheckFailedError, CheckPassed, ClockProbe, UnreachableError
from evergreen.client.airflow import AirflowClient, AirflowError
from evergreen.settings import redact_url
from evergreen_local.services import parse_host_and_port

_AIRFLOW_COMPONENTS = {
    "metadatabase": "its database",
    "scheduler": "its scheduler",
    "dag_processor": "its DAG processor",
    "triggerer": "its triggerer",
}


def report_airflow_down() -> CheckPassed:
    raise CheckFailedError("is not up", "`evergreen up` starts it, or EVERGREEN_AIRFLOW names one elsewhere")


def check_airflow(url: str) -> CheckPassed:
    """Airflow: all of its parts alive, of this version, lets us in, and has read every DAG file."""
    base = redact_url(url)
    clock = ClockProbe()
    answer = _get(f"{base}/api/v2/monitor/health")
    ahead = clock.skew_from_header(answer.headers.get("date"))
    health = answer.json()
    if ill := [
        what for part, what in _AIRFLOW_COMPONENTS.items() if (health.get(part) or {}).get("status") != "healthy"
    ]:
        raise CheckFailedError(f"{', '.join(ill)}: no sign of life", "look at its log, and start it anew")
    found = _get(f"{base}/api/v2/version").json()["version"]
    _check_same_version("Airflow", found, version("apache-airflow"))
    try:
        errors = AirflowClient(url).import_errors()
    except AirflowError as error:
        raise CheckFailedError(str(error), "correct EVERGREEN_AIRFLOW") from None
    if errors:
        last = (errors[0]["stack_trace"].strip().splitlines() or [""])[-1]
        raise CheckFailedError(
            f"{len(errors)} DAG files cannot be read: {errors[0]['filename']}: {last}",
            "mend it: `airflow dags list-import-errors` tells more",
        )
    return CheckPassed(f"Airflow {found}, all parts alive, lets us in", ahead)


def check_mlflow(url: str) -> CheckPassed:
    """MLflow: of this version, answers to this name, reads its registry, and keeps artifacts."""
    clock = ClockProbe()
    answer = _get(f"{url}/version")
    ahead = clock.skew_from_header(answer.headers.get("date"))
    found = answer.text.strip()
    _check_same_version("MLflow", found, version("mlflow"))
    _get(f"{url}/api/2.0/mlflow/registered-models/search?max_results=1")
    # Artifacts go through the server; one that does not serve them leaves them to its clients, and answers 503.
    probe, data = f"{url}/api/2.0/mlflow-artifacts/artifacts/evergreen-doctor/probe", uuid.uuid4().hex
    try:
        put = httpx.put(probe, content=data, timeout=30, trust_env=False)
        if put.status_code == 503 and "no-serve-artifacts" in put.text:
            return CheckPassed(f"MLflow {found}, reads its registry; artifacts do not go through it", ahead)
        kept = put.status_code == 200 and httpx.get(probe, timeout=30, trust_env=False).text == data
        httpx.delete(probe.rpartition("/")[0], timeout=30, trust_env=False)
    except httpx.HTTPError as error:
        raise CheckFailedError(f"does not answer when it is sent an artifact: {error}", _ARTIFACT_FIX) from None
    if not kept:
        raise CheckFailedError(f"cannot keep an artifact: {put.status_code} {put.text[:200]}", _ARTIFACT_FIX)
    return CheckPassed(f"MLflow {found}, reads its registry, keeps artifacts", ahead)


_ARTIFACT_FIX = "look at its log: its own credentials, its bucket, or its disk"


def check_spark_connect(url: str, lake: Path) -> CheckPassed:
    """Spark Connect: lets us in, is of this version, and reads and writes the same lake as we do."""
    host, port = parse_host_and_port(url, 15002)
    try:
        socket.create_connection((host, port), timeout=5).close()  # its client would try for minutes
    except OSError as error:
        raise UnreachableError(f"does not answer: {error}", "start it, or correct EVERGREEN_SPARK") from None
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    probe = lake / f".doctor-{uuid.uuid4().hex}"
    session = None
    try:
        session = SparkSession.builder.remote(url).create()
        _check_same_version("Spark", session.version, version("pyspark"))
        probe.mkdir(parents=True)
        (probe / "ours").write_text("probe\n")
        try:
            read = session.read.text(f"file://{probe}/ours").count()
            session.range(1).write.parquet(f"file://{probe}/theirs")
        except PySparkException as error:
            raise CheckFailedError(
                f"does not see the lake as we do: {_first(error)}",
                f"mount the same volume at {lake} for both, writable, and run both as one user",
            ) from None
        if read != 1 or not list((probe / "theirs").glob("*.parquet")):
            raise CheckFailedError(
                "writes to another folder of the same name", f"mount the same volume at {lake} for both"
            )
        try:
            shutil.rmtree(probe)
        except PermissionError:
            raise CheckFailedError(
                "writes files that we may not remove", f"run both as one user: this one is {os.geteuid()}"
            ) from None
    except PySparkException as error:
        raise CheckFailedError(
            f"does not let us in: {_first(error)}", "give both the same SPARK_CONNECT_AUTHENTICATE_TOKEN"
        ) from None
    finally:
        if session:
            session.stop()
        # Left behind by a session that was not made: a local one would be refused in this process from then on.
        os.environ.pop("SPARK_CONNECT_MODE_ENABLED", None)
        shutil.rmtree(probe, ignore_errors=True)
    return CheckPassed(f"Spark {version('pyspark')}, reads and writes the lake")


def _get(url: str) -> httpx.Response:
    """A good answer of a server.

    Raises:
        Wrong: there is none.
    """
    where = f"{urlsplit(redact_url(url)).scheme}://{urlsplit(redact_url(url)).netloc}"
    try:
        answer = httpx.get(url, timeout=10, trust_env=False, follow_redirects=True)
    except httpx.HTTPError as error:
        raise UnreachableError(f"does not answer: {error}", f"start it, or correct the address {where}") from None
    if answer.status_code == 403 and "host" in answer.text.lower():
        raise CheckFailedError(
            f"does not answer to the name {urlsplit(url).netloc}",
            "add it, with its port, to the server's --allowed-hosts (MLFLOW_SERVER_ALLOWED_HOSTS)",
        )
    if answer.status_code in (401, 403):
        raise CheckFailedError(f"does not let us in: {answer.status_code}", "give user and password in its address")
    if answer.is_error:
        said = " ".join(answer.text.split())[:200]
        raise CheckFailedError(
            f"answers {answer.status_code}: {said}", "look at its log; its database may be gone or too old"
        )
    return answer


def _check_same_version(product: str, server_version: str, local_version: str) -> None:
    """Versions are the same but for patches."""
    if server_version.split(".")[:2] != local_version.split(".")[:2]:
        raise CheckFailedError(
            f"is {product} {server_version}, and this side is {local_version}",
            "run the same version on both sides: build the images anew, then `evergreen migrate`",
        )


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
