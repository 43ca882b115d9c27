"""Rows that are more than a process keeps in memory: what gates need of them, from passes over batches.

Metrics that are a ratio of sums, such as log loss or the root of a mean square, need the sums by cluster and group, in
one pass, and are as exact as sums are. Ranks need three: for bins of scores, for counts in these bins, and for
placements by cluster (`evergreen.gates.score_bins`).

Memory grows with the names of clusters and groups, not with rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.clusters import (
    ClusterCounts,
    ClusteredVariance,
    cluster_columns,
    missing_cluster_fault,
    unnamed_cluster_fault,
)
from evergreen.gates.comparisons import (
    NO_DIFFERENCE,
    EstimatedGain,
    check_class_sizes,
    check_gain_exists,
    estimate_auc_gain,
    estimate_jackknife_gain,
    is_differing,
    placement_way,
    sums_way,
)
from evergreen.gates.computation import (
    NO_VALUES,
    ColumnStats,
    PredictionStats,
    finite_or_none,
    label_faults,
    label_type,
    merge_stats,
    prediction_shape_fault,
    prediction_stats,
    score_faults,
    to_predictions,
    weight_faults,
)
from evergreen.gates.evidence import Evidence, EvidenceRows, MissingEvidence, StreamedColumn, TextBatch
from evergreen.gates.forecasts import check_columns, is_counted, missing_rows_fault, required_columns
from evergreen.gates.judged_rows import JudgedRows, find_groups
from evergreen.gates.metrics import FloatArray, SumMetric, resolve_metric
from evergreen.gates.score_bins import (
    MAX_BINS,
    SAMPLE_ROWS,
    MetricValue,
    ScoreBins,
    auc_error,
    binned_calibration_error,
    binned_placements,
    doubled_wins,
)
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import BySliceGate, FairnessGate, LabelType, MetricGate, PairedComparisonGate
from evergreen.spec.prediction_type import PredictionType

# Of all groups together: with more groups, each has fewer bins.
_MAX_CELLS = 2**20
_MAX_NAMES = 2**20
_MAX_KEYS = 2**21
_NAME_BITS = 20

_BINNED_METRICS = ("auc", "calibration_error")
"""Metrics of ranks that counts in bins of scores tell."""

Codes = NDArray[np.int64]


def exact_rows_fix(rows: int) -> str:
    """Return what to do where only rows in memory would do."""
    return f"raise EVERGREEN_EXACT_ROWS to {rows:,}, on a machine with the memory for it"


class NameCodes:
    """Numbers the names of a column of texts as they come."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._codes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def encode(self, batch: TextBatch) -> Codes:
        """Return the number of each row's name (n,), -1 for none."""
        numbers = [self._codes.setdefault(name, len(self._codes)) for name in batch.names]
        if len(self._codes) > _MAX_NAMES:
            text = f"there are more than {_MAX_NAMES:,} {self._description}"
            raise NotComputedError(f"{text}, too many for rows that are read in batches: take a column with fewer")
        # The last one is that of rows without a name, whose code is -1.
        return np.array([*numbers, -1], dtype=np.int64)[batch.codes]

    def sorted_codes(self) -> dict[str, int]:
        """Return the number of each name, in order of names."""
        return {name: self._codes[name] for name in sorted(self._codes)}

    def ranks(self) -> Codes:
        """Return the place of each number's name (names,) in their order."""
        ranks = np.empty(len(self._codes), dtype=np.int64)
        ranks[list(self.sorted_codes().values())] = np.arange(len(self._codes))
        return ranks


