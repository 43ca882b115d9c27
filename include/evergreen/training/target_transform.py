"""The transform of the label that a spec declares: undone by the model's file, so that no reader can forget it.

`fit` is given transformed labels. Afterwards the trainer's process writes into the model what undoes them: nodes at the
end of an ONNX graph; an attribute of XGBoost's file and a line of LightGBM's, which Evergreen heeds when it scores.

numpy, pyarrow and the libraries are imported where they are used: Airflow's processes import this package, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.errors import TrainingDataError, first_line
from evergreen.training.job import Job
from evergreen.training.outcome import TrainerOutputError
from evergreen.training.rows import open_training_rows

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

TRANSFORM_ATTRIBUTE = "target_transform"
TRANSFORMS = ("log", "log1p", "sqrt")

_DOMAINS = {"log": "above 0", "log1p": "above -1", "sqrt": "of at least 0"}


def undo_transform(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return predictions of a transformed label, of any shape, as predictions of the label.

    A negative prediction of a square root is 0.
    """
    import numpy as np

    with np.errstate(over="ignore"):  # infinity is refused by who asks
        if name == "log":
            return np.exp(values)
        if name == "log1p":
            return np.expm1(values)
        return np.square(np.maximum(values, 0))


def transform_labels(job: Job, folder: Path) -> Job:
    """Return the job with its data in `folder`, the same rows in the same row groups with transformed labels.

    Raises:
        TrainingDataError: a label is not in the domain of the transform.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = job.target_transform
    if name is None:
        return job
    file = folder / "train.parquet"
    invalid = 0
    with open_training_rows(job) as rows:
        schema = rows.schema.set(rows.schema.get_field_index(job.label), pa.field(job.label, pa.float64()))
        with pq.ParquetWriter(file, schema) as writer:
            for table in rows.read(schema.names):
                labels = table[job.label].cast(pa.float64(), safe=False).to_numpy()
                with np.errstate(invalid="ignore", divide="ignore"):
                    transformed = {"log": np.log, "log1p": np.log1p, "sqrt": np.sqrt}[name](labels)
                invalid += int(np.count_nonzero(~np.isfinite(transformed)))
                column = pa.array(transformed, pa.float64())
                writer.write_table(table.set_column(schema.get_field_index(job.label), schema.field(job.label), column))
    if invalid:
        raise TrainingDataError(
            f"{rows.source}: {invalid:,} of {rows.count:,} rows have a {job.label} that is not {_DOMAINS[name]}, as "
            f"the spec's target_transform={name!r} takes: leave them out of the spine, or declare another one"
        )
    return job.model_copy(update={"training_data": str(file)})


def write_transform(output: Path, name: str) -> None:
    """Write into the model in `output` what undoes the transform.

    Raises:
        TrainerOutputError: the model cannot be read, or cannot hold it; says which file.
    """
    if (file := output / "model.ubj").exists():
        import xgboost

        try:
            booster = xgboost.Booster(model_file=file)
        except ValueError as error:  # XGBoost's own errors are such, too
            raise _refusal(file, f"cannot be read: {first_line(error)}") from None
        booster.set_attr(**{TRANSFORM_ATTRIBUTE: name})
        booster.save_model(file)
    if (file := output / "model.lgb").exists():
        try:
            head, version, rest = file.read_text(encoding="utf-8").partition("version=v4\n")
        except UnicodeDecodeError:
            raise _refusal(file, "is no text") from None
        if not version:
            raise _refusal(file, "is no text file of LightGBM 4, of version=v4: write it by `save_model`")
        file.write_text(f"{head}{version}{TRANSFORM_ATTRIBUTE}={name}\n{rest}", encoding="utf-8")
    if (file := output / "model.onnx").exists():
        import onnx
        from google.protobuf.message import DecodeError

        try:
            model = onnx.load(file, load_external_data=False)
        except DecodeError:
            raise _refusal(file, "is no ONNX model") from None
        _append_inverse(model, name)
        file.write_bytes(model.SerializeToString())


def _refusal(file: Path, problem: str) -> TrainerOutputError:
    return TrainerOutputError(f"fit's output is refused: {file.name} {problem}")


def _append_inverse(model: onnx.ModelProto, name: str) -> None:
    """Undo the transform at the end of a graph with one output, which keeps its name."""
    from onnx import TensorProto, helper

    graph = model.graph
    if len(graph.output) != 1:
        names = ", ".join(output.name for output in graph.output)
        raise TrainerOutputError(
            f"fit's output is refused: model.onnx returns {names}, and target_transform needs one output: leave one"
        )
    output = graph.output[0].name
    inner = f"{output}.transformed"
    for node in graph.node:
        for names_ in (node.input, node.output):
            for position, used in enumerate(names_):
                if used == output:
                    names_[position] = inner
    if name == "sqrt":
        steps = [("Relu", [inner], f"{output}.positive"), ("Mul", [f"{output}.positive"] * 2, output)]
    elif name == "log":
        steps = [("Exp", [inner], output)]
    else:
        type_ = graph.output[0].type.tensor_type.elem_type or TensorProto.FLOAT
        graph.initializer.append(helper.make_tensor(f"{output}.one", type_, [], [1.0]))
        steps = [("Exp", [inner], f"{output}.exp"), ("Sub", [f"{output}.exp", f"{output}.one"], output)]
    graph.node.extend(helper.make_node(operator, inputs, [result]) for operator, inputs, result in steps)
