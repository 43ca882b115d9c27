"""Where the engines are: one typed object, read from `EVERGREEN_*` variables in this one place."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableError

from evergreen.errors import Fault, SettingsError

REPOSITORY = Path(__file__).resolve().parents[2]
ENV_PREFIX = "EVERGREEN_"
_TRAINER = REPOSITORY / ".trainer" / "bin" / "python"


class PodSettings(BaseModel):
    """The cluster that trains: `EVERGREEN_PODS__IMAGE` and so on. See docs/kubernetes.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str | None = Field(None, description="the trainer's image, best by digest")
    namespace: str = "default"
    connection: str | None = Field(
        None, description="Airflow connection of the cluster; none: the cluster this runs in, or KUBECONFIG"
    )
    deferrable: bool = Field(True, description="wait for the pod in the triggerer, without a worker")
    startup_timeout_minutes: float = Field(30, gt=0, description="what a new GPU node may take to be there")
    logging_interval_seconds: int = Field(15, ge=1, description="a waiting task shows the pod's log so often")
    secret: str | None = Field(None, description="a Secret whose keys become variables: credentials of the store")
    template: Path | None = Field(None, description="a pod in YAML that the rest is added to: volumes, affinity")
    service_account: str | None = None
    image_pull_secret: str | None = None
    spot_tolerations: tuple[Mapping[str, Any], ...] = Field((), description="what spot nodes are tainted with")
    spot_node_selector: Mapping[str, str] = Field(default_factory=dict, description="labels of spot nodes")
    gpu_type_label: str = Field("nvidia.com/gpu.product", description="node label that tells the kind of GPU")


class Settings(BaseSettings):
    """The embedded defaults need nothing but this machine; every field is an engine that can be swapped."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,  # what a compose file or a chart has no value for arrives as an empty string
        hide_input_in_errors=True,  # several are addresses with a password in them
        frozen=True,
        extra="forbid",
    )

    home: Path = Field(REPOSITORY / ".evergreen", description="folder of everything a run makes")
    lake: Path = Field(default_factory=lambda data: data["home"] / "lake", description="root of the lake")
    ledger: str = Field(
        default_factory=lambda data: f"{data['home']}/ledger",
        description="folder, or URI of an object store, of the record of every verdict and change of champion",
    )
    airflow: str | None = Field(None, description="http://user:password@host:port of an Airflow that is run elsewhere")
    airflow_ui: str | None = Field(None, description="where people see that Airflow, if not there")
    spark: str = Field("local[2]", description="a Spark master, or sc://host:port of a Spark Connect server")
    max_days_per_run: int = Field(
        31,
        ge=1,
        description="days of features that one run makes at most, in one Spark job: bounds its memory",
    )
    mlflow: str = Field(
        default_factory=lambda data: f"sqlite:///{data['home']}/mlflow.db", description="MLflow tracking URI"
    )
    mlflow_ui: str | None = Field(None, description="where people see that MLflow, if not there")
    feature_repo: Path = Field(REPOSITORY / "feature_repo", description="folder of the Feast repository")
    feast_registry: str = Field(
        default_factory=lambda data: f"sqlite:///{data['home']}/feast-registry.db",
        description="SQLAlchemy URL of Feast's registry: its file registry loses racing commits",
    )
    online_store: str = Field(
        default_factory=lambda data: f"{data['home']}/online.db",
        description="SQLite file of the online store, or redis://user:password@host:port/db, rediss:// with TLS",
    )
    offline_store: Literal["asof", "spark"] = Field(
        "asof", description="point-in-time joins by DuckDB in this process, or by Spark"
    )
    training_backend: Literal["process", "pod"] = Field("process", description="where a model is trained")
    jobs: str = Field(
        default_factory=lambda data: f"{data['home']}/jobs",
        description="folder, or URI of an object store, of training jobs with their checkpoints and results",
    )
    trainer: Path = Field(
        default_factory=lambda: _TRAINER if _TRAINER.exists() else Path(sys.executable),
        description="the Python that trains in a process: that of `make trainer`, or else this one, which has no torch",
    )
    prices: Path | None = Field(None, description="TOML file with the prices of CPUs, memory and GPUs")
    pods: PodSettings = PodSettings()
    signing_key: Path | None = Field(
        None,
        description="file with the private key (PEM, EC P-256) that signs versions when they are registered",
    )
    signing_passphrase: Path | None = Field(None, description="file with the passphrase of `signing_key`")
    signing_public_key: Path | None = Field(
        None,
        description="file with the public keys that are trusted; if set, a version without a signature by one of "
        "them is neither scored nor promoted",
    )

    @field_validator("lake", mode="before")
    @classmethod
    def _check_lake_is_local(cls, lake: Any) -> Any:
        if "://" in str(lake):
            raise ValueError("is no folder: the lake publishes by links and renames, which object stores lack")
        return lake

    @field_validator("online_store")
    @classmethod
    def _check_online_store_scheme(cls, url: str) -> str:
        scheme, separator, _ = url.partition("://")
        if separator and scheme not in ("redis", "rediss"):
            raise ValueError(f"is of kind {scheme}: give redis://, rediss://, or the path of a SQLite file")
        return url

    @model_validator(mode="after")
    def _check_signing_keys(self) -> Self:
        if self.signing_key and not self.signing_public_key:
            raise ValueError("signing_key is set, so set signing_public_key too: nothing would check what is signed")
        if self.signing_passphrase and not self.signing_key:
            raise ValueError("signing_passphrase is set without signing_key")
        return self


@cache
def settings() -> Settings:
    """The settings of this process; read once.

    Raises:
        SettingsError: variables hold what is no setting; names all of them.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = [
            Fault(variable_name(*problem["loc"] or "*"), problem["msg"].removeprefix("Value error, "))
            for problem in error.errors(include_url=False, include_input=False)
            if problem["type"] != "default_factory_not_called"  # a consequence of another one
        ]
    except UnreadableError as error:
        faults = [Fault(variable_name("*"), f"{error}: {error.__cause__}", "structured settings are JSON")]
    raise SettingsError("the environment", faults)


def variable_name(*path: str | int) -> str:
    """The environment variable of the setting at `path`, as in `("pods", "image")`."""
    return ENV_PREFIX + "__".join(str(part).upper() for part in path)


def redact_url(url: str) -> str:
    """`url` as it may be printed: without user and password."""
    netloc = urlsplit(url).netloc
    return url.replace(netloc, netloc.rpartition("@")[2], 1) if "@" in netloc else url