class KeyedSums:
    """Sums of columns by a key of several numbers, for the keys that occur."""

    def __init__(self) -> None:
        self._keys: list[Codes] = []
        self._sums: list[FloatArray] = []
        self._pending, self._merged = 0, 0

    def add(self, key: Sequence[Codes], sizes: Sequence[int], columns: Sequence[NDArray[Any]]) -> None:
        """Add rows (n,): their keys, of numbers below `sizes`, and their values."""
        mixed = key[0]
        for codes, size in zip(key[1:], sizes[1:], strict=True):
            mixed = mixed * size + codes
        unique, places = _number_keys(mixed)
        sums: FloatArray = np.stack([np.bincount(places, column, unique.size) for column in columns])
        wide = np.zeros_like(unique)
        for place, size in enumerate(reversed(sizes[1:])):
            unique, codes = np.divmod(unique, size)
            wide += codes << _NAME_BITS * place
        self._keys.append(wide + (unique << _NAME_BITS * (len(sizes) - 1)))
        self._sums.append(sums)
        self._pending += wide.size
        if self._pending > self._merged + _MAX_KEYS:
            self._merge()

    @property
    def is_full(self) -> bool:
        """Return whether there are more keys than should be in memory."""
        return self._merged > _MAX_KEYS

    def result(self) -> tuple[Codes, FloatArray]:
        """Return the keys (k,), in order, whose parts `split_key` returns, and the sums (columns, k)."""
        self._merge()
        return self._keys[0], self._sums[0]

    def _merge(self) -> None:
        keys, sums = np.concatenate(self._keys), np.concatenate(self._sums, axis=1)
        unique, places = np.unique(keys, return_inverse=True)
        self._keys = [unique]
        self._sums = [np.stack([np.bincount(places, column, unique.size) for column in sums])]
        self._pending = self._merged = unique.size


def split_key(keys: Codes, part: int, parts: int) -> Codes:
    """Return one of the numbers that keys of `KeyedSums` are made of."""
    codes: Codes = keys >> _NAME_BITS * (parts - 1 - part)
    return codes & (2**_NAME_BITS - 1) if part else codes


def _number_keys(keys: Codes) -> tuple[Codes, Codes]:
    """Return the keys that occur, in order, and the place of each of the keys (n,) among them."""
    if keys.size and keys.max() < 4 * keys.size:
        unique = np.flatnonzero(np.bincount(keys))
        places = np.empty(unique[-1] + 1, dtype=np.int64)
        places[unique] = np.arange(unique.size)
        return unique, places[keys]
    unique, places = np.unique(keys, return_inverse=True)
    return unique, places


@dataclass(frozen=True)
class StreamedClusters(ClusterCounts):
    """The numbers of clusters of streamed rows."""

    names: tuple[str, ...]
    counts: tuple[int, ...] = ()


@dataclass
class _Counts:
    """What the first pass over the rows counts and adds up; sums by group are (groups,), of rows in no group first."""

    stats: dict[str, PredictionStats]
    """Of the labels, whose name is empty, and of each scorer."""
    unnamed: dict[str, int]
    by_way: list[KeyedSums]
    clusters: tuple[int, ...] = ()
    """The number of clusters by each way."""
    group_codes: dict[str, int] = field(default_factory=dict)
    """The code of each group, in order of names."""
    by_group: KeyedSums = field(default_factory=KeyedSums)
    samples: dict[str, list[FloatArray]] = field(default_factory=dict)
    terms: int = 0
    """The number of sums of a scorer that the metric is made of."""


