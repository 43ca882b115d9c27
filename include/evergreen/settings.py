"""Settings: the only place that reads `EVERGREEN_*` environment variables."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    Secret,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as PydanticSettingsError

from evergreen.errors import Fault, SettingsError
from evergreen.storage import LAKE_SCHEMES, UPath, is_local, storage_path

REPOSITORY = Path(__file__).resolve().parents[2]
"""The checkout that this package runs from. Where it is installed, there is none, and nothing reads this."""
IS_CHECKOUT = Path(__file__).resolve().parents[1] == REPOSITORY / "include"
ENV_PREFIX = "EVERGREEN_"
STACK_VARIABLE = "EVERGREEN_STACK"
"""Environment variable of all processes of a local stack: the home folder that they work for. Not a setting."""
LOOPBACK_HOST = "127.0.0.1"

_SHOWN = "must have no user or password, because it is shown: stores have variables of their own"
_FILE_SCHEMES = ("", "file", "sqlite")
# Settings of Spark that hold a secret, and not the name or the file of one; and those that results depend on.
_SPARK_SECRET = re.compile(r"secret|passw|token|(access|account|private)[._]?key", re.IGNORECASE)
_SPARK_SECRET_NAME = re.compile(r"(file|path)$|secretKeyRef\.|\.kubernetes\.\w+\.secrets\.", re.IGNORECASE)
_SPARK_RESULTS = re.compile(
    r"spark\.sql\.(ansi\.|caseSensitive|legacy\.|session\.|timestampType|storeAssignmentPolicy|mapKeyDedupPolicy"
    r"|parquet\.outputTimestampType)"
)
_SPARK_OWN = {"spark.master": "set EVERGREEN_SPARK instead", "spark.app.name": "it is evergreen"}
_SECRET_PARAMETER = re.compile(r"([?&;/][^=&;/?]*(?:password|passwd|pwd|token|secret)[^=&;/?]*=)[^&;]*", re.IGNORECASE)


class SecretUrl(Secret[str]):
    """A URL that may hold a password. Every text of it is without user and password; `get_secret_value` returns it."""

    def _display(self) -> str:
        return redact_url(self.get_secret_value())


def _default_project() -> Path:
    """Return the project that this process runs in. Without one the other settings have no defaults."""
    project = REPOSITORY if IS_CHECKOUT else find_project(Path.cwd())
    if project is None:
        problem = f"is not set, and {Path.cwd()} is in no project: no folder with models and feature_repo is above it"
        fault = Fault(variable_name("project"), problem, "set it to the project's folder, or run in that folder")
        raise SettingsError("the environment", [fault])
    return project


def _default_model_folders(fields: Mapping[str, Any]) -> tuple[Path, ...]:
    in_checkout = IS_CHECKOUT and fields["project"] == REPOSITORY
    return (fields["project"] / ("include/evergreen_models" if in_checkout else "models"),)


def _default_trainer(fields: Mapping[str, Any]) -> Path:
    python: Path = fields["project"] / ".trainer" / "bin" / "python"
    return python if python.exists() else Path(sys.executable)


def _open_lake(lake: Any) -> Any:
    scheme, separator, _ = str(lake).partition("://")
    if separator and scheme != "file" and scheme not in LAKE_SCHEMES:
        raise ValueError(f"{scheme}:// is not supported: use a folder, s3://, gs:// or az://")
    if separator and redact_url(str(lake)) != str(lake):
        raise ValueError(_SHOWN)
    return storage_path(str(lake))


def _open_exchange(place: Any) -> Any:
    return place and _open_lake(place)


def _default_exchange(fields: Mapping[str, Any]) -> UPath | None:
    """Return a prefix of a lake in an object store, for a Spark that is not in the task's process."""
    in_process = fields["spark"].get_secret_value().startswith("local")
    return None if in_process or is_local(fields["lake"]) else fields["lake"] / "_spark"


