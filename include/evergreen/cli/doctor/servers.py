"""Checks of servers: Airflow, MLflow, Spark Connect."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from evergreen import ledger, storage
from evergreen.cli.doctor.outcomes import CheckFailedError, CheckPassed, ClockProbe, UnreachableError
from evergreen.client.addresses import SPARK_TOKEN_VARIABLE, spark_token
from evergreen.client.airflow import AirflowClient, AirflowError
from evergreen.errors import LedgerError, first_line
from evergreen.settings import SecretUrl, parse_host_and_port, settings
from evergreen.spec.loader import model_names
from evergreen.storage import UPath

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_AIRFLOW_COMPONENTS = ("metadatabase", "scheduler", "dag_processor", "triggerer")
_SHOWN_DAGS = 5  # of those that are paused
_ARTIFACT_FIX = "see its log: its credentials, its bucket or its disk"


def report_airflow_down() -> CheckPassed:
    raise CheckFailedError("is not running", "start it by `evergreen up`, or set EVERGREEN_AIRFLOW to another one")


def check_airflow(url: SecretUrl) -> CheckPassed:
    """Check Airflow: all components healthy, same version, authentication, and no import errors."""
    base = str(url)
    clock = ClockProbe()
    response = _get(f"{base}/api/v2/monitor/health")
    clock_skew = clock.skew_from_header(response.headers.get("date"))
    health = response.json()
    unhealthy = [name for name in _AIRFLOW_COMPONENTS if (health.get(name) or {}).get("status") != "healthy"]
    if unhealthy:
        raise CheckFailedError(f"{', '.join(unhealthy)}: not healthy", "see its log, and restart it")
    server_version = _get(f"{base}/api/v2/version").json()["version"]
    _check_same_version("Airflow", server_version, version("apache-airflow"))
    try:
        client = AirflowClient(url)
        errors = client.import_errors()
    except AirflowError as error:
        raise CheckFailedError(str(error), "correct EVERGREEN_AIRFLOW") from None
    if errors:
        raise CheckFailedError(
            f"{len(errors)} DAG files cannot be imported: {client.describe_import_error(errors[0])}",
            "fix it: `airflow dags list-import-errors` shows the tracebacks",
        )
    message = f"Airflow {server_version}, all components healthy, authentication succeeded"
    if paused := client.paused_dags("evergreen"):
        message += f"; paused: {', '.join(paused[:_SHOWN_DAGS])}" + (", …" if len(paused) > _SHOWN_DAGS else "")
    return CheckPassed(message, clock_skew)


def check_mlflow(url: SecretUrl) -> CheckPassed:
    """Check MLflow: same version, accepts this host name, reads its registry, and stores artifacts."""
    login = httpx.URL(url.get_secret_value())
    auth = (login.username, login.password) if login.username else None  # httpx logs what is in a URL
    clock = ClockProbe()
    response = _get(f"{url}/version", auth)
    clock_skew = clock.skew_from_header(response.headers.get("date"))
    server_version = response.text.strip()
    _check_same_version("MLflow", server_version, version("mlflow"))
    _get(f"{url}/api/2.0/mlflow/registered-models/search?max_results=1", auth)
    _check_anchors(url, auth)
    # A server that does not proxy artifacts leaves them to its clients, and responds with 503.
    probe, data = f"{url}/api/2.0/mlflow-artifacts/artifacts/evergreen-doctor/probe", uuid.uuid4().hex
    try:
        upload = httpx.put(probe, content=data, timeout=30, trust_env=False, auth=auth)
        if upload.status_code == 503 and "no-serve-artifacts" in upload.text:
            return CheckPassed(f"MLflow {server_version}, reads its registry; does not proxy artifacts", clock_skew)
        is_stored = upload.status_code == 200 and _get(probe, auth).text == data
        httpx.delete(probe.rpartition("/")[0], timeout=30, trust_env=False, auth=auth)
    except httpx.HTTPError as error:
        raise CheckFailedError(f"does not respond to an artifact: {error}", _ARTIFACT_FIX) from None
    if not is_stored:
        raise CheckFailedError(f"cannot store an artifact: {upload.status_code} {upload.text[:200]}", _ARTIFACT_FIX)
    return CheckPassed(f"MLflow {server_version}, reads its registry, stores artifacts", clock_skew)


def check_spark() -> CheckPassed:
    """Check a Spark that this process starts: that it, or its executors, and tasks can exchange files."""
    from evergreen.features.spark import spark_session

    with spark_session() as session:
        _check_exchange(session)
        return CheckPassed(f"Spark {session.version}, exchanges files with tasks")


def check_spark_connect(address: SecretUrl, folder: UPath | Path) -> CheckPassed:
    """Check Spark Connect: authentication, same version, and that it reads and writes the same folder, or the store."""
    url = address.get_secret_value()
    try:
        socket.create_connection(parse_host_and_port(url, 15002), timeout=5).close()  # its client would try for minutes
    except OSError as error:
        raise UnreachableError(f"does not respond: {error}", "start it, or correct EVERGREEN_SPARK") from None
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    probe = folder / f".doctor-{uuid.uuid4().hex}" if isinstance(folder, Path) else None
    session = None
    if token := spark_token(url):
        os.environ[SPARK_TOKEN_VARIABLE] = token  # Spark's client reads it there only, unless the server has TLS
    try:
        session = SparkSession.builder.remote(url).create()
        _check_same_version("Spark", session.version, version("pyspark"))
        if probe is None:
            _check_exchange(session)
            return CheckPassed(f"Spark {version('pyspark')}, exchanges files with tasks")
        probe.mkdir(parents=True)
        (probe / "local").write_text("probe\n")
        try:
            rows = session.read.text(f"file://{probe}/local").count()
            session.range(1).write.parquet(f"file://{probe}/remote")
        except PySparkException as error:
            raise CheckFailedError(
                f"cannot access the lake: {first_line(error)[:300]}",
                f"mount the same volume at {folder} on both sides, writable, and run both as the same user",
            ) from None
        if rows != 1 or not list((probe / "remote").glob("*.parquet")):
            raise CheckFailedError(
                "writes to another folder of the same name", f"mount the same volume at {folder} on both sides"
            )
        try:
            shutil.rmtree(probe)
        except PermissionError:
            raise CheckFailedError(
                "writes files that this user may not remove", f"run both as the same user: this one is {os.geteuid()}"
            ) from None
    except PySparkException as error:
        raise CheckFailedError(
            f"authentication failed: {first_line(error)[:300]}",
            f"set the same {SPARK_TOKEN_VARIABLE} on both sides",
        ) from None
    finally:
        if session:
            session.stop()
        # A session that could not be created leaves it behind; this process could then create no local session.
        os.environ.pop("SPARK_CONNECT_MODE_ENABLED", None)
        if probe:
            shutil.rmtree(probe, ignore_errors=True)
    return CheckPassed(f"Spark {version('pyspark')}, reads and writes the lake")


def _check_exchange(session: SparkSession) -> None:
    """Let Spark read what this process writes, and this process read what Spark writes, as builds do."""
    import pyarrow.parquet as pq

    from evergreen.features.spark import explain_missing_client, write_parquet
    from evergreen.lake.exchange import open_exchange

    cache = settings().cache  # a folder that Spark shares, if there is no exchange
    cache.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".doctor-", dir=cache) as folder,
        open_exchange(Path(folder, "job")) as exchange,
    ):
        location = exchange.folder.parent
        unshared_fix = "mount it at the same path on all machines, or set EVERGREEN_SPARK_EXCHANGE to what all reach"
        try:
            storage.put(exchange.folder / "task.txt", b"probe\n")
        except OSError as error:
            problem = f"this process cannot write to {location}: {first_line(error)[:300]}"
            raise CheckFailedError(problem, "allow it, or correct EVERGREEN_SPARK_EXCHANGE") from None
        try:
            lines = session.read.text(exchange.uri("task.txt")).count()
            write_parquet(
                session.range(2).selectExpr("id", "'2013-01-01T00:00Z' AS period"), exchange.uri("0"), ["period"]
            )
        except Exception as error:
            if fault := explain_missing_client(error):
                raise CheckFailedError(fault.problem, fault.fix) from None
            problem = f"Spark cannot read and write {location}: {first_line(error)[:300]}"
            fix = (
                "give Spark the address of the store and the right to write there, or correct EVERGREEN_SPARK_EXCHANGE"
            )
            raise CheckFailedError(problem, unshared_fix if isinstance(location, Path) else fix) from None
        with exchange.open_parts(exchange.list_parts("0")) as parts:
            rows = sum(pq.read_metadata(part).num_rows for part in parts)
        if (lines, rows) != (1, 2):
            raise CheckFailedError(f"Spark and this process do not see the same files in {location}", unshared_fix)


def _check_anchors(url: SecretUrl, auth: tuple[str, str] | None) -> None:
    """Compare the ledger of each registered model with its anchor."""
    from evergreen.registry import anchors

    for name in model_names():
        address = f"{url}/api/2.0/mlflow/registered-models/get"
        response = httpx.get(address, params={"name": name}, timeout=10, trust_env=False, auth=auth)
        if response.status_code == 404:
            continue
        tags = response.raise_for_status().json()["registered_model"].get("tags", [])
        anchor = next((tag["value"] for tag in tags if tag["key"] == anchors.ANCHOR_TAG), "")
        try:
            anchors.check_anchor_tag(name, anchor, ledger.read_state(name))
        except LedgerError as error:
            problem, _, fix = str(error).partition("; ")
            raise CheckFailedError(problem, fix or "restore the ledger from a copy") from None


def _get(url: str, auth: tuple[str, str] | None = None) -> httpx.Response:
    """Return a successful response.

    Raises:
        CheckFailedError: There is none.
    """
    parts = urlsplit(url)
    try:
        response = httpx.get(url, timeout=10, trust_env=False, follow_redirects=True, auth=auth)
    except httpx.HTTPError as error:
        fix = f"start it, or correct the address {parts.scheme}://{parts.netloc}"
        raise UnreachableError(f"does not respond: {error}", fix) from None
    if response.status_code == 403 and "host" in response.text.lower():
        raise CheckFailedError(
            f"rejects the host name {parts.netloc}",
            "add it, with its port, to the server's --allowed-hosts (MLFLOW_SERVER_ALLOWED_HOSTS)",
        )
    if response.status_code in (401, 403):
        raise CheckFailedError(
            f"authentication failed: status {response.status_code}", "set user and password in its URL"
        )
    if response.is_error:
        raise CheckFailedError(
            f"status {response.status_code}: {' '.join(response.text.split())[:200]}",
            "see its log; its database may be missing or outdated",
        )
    return response


def _check_same_version(product: str, server_version: str, local_version: str) -> None:
    """Check that major and minor versions are equal."""
    if server_version.split(".")[:2] != local_version.split(".")[:2]:
        raise CheckFailedError(
            f"is {product} {server_version}, but this client is {local_version}",
            "run the same version on both sides: rebuild the images, then `evergreen migrate`",
        )
