"""A declared transform of the label: `fit` is given it, and every format's file undoes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost

from evergreen.errors import ScoringError, SpecError, TrainingDataError
from evergreen.scoring import predictions
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath, file_sha256
from evergreen.training import Checkpoints, Job, open_training_rows, runner
from evergreen.training.outcome import TrainerOutputError

pytestmark = pytest.mark.unit

TRAINER = """
import numpy as np, pyarrow as pa
from evergreen.training import open_training_rows

def fit(job, output, checkpoints):
    with open_training_rows(job) as rows:
        table = pa.concat_tables(rows.read([*job.features, job.label]))
    features, label = table.select(list(job.features)), table[job.label].to_numpy()
    if "file" in job.parameters:
        (output / job.parameters["file"]).write_text(job.parameters["content"])
    else:
        globals()[job.parameters["library"]](features, label, output)
    return {"mean": float(label.mean())}

def xgboost(features, label, output):
    import xgboost as xgb
    data = xgb.DMatrix(features, label)
    evals = [(xgb.DMatrix(features, np.roll(label, 3)), "noise")]
    booster = xgb.train({"nthread": 1, "eta": 0.05}, data, 40, evals=evals, early_stopping_rounds=3, verbose_eval=False)
    booster.save_model(output / "model.ubj")

def lightgbm(features, label, output):
    import lightgbm as lgb
    data = lgb.Dataset(features.to_pandas(), label)
    lgb.train({"verbose": -1, "num_threads": 1}, data, 5).save_model(output / "model.lgb")

def sklearn(features, label, output):
    from sklearn.linear_model import Ridge
    from evergreen.training.sklearn_onnx import pipeline_frame, save_pipeline
    save_pipeline(Ridge().fit(pipeline_frame(features), label), features, output)

def two_outputs(features, label, output):
    import onnx
    sklearn(features, label, output)
    model = onnx.load(output / "model.onnx")
    model.graph.output.append(onnx.helper.make_tensor_value_info(model.graph.node[-2].output[0], 1, None))
    onnx.save(model, output / "model.onnx")
"""
_GENERATOR = np.random.default_rng(4)
ROWS = 200
TABLE = pa.table({"a": _GENERATOR.normal(size=ROWS), "b": _GENERATOR.normal(size=ROWS)})
LABEL = np.exp(TABLE["a"].to_numpy() + 0.1 * _GENERATOR.normal(size=ROWS)) * 10
INVERSES = {"log": np.exp, "log1p": np.expm1, "sqrt": lambda values: np.maximum(values, 0) ** 2}
FILES = {"xgboost": "model.ubj", "lightgbm": "model.lgb", "sklearn": "model.onnx"}


@pytest.fixture
def train(tmp_path: Path, use_models: Callable[..., None]) -> Callable[..., Path]:
    """Return a function that trains with a library and returns the folder of the model's file."""
    package = tmp_path / "models" / "counting"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(TRAINER)
    use_models(package.parent)

    def run(library: str, transform: str | None, label: Any = LABEL, **parameters: Any) -> Path:
        data = tmp_path / "train.parquet"
        pq.write_table(TABLE.append_column("label", pa.array(label)), data, row_group_size=70)
        job = Job(
            model="counting",
            fingerprint="f" * 64,
            training_data=str(data),
            training_data_sha256=file_sha256(data),
            training_data_size=data.stat().st_size,
            features=("a", "b"),
            label="label",
            target_transform=transform,
            parameters={"library": library, **parameters},
            seed=1,
            threads=1,
            gpu=0,
            processes=1,
            checkpoint_seconds=60,
            modules=runner.training_code("counting", (), transform),
            libraries={},
        )
        folder = UPath(tmp_path / "jobs" / "counting" / f"{library}-{transform}")
        runner.run_training(job, folder, Checkpoints(folder / "checkpoints", "f" * 64, 60))
        target = tmp_path / f"{library}-{transform}"
        target.mkdir()
        runner.fetch_model_files(job.fingerprint, folder, target)
        return target

    return run


@pytest.mark.parametrize("transform", INVERSES)
@pytest.mark.parametrize("library", FILES)
def test_predictions_are_those_of_the_label(train: Callable[..., Path], library: str, transform: str) -> None:
    forward = {"log": np.log, "log1p": np.log1p, "sqrt": np.sqrt}[transform]
    by_hand = predictions.load_model(train(library, None, forward(LABEL)))
    by_spec = predictions.load_model(train(library, transform))
    expected = INVERSES[transform](by_hand.predict(TABLE).astype(np.float64))
    assert by_spec.predict(TABLE) == pytest.approx(expected, rel=1e-5)
    assert by_spec.prepare_request(TABLE)() == pytest.approx(expected, rel=1e-5)
    assert 0.5 < np.median(expected / LABEL.reshape(expected.shape)) < 2
    assert (by_hand.target_transform, by_spec.target_transform) == (None, None if library == "sklearn" else transform)