class PodSettings(BaseModel):
    """Training in Kubernetes pods: `EVERGREEN_PODS__IMAGE` and so on. See docs/guides/kubernetes.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str | None = Field(None, description="image of the trainer, preferably by digest")
    namespace: str = Field("default", description="namespace of the pods; one for each installation of Evergreen")
    connection: str | None = Field(
        None, description="Airflow connection of the cluster; default: the cluster this runs in, or KUBECONFIG"
    )
    deferrable: bool = Field(True, description="wait for the pod in the triggerer, without a worker slot")
    startup_timeout_minutes: float = Field(30, gt=0, description="time for a pod to start, including a new GPU node")
    logging_interval_seconds: int = Field(15, ge=1, description="how often a waiting task copies the pod's log")
    secret: str | None = Field(None, description="Secret whose keys become variables: credentials of the object store")
    template: Path | None = Field(None, description="YAML file of a pod to extend: volumes, affinity")
    service_account: str | None = Field(None, description="service account of the pods, for a cloud identity")
    image_pull_secret: str | None = Field(None, description="Secret with the login of the image registry")
    spot_tolerations: tuple[Mapping[str, Any], ...] = Field((), description="tolerations for the taints of spot nodes")
    spot_node_selector: Mapping[str, str] = Field(default_factory=dict, description="labels of spot nodes")
    gpu_type_label: str = Field("nvidia.com/gpu.product", description="node label with the type of GPU")


class RetentionSettings(BaseModel):
    """What maintenance removes: `EVERGREEN_RETENTION__LEFTOVERS_DAYS` and so on. By default nothing.

    See docs/guides/maintenance.md.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    leftovers_days: float | None = Field(
        None,
        ge=1,
        description="days after which files go that no manifest names, and staged ones; longer than any task runs",
    )
    verdict_days: float = Field(
        90, ge=1, description="what verdicts of this many days were made from stays, whatever its own age"
    )
    features_days: float | None = Field(
        None, description="age at which periods of features expire that are older than what any retrain reads"
    )
    training_sets_days: float | None = Field(None, description="age at which training sets expire")
    looks_days: float | None = Field(None, description="age at which the rows of looks at challengers expire")
    models_days: float | None = Field(None, description="age at which candidates expire")
    evaluations_days: float | None = Field(
        None, description="age at which evaluations expire that no verdict in the ledger names"
    )
    checks_days: float | None = Field(None, description="age at which reports about raw files expire")
    declared_days: float | None = Field(None, description="age at which copies of raw data expire")
    predictions_days: float | None = Field(
        None, description="age at which the predictions of periods expire; nothing makes the same ones again"
    )
    jobs_days: float | None = Field(
        None, description="age at which checkpoints and output of training jobs go; what they cost stays"
    )
    cold_days: float | None = Field(
        None, description="age at which files of partitions get the storage class `cold_storage_class`; only in S3"
    )
    cold_storage_class: Literal["STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"] | None = Field(
        None, description="storage class of S3 for what is older than `cold_days`: one that is read at once"
    )

    def expiry_days(self, name: str) -> float | None:
        """Return the age at which what is called `name` expires, such as `training_sets`; None: never."""
        days: float | None = getattr(self, f"{name}_days")
        return days

    def _ages(self) -> dict[str, float]:
        no_ages = ("leftovers_days", "verdict_days", "cold_storage_class")
        return {name: value for name, value in self if name not in no_ages and value}

    @model_validator(mode="after")
    def _check_leftovers(self) -> Self:
        ages = self._ages()
        if (self.cold_days is None) != (self.cold_storage_class is None):
            raise ValueError("cold_days and cold_storage_class belong together: set both, or none")
        if ages and self.leftovers_days is None:
            raise ValueError(f"{next(iter(ages))} is set, so set leftovers_days too: files go by that")
        for name, value in ages.items():
            if value < (self.leftovers_days or 0):
                raise ValueError(f"{name} is {value:g}, less than leftovers_days: raise it, tasks may still be running")
        return self


NotificationEvent = Literal[
    "promoted", "held_back", "waiting_for_approval", "alarm", "rolled_back", "lost", "late", "attempt_lost"
]
"""What a notification is about: see docs/guides/notifications.md."""


class NotificationRoute(BaseModel):
    """One receiver of notifications: `EVERGREEN_NOTIFICATIONS__ROUTES__<NAME>`, as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    notifier: str = Field(
        "evergreen.orchestration.notifiers.WebhookNotifier",
        pattern=r"^\w+(\.\w+)+$",
        description="import path of a notifier class of Airflow: an own one, or that of a provider which you install",
    )
    arguments: Mapping[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="keyword arguments of that class, templates of Jinja with `notification`; secrets belong into an "
        "Airflow connection",
    )
    teams: tuple[str, ...] = Field((), description="owners whose models it is about; default: all")
    events: tuple[NotificationEvent, ...] = Field((), description="what it is told; default: everything")


def _parse_route(route: Any) -> Any:
    try:
        return json.loads(route) if isinstance(route, str) else route
    except ValueError as error:
        raise ValueError(f"a route is JSON, and this is none: {error}") from None


class NotificationSettings(BaseModel):
    """Who is told what happens to models: `EVERGREEN_NOTIFICATIONS__ROUTES__<NAME>` and so on. By default nobody.

    See docs/guides/notifications.md.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    routes: Mapping[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")],
        Annotated[NotificationRoute, BeforeValidator(_parse_route)],
    ] = Field(
        default_factory=dict, description="receivers by name, each of them JSON with the fields of the table below"
    )
    schedule: str = Field("*/5 * * * *", description="when to look for what is new, and to send it: cron, UTC")
    give_up_days: float = Field(3, gt=0, description="for how long a notification is tried before it is given up")

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, schedule: str) -> str:
        from croniter import croniter  # here: only a schedule that is set is checked

        if len(schedule.split()) != 5 or not croniter.is_valid(schedule):
            raise ValueError(f"{schedule!r} is no cron expression such as */5 * * * *")
        return schedule


