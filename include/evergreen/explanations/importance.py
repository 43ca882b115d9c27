"""The importance of each input of a model, by three measures.

- gain: by how much the splits on it have reduced the training loss, of trees. Where it could help, not whether it does.
- permutation: by how much a metric gets worse when its values are given to other rows (Breiman 2001, Machine Learning
  45:5-32; Fisher, Rudin and Dominici 2019, JMLR 20:177). Of any format. Inputs that say the same share it.
- contribution: the mean size of its SHAP values, as the library of the trees computes them.

Each is limited in time: what could not be measured is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from evergreen.errors import EvergreenError, first_line
from evergreen.explanations.importance_record import InputImportance, ModelImportance
from evergreen.gates.metrics import FloatArray
from evergreen.scoring.predictors import Predictor

_FIRST_EXPLAINED_ROWS = 32  # deep trees may take a second for each


@dataclass(frozen=True)
class Limits:
    """What measuring one model may take.

    Attributes:
        permutations: of each input.
        explained_rows: rows whose contributions are computed, which takes longer than their prediction.
        seconds: of permuting, and of computing contributions.
    """

    permutations: int = 5
    explained_rows: int = 2000
    seconds: float = 30.0
    clock: Callable[[], float] = field(default=time.monotonic)


Score = Callable[[pa.Table], FloatArray]
"""Returns predictions (n,) or (n, outputs) of a table with the model's inputs."""
MetricOfScores = Callable[[FloatArray], float | None]
"""Returns the metric of predictions, with the labels of the same rows; None if it does not exist."""


def group_inputs(columns: Sequence[str], groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the columns of each input by its name, in the order of the columns.

    A group has the columns that it names, and all features of the views that it names. Other columns are alone, but for
    one that has the name of a group.
    """
    inputs: dict[str, list[str]] = {}
    for column in columns:
        name = next((name for name, members in groups.items() if _is_member(column, members)), column)
        inputs.setdefault(name, []).append(column)
    return inputs


def _is_member(column: str, members: Sequence[str]) -> bool:
    return any(column == member or column.startswith(f"{member}__") for member in members)


def measure_model(
    predictor: Predictor,
    score: Score,
    metric: MetricOfScores | None,
    table: pa.Table,
    groups: Mapping[str, Sequence[str]],
    higher_is_better: bool,
    seed: int,
    limits: Limits | None = None,
) -> ModelImportance:
    """Measure one model on the rows of `table`, which has its input columns.

    An error of the model or the metric is a problem of the result. The same seed permutes the same rows: two models on
    the same rows are comparable.
    """
    limits = limits or Limits()
    inputs, problems = group_inputs(table.column_names, groups), list[str]()
    gains: Mapping[str, float] = {}
    drops: Mapping[str, Sequence[float]] = {}
    contributions: Mapping[str, float] = {}
    value, explained = None, 0
    problems += [
        f"input_groups: {group} names {member}, which is no input of this model and no view of one"
        for group, members in groups.items()
        for member in members
        if not any(_is_member(column, [member]) for column in table.column_names)
    ]
    problems += [
        f"input_groups: {group} is also the name of an input that it does not list, and was measured with it: rename it"
        for group, members in groups.items()
        if group in inputs.get(group, ()) and len(inputs[group]) > 1 and not _is_member(group, members)
    ]
    with _note_error("the gain of splits is not known", problems):
        gains = _share_gains(predictor.gains(), inputs)
    with _note_error("nothing was permuted", problems):
        if metric is not None:
            value = metric(score(table))
            drops = permute_inputs(score, metric, table, inputs, higher_is_better, seed, limits)
            if late := [name for name, values in drops.items() if not values]:
                problems.append(f"{len(late)} of {len(inputs)} inputs were not permuted within {limits.seconds:g} s")
    with _note_error("there are no contributions", problems):
        contributions, explained = _mean_contributions(predictor, table, inputs, limits)
    return ModelImportance(
        inputs=tuple(
            InputImportance(
                name=name,
                gain=gains.get(name),
                permutation=float(np.mean(drops[name])) if drops.get(name) else None,
                deviation=float(np.std(drops[name], ddof=1)) if len(drops.get(name, ())) > 1 else None,
                contribution=contributions.get(name),
            )
            for name in inputs
        ),
        metric=value,
        permutations=min((len(values) for values in drops.values() if values), default=0),
        explained_rows=explained,
        problems=tuple(problems),
    )


def permute_inputs(
    score: Score,
    metric: MetricOfScores,
    table: pa.Table,
    inputs: Mapping[str, Sequence[str]],
    higher_is_better: bool,
    seed: int,
    limits: Limits,
) -> dict[str, list[float]]:
    """Return by input, for each permutation of its columns, by how much the metric gets worse; in its own unit.

    All columns of an input get the same order, so that what they say together stays true. Inputs for which there was no
    time have no number. A metric that does not exist for some order is left out.

    Raises:
        ValueError: the metric does not exist for the rows as they are.
    """
    ends = limits.clock() + limits.seconds
    actual = metric(score(table))
    if actual is None:
        raise ValueError("the metric does not exist for these rows")
    drops: dict[str, list[float]] = {name: [] for name in inputs}
    for number in range(limits.permutations):
        order = np.random.default_rng([seed, number]).permutation(table.num_rows)
        for name, columns in inputs.items():
            if limits.clock() > ends:
                return drops
            permuted = table
            for column in columns:
                place = table.column_names.index(column)
                permuted = permuted.set_column(place, column, table[column].take(order))
            value = metric(score(permuted))
            if value is not None:
                drops[name].append(actual - value if higher_is_better else value - actual)
    return drops


def _share_gains(gains: Mapping[str, float] | None, inputs: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the share of each input; an input without a split has none of it."""
    total = sum(gains.values()) if gains else 0.0
    if not gains or not total > 0:
        return {}
    return {name: sum(gains.get(column, 0.0) for column in columns) / total for name, columns in inputs.items()}


def _mean_contributions(
    predictor: Predictor, table: pa.Table, inputs: Mapping[str, Sequence[str]], limits: Limits
) -> tuple[dict[str, float], int]:
    """Return the mean |contribution| of each input over rows and outputs, and the number of rows; none of no rows.

    The contribution of an input with several columns is their sum, as in a prediction.
    """
    places = {name: [table.column_names.index(column) for column in columns] for name, columns in inputs.items()}
    sums, rows, batch = dict.fromkeys(inputs, 0.0), 0, _FIRST_EXPLAINED_ROWS
    ends = limits.clock() + limits.seconds
    table = table.take(np.linspace(0, table.num_rows - 1, min(limits.explained_rows, table.num_rows)).astype(int))
    while rows < table.num_rows and limits.clock() <= ends:
        contributions = predictor.contributions(table.slice(rows, batch))
        if contributions is None:
            return {}, 0
        values = contributions.values
        for name, columns in places.items():
            sums[name] += float(np.abs(values[:, :, columns].sum(axis=2)).mean(axis=1).sum())
        rows, batch = rows + len(values), 2 * batch
    return {name: value / rows for name, value in sums.items()} if rows else {}, rows


@contextmanager
def _note_error(result: str, problems: list[str]) -> Iterator[None]:
    """Note an error of any class: models and metrics are others' code, and importance decides nothing."""
    try:
        yield
    except Exception as error:
        text = str(error) if isinstance(error, EvergreenError) else f"{type(error).__name__}: {first_line(error)}"
        problems.append(f"{result}: {text}")