def test_a_graph_undoes_it_for_every_reader(train: Callable[..., Path]) -> None:
    folder = train("sklearn", "log1p")
    frame = TABLE.to_pandas().astype(np.float32)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (answer,) = session.run(None, {name: frame[name].to_numpy() for name in frame})
    predictor = predictions.load_model(folder)
    assert np.array_equal(answer, predictor.predict(TABLE))
    mlflow.onnx.save_model(path=str(folder / "saved"), **predictor.save_model_arguments())
    served = mlflow.pyfunc.load_model(str(folder / "saved")).predict(frame)
    assert np.ravel(served.to_numpy()) == pytest.approx(np.ravel(answer))


def test_negative_roots_are_zero_and_too_large_ones_infinite(train: Callable[..., Path]) -> None:
    predictor = predictions.load_model(train("sklearn", "sqrt", np.where(LABEL > 20, LABEL, 0)))
    assert predictor.predict(pa.table({"a": [-100.0], "b": [0.0]})).item() == 0
    folder = train("lightgbm", "log")
    predictor = predictions.load_model(folder)
    predictor._booster = type("Huge", (), {"predict": lambda *_, **__: np.array([1e4])})()
    assert predictor.predict(TABLE.slice(0, 1)).tolist() == [np.inf]


@pytest.mark.parametrize(
    ("transform", "label", "said"),
    [
        ("log", 0.0, "1 of 200 rows have a label that is not above 0, as the spec's target_transform='log' takes"),
        ("log1p", -1.0, "not above -1"),
        ("sqrt", -1e-9, "not of at least 0"),
        ("log", None, "1 of 200 rows"),
    ],
)
def test_labels_that_have_no_such_value_are_counted(
    train: Callable[..., Path], transform: str, label: float | None, said: str
) -> None:
    with pytest.raises(TrainingDataError, match=said):
        train("xgboost", transform, [label, *LABEL[1:]])


def test_several_outputs_cannot_be_undone(train: Callable[..., Path]) -> None:
    with pytest.raises(TrainerOutputError, match="target_transform needs one output"):
        train("two_outputs", "log")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.onnx", "no graph", "refused: model.onnx is no ONNX model$"),
        ("model.lgb", "tree\nversion=v3\n", "refused: model.lgb is no text file of LightGBM 4"),
        ("model.lgb", "", "refused: model.lgb is no text file of LightGBM 4"),
        ("model.ubj", "{}", "refused: model.ubj"),
    ],
)
def test_a_model_that_cannot_hold_it_is_named(train: Callable[..., Path], file: str, content: str, said: str) -> None:
    with pytest.raises(TrainerOutputError, match=said):
        train("broken", "log", file=file, content=content)


def test_a_transform_that_nobody_knows_is_refused(train: Callable[..., Path]) -> None:
    folder = train("xgboost", "log")
    booster = xgboost.Booster(model_file=folder / "model.ubj")
    booster.set_attr(target_transform="eval")
    booster.save_model(folder / "model.ubj")
    with pytest.raises(ScoringError, match="its label was transformed by 'eval', not one of log, log1p, sqrt"):
        predictions.load_model(folder)


def test_other_columns_and_row_groups_stay_as_they_are(train: Callable[..., Path], tmp_path: Path) -> None:
    from evergreen.training.target_transform import transform_labels

    train("lightgbm", "log")
    job = Job.model_construct(training_data=str(tmp_path / "train.parquet"), label="label", target_transform="log")
    (tmp_path / "copy").mkdir()
    changed = transform_labels(job, tmp_path / "copy")
    with open_training_rows(changed) as rows:
        groups = list(rows.read(["a", "b", "label"]))
    assert [group.num_rows for group in groups] == [70, 70, 60]
    assert pa.concat_tables(groups).select(["a", "b"]) == TABLE
    assert np.array_equal(pa.concat_tables(groups)["label"].to_numpy(), np.log(LABEL))


def test_a_spec_names_one_of_the_transforms() -> None:
    fields: dict[str, Any] = dict(
        name="m", owner="o", features="f", feature_service="s", schedule="0 0 * * 1",
        gates=[dict(kind="threshold", metric="rmse", at_most=1)],
    )  # fmt: skip
    assert ModelSpec(**fields).target_transform is None
    assert ModelSpec(**fields, target_transform="log1p").target_transform == "log1p"
    with pytest.raises(SpecError, match="target_transform"):
        ModelSpec(**fields, target_transform="cube")