class Settings(BaseSettings):
    """Addresses and options of a deployment. The defaults need no server."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,  # a compose file or a chart passes an unset value as an empty string
        hide_input_in_errors=True,  # some are URLs with a password
        frozen=True,
        extra="forbid",
    )

    project: Path = Field(
        default_factory=_default_project,
        description="your repository: other settings default to `models`, `feature_repo` and `trainer` in it; default: "
        "the folder that the process runs in, or the nearest one above it, with `models` and a Feast repository; in a "
        "checkout of Evergreen, the checkout",
    )
    models: Annotated[tuple[Path, ...], NoDecode] = Field(
        default_factory=_default_model_folders,
        description="folders that contain model folders, separated by `:`",
    )
    home: Path = Field(
        default_factory=lambda data: data["project"] / ".evergreen",
        description="folder of everything that is stored locally",
    )
    lake: Annotated[InstanceOf[UPath], BeforeValidator(_open_lake)] = Field(
        default_factory=lambda data: storage_path(f"{data['home']}/lake"),
        description="root of the lake: a folder that all workers mount, or an object store URI",
    )
    cache: Path = Field(
        default_factory=lambda data: data["lake"] if is_local(data["lake"]) else data["home"] / "cache",
        description="folder of what can be made again: hashes of raw files, and copies of what is in a lake in an "
        "object store; default: the lake, or, if that is in an object store, `cache` in the home",
    )
    tables: Literal["delta"] | None = Field(
        None,
        description="open table format in which other programs read published features, training sets and verdicts, "
        "too; `delta` needs "
        "`pip install 'evergreen[delta]'`; default: none",
    )
    raw: str = Field(
        default_factory=lambda data: f"{data['lake']}/raw",
        description="folder or object store URI that raw files are delivered to",
    )
    serving_logs: str = Field(
        default_factory=lambda data: f"{data['lake']}/serving_logs",
        description="folder or object store URI that servers write their [logs](serving-logs.md) to",
    )
    connections: Mapping[str, SecretUrl] = Field(
        default_factory=dict,
        description="databases that sources query, and catalogs of their tables: `EVERGREEN_CONNECTIONS__<NAME>`, a "
        "URL of SQLAlchemy, such as postgresql+psycopg://user:password@host/database, or duckdb:///file",
    )
    ledger: str = Field(
        default_factory=lambda data: f"{data['home']}/ledger",
        description="folder or object store URI of the ledger: all verdicts and changes of champions",
    )
    airflow: SecretUrl | None = Field(
        None, description="URL of an Airflow that `evergreen up` did not start: http://user:password@host:port"
    )
    airflow_ui: str | None = Field(None, description="URL of that Airflow's UI, if it differs")
    spark: SecretUrl = Field(
        SecretUrl("local[2]"), description="Spark master, or sc://host:port of a Spark Connect server"
    )
    spark_conf: Mapping[str, str] = Field(
        default_factory=dict,
        description="settings of Spark, as JSON: packages, executors, memory, the image of executors in Kubernetes; "
        "no secrets. A Spark Connect server has its own",
    )
    spark_exchange: Annotated[InstanceOf[UPath] | None, BeforeValidator(_open_exchange)] = Field(
        default_factory=_default_exchange,
        description="folder or object store URI in which tasks and Spark exchange files; default: `_spark` in a lake "
        "in an object store if Spark is not in the task's process; else none: Spark sees the files of tasks",
    )
    max_days_per_run: int = Field(
        31,
        ge=1,
        description="maximum days of features that one run builds in one Spark job, or weeks of weekly ones: bounds "
        "its memory",
    )
    exact_rows: int = Field(
        1_000_000,
        ge=1,
        description="of a holdout with more rows, gates get sums and counts in bins, not rows in memory: AUC is known "
        "to within about 10⁻⁵ then, and functions of yours that take all rows are not computed",
    )
    mlflow: SecretUrl = Field(
        default_factory=lambda data: SecretUrl(f"sqlite:///{data['home']}/mlflow.db"),
        description="MLflow tracking URI",
    )
    mlflow_ui: str | None = Field(None, description="URL of the MLflow UI, if it differs")
    feature_repo: Path = Field(
        default_factory=lambda data: data["project"] / "feature_repo", description="folder of the Feast repository"
    )
    feast_registry: SecretUrl = Field(
        default_factory=lambda data: SecretUrl(f"sqlite:///{data['home']}/feast-registry.db?timeout=60"),
        description="SQLAlchemy URL of the database with Feast's registry",
    )
    online_store: SecretUrl = Field(
        default_factory=lambda data: SecretUrl(f"{data['home']}/online"),
        description="folder of SQLite files of the online store, or redis://user:password@host:port/db, or rediss://",
    )
    training_set_engine: Literal["duckdb", "spark"] | Annotated[int, Field(gt=0)] = Field(
        "duckdb",
        description="what joins training sets: `duckdb` in the task; `spark`, where `EVERGREEN_SPARK` is; or a number "
        "of rows of examples and features from which on it is Spark; the training set is the same",
    )
    duckdb_memory: str = Field(
        "512MB",
        pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$",
        description="memory that DuckDB takes to join a training set; more is written to `duckdb_scratch`",
    )
    duckdb_scratch: Path | None = Field(
        None, description="folder on a local disk for that, with room for several times a training set; default: TMPDIR"
    )
    training_backend: Literal["process", "pod"] = Field("process", description="where models are trained")
    jobs: str = Field(
        default_factory=lambda data: f"{data['home']}/jobs",
        description="folder or object store URI of training jobs, their checkpoints and results",
    )
    trainer: Path = Field(
        default_factory=_default_trainer,
        description="Python that trains in a process; default: that of `make trainer`, else this one, without PyTorch",
    )
    trainer_requirements: Path = Field(
        default_factory=lambda data: data["project"] / "trainer" / "requirements.txt",
        description="lock file of the trainer's packages; versions of `training_libraries` are read from it",
    )
    metrics_token: Path | None = Field(
        None,
        description="file with the token that Prometheus sends to `/evergreen/metrics`, of 16 characters or more; "
        "default: nobody reads metrics",
    )
    prices: Path | None = Field(None, description="TOML file with prices of CPUs, memory and GPUs")
    pods: PodSettings = PodSettings()
    retention: RetentionSettings = RetentionSettings()
    notifications: NotificationSettings = NotificationSettings()
    signing_key: Path | None = Field(
        None, description="file with the private key (PEM, EC P-256) that signs versions when they are registered"
    )
    signing_passphrase: Path | None = Field(None, description="file with the passphrase of `signing_key`")
    signing_public_key: Path | None = Field(
        None,
        description="file with the trusted public keys; if set, versions not signed by one of them are neither scored "
        "nor promoted",
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, folders: Any) -> Any:
        return folders.split(os.pathsep) if isinstance(folders, str) else folders

    @field_validator("models")
    @classmethod
    def _check_models_are_folders(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        if missing := [str(folder) for folder in folders if not folder.is_dir()]:
            raise ValueError(f"{', '.join(missing)} is no folder: name the folder that has the model folders in it")
        return tuple(folder.resolve() for folder in folders)

    @field_validator("spark_conf", mode="before")
    @classmethod
    def _write_as_spark_does(cls, conf: Any) -> Any:
        """Let JSON's numbers and booleans be what Spark reads."""
        if not isinstance(conf, Mapping):
            return conf
        return {
            key: str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int) else value
            for key, value in conf.items()
        }

    @field_validator("spark_conf")
    @classmethod
    def _check_spark_conf(cls, conf: Mapping[str, str]) -> Mapping[str, str]:
        for key in conf:
            if not key.startswith("spark."):
                raise ValueError(f"{key} is no setting of Spark: its name begins with `spark.`")
            if fix := _SPARK_OWN.get(key):
                raise ValueError(f"{key} cannot be set here: {fix}")
            if _SPARK_RESULTS.match(key):
                raise ValueError(f"{key} changes results, and fingerprints do not know it: say it in features.py")
            if _SPARK_SECRET.search(key) and not _SPARK_SECRET_NAME.search(key):
                raise ValueError(
                    f"{key} holds a secret, which everybody would see on the command line of the JVM: leave it to the "
                    "variables of the store (AWS_…), or to a spark-defaults.conf that SPARK_CONF_DIR names"
                )
        return conf

    @field_validator("airflow", "spark", "mlflow", "feast_registry", "online_store")
    @classmethod
    def _check_password_is_encoded(cls, url: SecretUrl | None) -> SecretUrl | None:
        """Refuse a password that ends the URL's host early: it could not be told from it, and left out of messages."""
        text = url.get_secret_value() if url else ""
        if "://" in text:
            problem = "its user or password has one of / ? # @ [ ] in it: write it percent-encoded (%2F for /)"
            try:
                parts = urlsplit(text)
                _ = parts.port  # checked when it is read
            except ValueError:
                raise ValueError(problem) from None
            rest = "" if parts.scheme in _FILE_SCHEMES else parts.path + parts.query + parts.fragment
            if "@" in rest or parts.netloc.count("@") > 1:
                raise ValueError(problem)
        return url

    @field_validator("airflow_ui", "mlflow_ui", "raw", "serving_logs", "ledger", "jobs")
    @classmethod
    def _check_has_no_password(cls, url: str | None) -> str | None:
        if url and redact_url(url) != url:
            raise ValueError(_SHOWN)
        return url

    @field_validator("online_store")
    @classmethod
    def _check_online_store_scheme(cls, url: SecretUrl) -> SecretUrl:
        scheme, separator, _ = url.get_secret_value().partition("://")
        if separator and scheme not in ("redis", "rediss"):
            raise ValueError(f"{scheme}:// is not supported: use redis://, rediss://, or a folder for SQLite files")
        return url

    @model_validator(mode="after")
    def _check_signing_keys(self) -> Self:
        if self.signing_key and not self.signing_public_key:
            raise ValueError("signing_key is set, so set signing_public_key too: otherwise nothing checks signatures")
        if self.signing_passphrase and not self.signing_key:
            raise ValueError("signing_passphrase is set without signing_key")
        return self