@dataclass(eq=False)
class RowPasses:
    """What passes over the rows have summed up for one gate. A pass is made when its result is first needed."""

    gate: MetricGate
    rows: EvidenceRows
    label: str
    scorers: Mapping[str, str]
    """The column of each scorer; the candidate is first."""
    ways: Mapping[str, str]
    """The column of each way of clusters."""
    group: str | None = None
    prediction_type: PredictionType | None = None
    forecast_columns: Mapping[str, str] = field(default_factory=dict)
    """Of a forecast, the columns that say which rows count, and how (`evergreen.gates.forecasts`)."""
    weights: str | None = None

    def __post_init__(self) -> None:
        metric = resolve_metric(self.gate, self.prediction_type)
        self.metric = metric if isinstance(metric, SumMetric) else None
        self.coders = [NameCodes(f"values of {name}") for name in self.ways]
        self.group_coder = NameCodes("groups") if self.group else None
        self.ways_sums = [KeyedSums() for _ in self.ways]
        # By pairs of the first way and each other.
        self.pairs_sums: list[KeyedSums] | None = [KeyedSums() for _ in list(self.ways)[1:]] or None

    @property
    def groups(self) -> int:
        """The number of groups, that of rows in no group included."""
        return 1 + (0 if self.group_coder is None else len(self.group_coder))

    @cached_property
    def counts(self) -> _Counts:
        """Make the first pass."""
        references = [name for name in self.scorers if name != "candidate"]
        stats: dict[str, PredictionStats] = dict.fromkeys(("", *self.scorers), NO_VALUES)
        counts = _Counts(stats, dict.fromkeys(self.ways, 0), self.ways_sums)
        stride, first = -(-self.rows.count // SAMPLE_ROWS), 0
        for label, scores, ways, groups, weights in self._batches():
            for name, values in {"": label, **scores}.items():
                counts.stats[name] = merge_stats(counts.stats[name], prediction_stats(values))
            for name, codes in zip(self.ways, ways, strict=True):
                counts.unnamed[name] += int(np.count_nonzero(codes < 0))
            sums: list[NDArray[Any]] = [np.ones(label.size), label == 1]
            if references:
                assert isinstance(self.gate, PairedComparisonGate)
                sums += [
                    is_differing(self.gate, scores["candidate"], scores[name], self.prediction_type)
                    for name in references
                ]
            terms: list[FloatArray] = []
            if self.metric:
                with np.errstate(all="ignore"):  # of invalid rows, which are faults
                    terms = [part for score in scores.values() for part in self.metric.terms(label, score)]
                    terms = terms if weights is None else [part * weights for part in terms]
                counts.terms = len(terms) // len(scores)
                self._add_by_cluster(groups, ways, terms if references else [])
            else:
                for name, score in scores.items():
                    counts.samples.setdefault(name, []).append(_take_sample(score, first, stride))
            counts.by_group.add([groups], [self.groups], sums + terms)
            first += label.size
        counts.clusters = tuple(len(coder) for coder in self.coders)
        counts.group_codes = self.group_coder.sorted_codes() if self.group_coder is not None else {}
        return counts

    @property
    def group_numbers(self) -> dict[str, int]:
        """The number of each group by its name, in order of names."""
        return {name: number + 1 for name, number in self.counts.group_codes.items()}

    @cached_property
    def bins(self) -> dict[str, ScoreBins]:
        """The bins of each scorer."""
        samples = self.counts.samples  # first, for it finds the groups
        max_bins = max(min(MAX_BINS, _MAX_CELLS // self.groups), 16)
        return {name: ScoreBins.from_sample(np.concatenate(sample), max_bins) for name, sample in samples.items()}

    @cached_property
    def histograms(self) -> tuple[dict[str, NDArray[np.int64]], dict[str, FloatArray]]:
        """Make the second pass: rows (groups, classes, bins), and sums of label - score (groups, bins), by scorer."""
        rows = {name: np.zeros((self.groups, 2, bins.count), dtype=np.int64) for name, bins in self.bins.items()}
        gaps = {name: np.zeros((self.groups, bins.count)) for name, bins in self.bins.items()}
        for label, scores, _, groups, _ in self._batches():
            for name, score in scores.items():
                places = self.bins[name].find(score)
                np.add.at(rows[name], (groups, (label == 1).astype(np.intp), places), 1)
                if self.gate.metric == "calibration_error":
                    np.add.at(gaps[name], (groups, places), label - score)
        return rows, gaps

    @cached_property
    def cluster_sums(self) -> list[KeyedSums]:
        """Sums by group and cluster, for each way of clusters: of a ratio those of the first pass, else of a third."""
        if self.metric is None:
            self._add_placements()
            return self.ways_sums
        return self.counts.by_way

    def _add_placements(self) -> None:
        """Make the third pass: doubled placements of the candidate less those of the reference, by cluster."""
        counts, _ = self.histograms
        tables = {
            name: np.stack([binned_placements(ones, zeros) for zeros, ones in groups])
            for name, groups in counts.items()
        }
        for label, scores, ways, groups, _ in self._batches():
            classes = (label == 1).astype(np.intp)
            placements = [tables[name][groups, classes, self.bins[name].find(score)] for name, score in scores.items()]
            ahead = (placements[0] - placements[1]).astype(np.float64)
            is_one = classes.astype(np.float64)
            self._add_by_cluster(groups, ways, [is_one, ahead * is_one, 1 - is_one, ahead * (1 - is_one)])

    def _add_by_cluster(self, groups: Codes, ways: Sequence[Codes], columns: Sequence[FloatArray]) -> None:
        if not columns:
            return
        named = [np.maximum(codes, 0) for codes in ways]  # those without a name are a fault
        sizes = [max(len(coder), 1) for coder in self.coders]
        for sums, codes, size in zip(self.ways_sums, named, sizes, strict=True):
            sums.add([groups, codes], [self.groups, size], columns)
            if sums.is_full:
                text = (
                    f"there are more than {_MAX_KEYS:,} clusters in {self.groups:,} groups, too many for rows that are"
                )
                raise NotComputedError(f"{text} read in batches: take fewer groups, or clusters of more rows")
        if self.pairs_sums:
            for sums, codes, size in zip(self.pairs_sums, named[1:], sizes[1:], strict=True):
                sums.add([groups, named[0], codes], [self.groups, sizes[0], size], columns)
            if any(sums.is_full for sums in self.pairs_sums):
                self.pairs_sums = None  # then they are not subtracted, and bounds are wider

    def _batches(
        self,
    ) -> Iterator[tuple[FloatArray, dict[str, FloatArray], list[Codes], Codes, FloatArray | None]]:
        """Yield labels, scores by scorer, codes of clusters, numbers of groups, from 1 on, and weights, (n,) each."""
        texts = [*self.ways.values(), *([self.group] if self.group else [])]
        coders = [*self.coders, *([] if self.group_coder is None else [self.group_coder])]
        scorers = [self.label, *self.scorers.values()]
        row_columns = [*self.forecast_columns.values(), *([self.weights] if self.weights else [])]
        for numbers, names in self.rows.batches([*scorers, *row_columns], texts):
            label, *scores = (
                _to_numbers(values, self.prediction_type if number else None)
                for number, values in enumerate(numbers[: len(scorers)])
            )
            rest = list(map(_to_numbers, numbers[len(scorers) :]))
            weights = rest.pop() if self.weights else None
            columns = dict(zip(self.forecast_columns, rest, strict=True))
            if weights is not None:
                columns["weights"] = weights
            if columns:
                counted = is_counted(self.gate, columns)
                scale = columns["scales"][counted] if "scales" in columns else 1.0
                label, *scores = (values[counted] / scale for values in (label, *scores))
                weights = None if weights is None else weights[counted]
                names = [_take_texts(batch, counted) for batch in names]
            codes = [coder.encode(batch) for coder, batch in zip(coders, names, strict=True)]
            groups = codes.pop() + 1 if self.group else np.zeros(label.size, dtype=np.int64)
            yield label, dict(zip(self.scorers, scores, strict=True)), codes, groups, weights


def _take_texts(batch: TextBatch, rows: NDArray[np.bool_]) -> TextBatch:
    """Return these rows, with the names that occur in them."""
    codes = batch.codes[rows]
    used = np.unique(codes[codes >= 0])
    places = np.full(len(batch.names) + 1, -1, dtype=np.int64)  # the last one is that of rows without a name
    places[used] = np.arange(used.size)
    return TextBatch(places[codes], [batch.names[code] for code in used.tolist()])


def _to_numbers(values: object, prediction: PredictionType | None = None) -> FloatArray:
    array = to_predictions(values, prediction)
    if array is None:
        if prediction and prediction.outputs:
            raise NotComputedError(prediction_shape_fault("model", prediction))
        raise NotComputedError("labels or scores are not one row of numbers")
    return array


def select_output(column: Any, number: int) -> Any:
    """Return one of several numbers per row of a column (n, outputs), as (n,)."""
    return replace(column, output=number) if isinstance(column, StreamedColumn) else column[:, number]


def _select(values: Any, column: StreamedColumn) -> Any:
    return values if column.output is None else np.asarray(values)[:, column.output]


@dataclass(eq=False)
class StreamedRows(JudgedRows):
    """Rows that are read in batches, or those of one group of them, whose number is `group`."""

    passes: RowPasses
    cluster_problems: list[str]
    group_problem: str | None = None
    group: int | None = None

    @classmethod
    def from_evidence(cls, gate: MetricGate, evidence: Evidence, scorers: Mapping[str, object]) -> StreamedRows:
        """Return the rows for a gate.

        Raises:
            NotComputedError: the metric takes all rows at once, or not all columns are of the same rows.
        """
        label = evidence.label
        names = {name: column.name for name, column in scorers.items() if _is_of_same_rows(column, label)}
        if not isinstance(label, StreamedColumn) or len(names) < len(scorers):
            raise NotComputedError("some labels and scores are in memory, others are read in batches")
        is_sum = ":" not in gate.metric and isinstance(resolve_metric(gate, evidence.prediction_type), SumMetric)
        is_ranking = evidence.prediction_type is not None and evidence.prediction_type.kind == "ranking"
        weights = None if is_ranking else _streamed_weights(evidence, label)
        if is_ranking or (not is_sum and (weights or gate.metric not in _BINNED_METRICS)):
            rows = label.rows.count
            text = f"{gate.metric} takes all labels and scores at once, and {rows:,} rows are read in batches"
            fixes = [exact_rows_fix(rows)]
            if not is_ranking:
                fixes.insert(
                    0, f"take a {'built-in metric' if ':' in gate.metric else 'metric that is a mean of rows'}"
                )
            raise NotComputedError(f"{text}: {', or '.join(fixes)}")
        forecast_columns = _streamed_forecast_columns(gate, evidence, label)
        ways, problems = _streamed_clusters(evidence, label) if len(scorers) > 1 else ({}, [])
        group, group_problem = None, None
        if isinstance(gate, BySliceGate | FairnessGate):
            groups = find_groups(gate, evidence)
            if isinstance(groups, MissingEvidence):
                group_problem = f"the groups by {gate.group_by} are not known: {groups.problem}"
            elif _is_of_same_rows(groups, label):
                group = groups.name
            else:
                group_problem = f"the groups by {gate.group_by} are not those of the labels' rows"
        passes = RowPasses(
            gate, label.rows, label.name, names, ways, group, evidence.prediction_type, forecast_columns, weights
        )
        streamed = cls(passes, problems, group_problem)
        if forecast_columns and label.rows.count and not streamed.size:
            raise NotComputedError(missing_rows_fault(gate, label.rows.count, has_weights=weights is not None))
        return streamed

    @property
    def size(self) -> int:
        if self.group is None and not self.passes.forecast_columns and not self.passes.weights:
            return self.passes.rows.count
        return int(self._count(0))

    @property
    def label_type(self) -> LabelType:
        return label_type(self.passes.gate, self.passes.prediction_type)

    @property
    def clusters(self) -> StreamedClusters:
        names = tuple(self.passes.ways)
        if self.group is None:
            return StreamedClusters(names, self.passes.counts.clusters)
        return StreamedClusters(names, tuple(self._cluster_sums(way)[0].size for way in range(len(names))))

    def faults(self, *references: str, allow_constant: bool = False) -> list[str]:
        gate, stats, prediction = self.passes.gate, self.passes.counts.stats, self.passes.prediction_type
        label = stats[""]
        assert isinstance(label, ColumnStats)
        faults = label_faults(gate, label, prediction)
        for name in ("candidate", *references):
            constant = allow_constant and name in references
            faults += score_faults(gate, name, stats[name], label, prediction, constant)
        return faults

    def cluster_faults(self) -> list[str]:
        if self.cluster_problems:
            return self.cluster_problems
        unnamed = self.passes.counts.unnamed
        faults = (unnamed_cluster_fault(name, count, self.size) for name, count in unnamed.items())
        return list(filter(None, faults))

    def group_fault(self) -> str | None:
        if self.group_problem:
            return self.group_problem
        gate = self.passes.gate
        assert isinstance(gate, BySliceGate | FairnessGate)
        return None if self.passes.group_numbers else f"no row has a group by {gate.group_by}"

    def split_by_group(self) -> dict[str, JudgedRows]:
        return {name: replace(self, group=number) for name, number in self.passes.group_numbers.items()}

    def count_label_ones(self) -> int:
        return int(self._count(1))

    def metric(self, scorer: str, *, ignore_errors: bool = False) -> MetricValue | None:  # noqa: ARG002 - built in
        passes, place = self.passes, list(self.passes.scorers).index(scorer)
        if passes.metric:
            terms = passes.counts.terms
            first = 1 + len(passes.scorers) + terms * place  # after rows, labels of 1, and differing rows
            sums = [np.array([self._count(number)]) for number in range(first, first + terms)]
            value = finite_or_none(passes.metric.from_sums(*sums)[0]) if sums else None
            return None if value is None else MetricValue(value)
        zeros, ones = self._histogram(scorer)
        if passes.gate.metric == "calibration_error":
            gaps = passes.histograms[1][scorer]
            gap = gaps.sum(axis=0) if self.group is None else gaps[self.group]
            return binned_calibration_error(zeros + ones, gap)
        pairs = int(zeros.sum()) * int(ones.sum())
        return MetricValue(doubled_wins(ones, zeros) / (2 * pairs), auc_error(ones, zeros)) if pairs else None

    def count_differing(self, reference: str) -> int:
        return int(self._count(1 + list(self.passes.scorers).index(reference)))

    def measure_gain(self, reference: str) -> EstimatedGain:
        gate = self.passes.gate
        assert isinstance(gate, PairedComparisonGate)
        if not self.count_differing(reference):
            return NO_DIFFERENCE
        if self.passes.metric is None:
            return self._measure_auc_gain(reference)
        measured = [self.metric(scorer) for scorer in ("candidate", reference)]
        values = [np.nan if metric is None else metric.value for metric in measured]
        gain = (1 if gate.scale.higher_is_better else -1) * (values[0] - values[1])
        check_gain_exists(gate, gain, self.size)
        metric = self.passes.metric

        def one_way(sums: FloatArray) -> ClusteredVariance:
            candidate_sums, reference_sums = np.split(sums, 2)
            return sums_way(gate, metric, list(candidate_sums), list(reference_sums), gain)

        ways = [one_way(self._cluster_sums(way)[1]) for way in range(len(self.passes.ways))]
        pairs = (lambda: map(one_way, self._pair_sums())) if self.passes.pairs_sums else None
        clusters = self.clusters
        return estimate_jackknife_gain(gain, clusters.combine_ways(ways, pairs), clusters)

    def _measure_auc_gain(self, reference: str) -> EstimatedGain:
        histograms = [self._histogram(scorer) for scorer in ("candidate", reference)]
        zeros, ones = histograms[0]
        negatives, positives = int(zeros.sum()), int(ones.sum())
        check_class_sizes(positives, negatives)
        wins, reference_wins = (doubled_wins(ones, zeros) for zeros, ones in histograms)
        total = wins - reference_wins
        gain = total / (2 * positives * negatives)

        def one_way(sums: FloatArray) -> ClusteredVariance:
            return placement_way((sums[0], sums[1]), (sums[2], sums[3]), gain)

        ways = [one_way(self._cluster_sums(way)[1]) for way in range(len(self.passes.ways))]
        pairs = (lambda: map(one_way, self._pair_sums())) if self.passes.pairs_sums else None
        clusters = self.clusters
        by_clusters = clusters.combine_ways(ways, pairs)
        estimate = estimate_auc_gain(total, positives, negatives, by_clusters, clusters)
        return replace(estimate, resolution=sum(auc_error(ones, zeros) for zeros, ones in histograms))

    def _count(self, column: int) -> float:
        """Return a sum of the first pass."""
        keys, sums = self.passes.counts.by_group.result()
        return float(sums[column].sum() if self.group is None else sums[column, np.searchsorted(keys, self.group)])

    def _histogram(self, scorer: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of class 0 and of class 1 in each bin."""
        counts = self.passes.histograms[0][scorer]
        zeros, ones = counts.sum(axis=0) if self.group is None else counts[self.group]
        return zeros, ones

    def _cluster_sums(self, way: int) -> tuple[Codes, FloatArray]:
        """Return the numbers of clusters by one way, and their sums (columns, k), in the order of their names."""
        keys, sums = self._of_group(*self.passes.cluster_sums[way].result(), parts=2)
        codes = split_key(keys, 1, 2)
        order = np.argsort(self.passes.coders[way].ranks()[codes])
        return codes[order], sums[:, order]

    def _pair_sums(self) -> Iterator[FloatArray]:
        assert self.passes.pairs_sums
        for sums in self.passes.pairs_sums:
            yield self._of_group(*sums.result(), parts=3)[1]

    def _of_group(self, keys: Codes, sums: FloatArray, parts: int) -> tuple[Codes, FloatArray]:
        group = self.group or 0  # a gain of all rows is not asked for where there are groups
        first, end = np.searchsorted(split_key(keys, 0, parts), [group, group + 1])
        return keys[first:end], sums[:, first:end]


def _is_of_same_rows(column: object, label: object) -> TypeGuard[StreamedColumn]:
    return isinstance(column, StreamedColumn) and isinstance(label, StreamedColumn) and column.rows is label.rows


def _streamed_forecast_columns(gate: MetricGate, evidence: Evidence, label: StreamedColumn) -> dict[str, str]:
    """Return the columns that say which rows of a forecast count; raises a NotComputedError where there are none."""
    if evidence.prediction_type is None or evidence.prediction_type.kind != "forecast":
        return {}
    check_columns(gate, evidence)
    columns = {name: getattr(evidence, name) for name in required_columns(gate)}
    if faults := [
        f"the {name} are not those of the labels' rows"
        for name, column in columns.items()
        if not _is_of_same_rows(column, label)
    ]:
        raise NotComputedError(*faults)
    return {name: column.name for name, column in columns.items()}


def _streamed_weights(evidence: Evidence, label: StreamedColumn) -> str | None:
    """Return the column of weights; None if all rows count alike. Raises a NotComputedError as for those in memory."""
    if evidence.weights is None:
        return None
    if isinstance(evidence.weights, MissingEvidence):
        raise NotComputedError(f"the weights cannot be used: {evidence.weights.problem}")
    if not _is_of_same_rows(evidence.weights, label):
        raise NotComputedError("the weights are not those of the labels' rows")
    stats = NO_VALUES
    for [values] in iter_numbers(evidence.weights):
        stats |= ColumnStats.from_array(values)
    if faults := weight_faults(stats, label.rows.count):
        raise NotComputedError(*faults)
    return evidence.weights.name


def _streamed_clusters(evidence: Evidence, label: StreamedColumn) -> tuple[dict[str, str], list[str]]:
    """Return the column of each way of clusters, days first, and all faults."""
    columns, faults = cluster_columns(evidence)
    for name, column in columns.items():
        if isinstance(column, MissingEvidence):
            faults.append(missing_cluster_fault(name, column))
        elif not _is_of_same_rows(column, label):
            faults.append(f"the clusters by {name} are not those of the labels' rows")
    return ({} if faults else {name: column.name for name, column in columns.items()}), faults


def iter_numbers(*columns: object, prediction: PredictionType | None = None) -> Iterator[list[FloatArray]]:
    """Yield batches of columns of the same rows, streamed ones or whole ones in memory: predictions, or (n,)."""
    streamed = [column for column in columns if isinstance(column, StreamedColumn)]
    if not streamed:
        yield [_to_numbers(column, prediction) for column in columns]
        return
    if not all(_is_of_same_rows(column, streamed[0]) for column in columns):
        raise NotComputedError("some scores are in memory, others are read in batches")
    for numbers, _ in streamed[0].rows.batches([column.name for column in streamed]):
        yield [
            _to_numbers(_select(values, column), prediction) for values, column in zip(numbers, streamed, strict=True)
        ]


def scan_scores(column: object) -> tuple[ColumnStats, ScoreBins]:
    """Return what is checked of scores (n,), and bins for them: one pass."""
    count = column.rows.count if isinstance(column, StreamedColumn) else np.size(column)  # type: ignore[arg-type]
    stride = max(-(-count // SAMPLE_ROWS), 1)
    stats, sample = NO_VALUES, [np.empty(0)]
    for [scores] in iter_numbers(column):
        sample.append(_take_sample(scores, stats.size, stride))
        stats |= ColumnStats.from_array(scores)
    return stats, ScoreBins.from_sample(np.concatenate(sample))


def count_scores(bins: ScoreBins, column: object, days: object = None) -> NDArray[np.int64]:
    """Return the rows of scores (n,) in each bin, by day (days, bins): one pass. Without days, all are of one."""
    coder, is_named = NameCodes("days"), True
    counts: list[NDArray[np.int64]] = []
    if isinstance(column, StreamedColumn) and _is_of_same_rows(days, column):
        batches: Iterable[tuple[Any, Any]] = column.rows.batches([column.name], [days.name])
    else:
        batches = ((numbers, []) for numbers in iter_numbers(column))
    for [values], texts in batches:
        scores = _to_numbers(_select(values, column) if isinstance(column, StreamedColumn) and texts else values)
        codes = coder.encode(texts[0]) if texts else np.zeros(scores.size, dtype=np.int64)
        is_named &= bool((codes >= 0).all())
        counts += [np.zeros(bins.count, dtype=np.int64) for _ in range(max(len(coder), 1) - len(counts))]
        places = bins.find(scores)
        for day in np.unique(codes):
            counts[day] += np.bincount(places[codes == day], minlength=bins.count)
    by_day = np.array(counts)
    return by_day if is_named else by_day.sum(axis=0, keepdims=True)


def sample_evidence(evidence: Evidence, max_rows: int) -> tuple[Evidence, int]:
    """Return the evidence with a sample of its streamed rows in memory, and how many rows one of it stands for.

    It is for plots. 1 means that it has all rows. The sample has about `max_rows` rows, and the same from any batches.
    """
    strides, sample_predictions = [1], partial(_sample_numbers, prediction=evidence.prediction_type)

    def load(column: Any, sample: Callable[[StreamedColumn, int], Any] = _sample_numbers) -> Any:
        if not isinstance(column, StreamedColumn):
            return column
        strides.append(max(-(-column.rows.count // max_rows), 1))
        return sample(column, strides[-1])

    def load_each(columns: Any, sample: Callable[[StreamedColumn, int], Any]) -> Any:
        if not isinstance(columns, Mapping):
            return columns
        return {name: load(column, sample) for name, column in columns.items()}

    loaded = replace(
        evidence,
        label=load(evidence.label),
        candidate=load(evidence.candidate, sample_predictions),
        champion=load(evidence.champion, sample_predictions),
        recent_predictions=load(evidence.recent_predictions, sample_predictions),
        clusters=load_each(evidence.clusters, _sample_texts),
        groups=load_each(evidence.groups, _sample_texts),
        baselines=load_each(evidence.baselines, sample_predictions),
        weights=load(evidence.weights),
        horizons=load(evidence.horizons),
        scales=load(evidence.scales),
    )
    return loaded, max(strides)


def _sample_numbers(column: StreamedColumn, stride: int, prediction: PredictionType | None = None) -> FloatArray:
    first, parts = 0, list[FloatArray]()
    for [values] in iter_numbers(column, prediction=prediction):
        parts.append(_take_sample(values, first, stride))
        first += len(values)
    return np.concatenate(parts) if parts else np.empty(0)


def _take_sample(values: FloatArray, first: int, stride: int) -> FloatArray:
    """Return the rows of a batch that `_is_sampled` chooses, copied, since a view would keep all of them."""
    return values[_is_sampled(first, len(values), stride)].copy()


def _is_sampled(first: int, count: int, stride: int) -> NDArray[np.bool_]:
    """Return which rows (count,), the first of which has the number `first`, are of a sample of one in `stride`.

    By a hash of the number, not every `stride`-th: rows of a forecast, sorted by series and horizon, would be of a few
    horizons only. The hash is the output function of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA, 453-472).
    """
    number = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    sampled: NDArray[np.bool_] = (number ^ (number >> np.uint64(31))) % np.uint64(stride) == 0
    return sampled


def _sample_texts(column: StreamedColumn, stride: int) -> list[str | None]:
    first, texts = 0, list[str | None]()
    for _, [batch] in column.rows.batches([], [column.name]):
        names = [*batch.names, None]  # the last one for the code -1
        texts += [names[code] for code in batch.codes[_is_sampled(first, len(batch.codes), stride)].tolist()]
        first += len(batch.codes)
    return texts
