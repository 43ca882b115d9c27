"""A change of code moves the fingerprints of the steps that depend on it, and of no other."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import pytest

from evergreen.backtest import cache, service
from evergreen.evaluation import collect, requirements
from evergreen.feature_store import training_sets
from evergreen.features import inputs
from evergreen.lake import fingerprints
from evergreen.spec import loader
from evergreen.spec.gates import CustomGate
from evergreen.training import runner

pytestmark = pytest.mark.unit

PACKAGES = ("evergreen", "evergreen_models")
TREES = loader.load_spec("flight_delay")
NETWORK = loader.load_spec("flight_delay_net").model_copy(
    update={"code_packages": ("shop",), "gates": (CustomGate(function="shop.checks:is_open"),)}
)
TEMPLATE = "evergreen/reports/templates/base.html.j2"
TABLE = "evergreen_models/flight_delay_net/tables/ports.csv"
VERDICTS = {"verdict", "backtest measurements", "backtest report"}
SCORES = {"evidence", "backtest scores", "backtest measurements", "backtest report"}
CHANGES = {
    "evergreen/gates/kinds/metric.py": VERDICTS,
    "evergreen/gates/streams.py": VERDICTS,
    "evergreen/spec/gates.py": VERDICTS,
    "evergreen/evaluation/rows.py": {"evidence", "backtest measurements", "backtest report"},
    "evergreen/evaluation/row_files.py": {"evidence", "backtest measurements", "backtest report"},
    "evergreen/scoring/formats.py": SCORES,
    "evergreen/backtest/statistics.py": {"backtest measurements", "backtest report"},
    "evergreen/promotion/rules.py": {"backtest report"},
    "evergreen/promotion/retraining.py": {"backtest report"},
    "evergreen/monitoring/alarms.py": {"backtest report"},
    "evergreen/ledger/state.py": {"backtest report"},
    "evergreen/reports/page.py": {"backtest report"},
    TEMPLATE: {"backtest report"},
    "evergreen/feature_store/examples.py": {"training set", "evidence", "backtest report"},
    "evergreen/ingest/row_groups.py": {
        "features",
        "training set",
        "evidence",
        "backtest measurements",
        "backtest report",
    },
    "evergreen/feature_store/offline_store.py": {"training set", "evidence", "backtest report"},
    "evergreen/feature_store/retrieval.py": {"training set", "evidence", "backtest report"},
    "evergreen/features/build.py": {"features"},
    "evergreen/features/register_history.py": {"features"},
    "evergreen/features/row_order.py": {"features"},
    "evergreen/features/served_after.py": {"features", "training set", "evidence", "backtest report"},
    "evergreen/features/observed_serving.py": set(),
    "evergreen/features/spark.py": {"features", "training set", "evidence", "backtest report"},
    "evergreen/feature_store/spark_examples.py": {"training set", "evidence", "backtest report"},
    "evergreen/feature_store/duckdb_examples.py": {"training set", "evidence", "backtest report"},
    "evergreen/features/types.py": {"features", "training set", "evidence", "backtest report"},
    "evergreen_models/flight_delay/features.py": {"features"},
    "evergreen_models/flight_delay/train.py": {"trees"},
    "evergreen_models/flight_delay_net/stream.py": {"network"},
    TABLE: {"network"},
    "shop/rarely/used.py": {"network"},
    "shop/rarely/prices.csv": {"network"},
    "shop/checks.py": {"network", *VERDICTS},
    "evergreen/orchestration/dags/retrain.py": set(),
    "evergreen/cli/tables.py": set(),
    "evergreen/promotion/service.py": set(),
    "evergreen/registry/versions.py": set(),
    "evergreen/training/categories.py": {"trees", *SCORES},
    "evergreen/training/xgboost_rows.py": {"trees"},
    "evergreen/training/early_stopping.py": {"trees", "network", *SCORES},
    "evergreen/training/target_transform.py": {"trees", *SCORES},
    "evergreen/training/rows.py": set(),
    "evergreen/training/runner.py": set(),
    "evergreen/lake/datasets.py": set(),
    "evergreen/lake/exchange.py": set(),
    "evergreen/object_store.py": set(),
    "evergreen/storage.py": set(),
    "evergreen/settings.py": set(),
    "evergreen/errors.py": set(),
    "evergreen/spec/model.py": set(),
    "evergreen_models/flight_delay/raw.py": set(),
}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages, and a package of the user's that the network imports."""
    for name in PACKAGES:
        package = import_module(name)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(next(iter(package.__path__))), tmp_path / name, ignore=ignored)
        monkeypatch.setattr(package, "__path__", [str(tmp_path / name)])
    (tmp_path / "shop/rarely").mkdir(parents=True)
    for name in ("__init__.py", "checks.py", "rarely/prices.csv", "rarely/__init__.py", "rarely/used.py", "prices.py"):
        (tmp_path / "shop" / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    append(tmp_path / "evergreen_models/flight_delay_net/train.py", "def prices():\n    from shop.prices import ALL\n")
    (tmp_path / TABLE).parent.mkdir()
    (tmp_path / TABLE).touch()
    return tmp_path


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + "\n" + text)


def code() -> dict[str, str]:
    steps = {
        "features": inputs.feature_code(NETWORK),
        "training set": training_sets.training_set_code(),
        "trees": runner.training_code(TREES.name, TREES.code_packages, "log1p"),
        "network": runner.training_code(NETWORK.name, NETWORK.code_packages),
        "evidence": collect.evidence_code(),
        "verdict": requirements.verdict_code(NETWORK),
        "backtest scores": cache.scoring_code(),
        "backtest measurements": cache.cache_code(NETWORK),
        "backtest report": service.report_code(NETWORK),
    }
    return {step: fingerprints.compute_fingerprint(hashes) for step, hashes in steps.items()}


@pytest.mark.parametrize("file", CHANGES)
def test_a_change_moves_the_steps_that_depend_on_it(sources: Path, file: str) -> None:
    before = code()
    append(sources / file, "CHANGED = 1\n")
    after = code()
    assert {step for step in before if before[step] != after[step]} == CHANGES[file]


def test_comments_move_nothing(sources: Path) -> None:
    before = code()
    for name in (*PACKAGES, "shop"):
        for file in (sources / name).rglob("*.py"):
            append(file, "# A comment.\n")
    assert code() == before


def test_a_number_sign_in_a_string_is_no_comment(sources: Path) -> None:
    file = sources / "shop/prices.py"
    file.write_text('ALL = "#1"  # one\n')
    before = code()
    file.write_text('ALL = "#2"  # one\n')
    assert code()["network"] != before["network"]


def test_a_package_that_cannot_be_found_is_an_error(sources: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no source found for shopp: correct its name"):
        runner.training_code(NETWORK.name, ("shopp",))