@cache
def settings() -> Settings:
    """Return the settings of this process, which are read once.

    Raises:
        SettingsError: Variables are invalid; names all of them.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = [
            Fault(variable_name(*problem["loc"] or "*"), problem["msg"].removeprefix("Value error, "))
            for problem in error.errors(include_url=False, include_input=False)
            if problem["type"] != "default_factory_not_called"  # a consequence of another one
        ]
    except KeyError as error:
        # Some versions of pydantic call a default that depends on another field also when that one is missing.
        faults = [Fault(variable_name(str(error.args[0])), "Field required")]
    except PydanticSettingsError as error:
        faults = [Fault(variable_name("*"), f"{error}: {error.__cause__}", "structured settings are JSON")]
    raise SettingsError("the environment", faults)


def use_project_of_folder(folder: Path) -> None:
    """Use the project that contains `folder`, if EVERGREEN_PROJECT names none, also where a checkout is installed.

    Processes that this one starts find it, too.
    """
    variable = variable_name("project")
    if not os.environ.get(variable) and (project := find_project(folder)):
        os.environ[variable] = str(project)


def is_outside_of_checkout(folder: Path) -> bool:
    """Return whether the project is a checkout of Evergreen only because nothing names another, not even `folder`."""
    is_named = bool(os.environ.get(variable_name("project")))
    return IS_CHECKOUT and not is_named and not folder.resolve().is_relative_to(REPOSITORY)


def find_project(folder: Path) -> Path | None:
    """Return the project that contains `folder`: the nearest folder with models and a Feast repository, or None."""
    for place in (folder, *folder.parents):
        if (place / "feature_repo" / "feature_store.yaml").is_file() and (place / "models").is_dir():
            return place
    return None


def variable_name(*path: str | int) -> str:
    """Return the environment variable of the setting at `path`, such as `("pods", "image")`."""
    return ENV_PREFIX + "__".join(str(part).upper() for part in path)


def redact_url(url: str) -> str:
    """Return `url` without user and password, and with `***` for the value of a parameter that holds one."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    end = re.search(r"[/?#]|$", rest)
    assert end
    netloc = rest[: end.start()].rpartition("@")[2]
    return scheme + separator + netloc + _SECRET_PARAMETER.sub(r"\1***", rest[end.start() :])


def parse_host_and_port(url: str, default_port: int = 0) -> tuple[str, int]:
    """Return the host and the port of `url`; `default_port` if it has none."""
    parts = urlsplit(url)
    return parts.hostname or LOOPBACK_HOST, parts.port or default_port
