"""Rows that are more than a process keeps in memory: what gates need of them, from passes over batches.

Metrics that are a ratio of sums, such as log loss or the root of a mean square, need the sums by cluster and group, in
one pass, and are as exact as sums are. Ranks need three: for bins of scores, for counts in these bins, and for
placements by cluster (`evergreen.gates.score_bins`).

Memory grows with the names of clusters and groups, not with rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
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
    ratio_way,
)
from evergreen.gates.computation import (
    NO_VALUES,
    ColumnStats,
    finite_or_none,
    label_faults,
    score_faults,
    to_float_array,
)
from evergreen.gates.evidence import Evidence, EvidenceRows, MissingEvidence, StreamedColumn, TextBatch
from evergreen.gates.judged_rows import JudgedRows, find_groups
from evergreen.gates.metrics import FloatArray, RatioMetric, resolve_metric
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
from evergreen.spec.gates import BySliceGate, FairnessGate, MetricGate, PairedComparisonGate

# Of all groups together: with more groups, each has fewer bins.
_MAX_CELLS = 2**20
_MAX_NAMES = 2**20
_MAX_KEYS = 2**21
_NAME_BITS = 20

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

    stats: dict[str, ColumnStats]
    unnamed: dict[str, int]
    by_way: list[KeyedSums]
    clusters: tuple[int, ...] = ()
    """The number of clusters by each way."""
    group_codes: dict[str, int] = field(default_factory=dict)
    """The code of each group, in order of names."""
    by_group: KeyedSums = field(default_factory=KeyedSums)
    samples: dict[str, list[FloatArray]] = field(default_factory=dict)


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

    def __post_init__(self) -> None:
        metric = resolve_metric(self.gate)
        self.metric = metric if isinstance(metric, RatioMetric) else None
        self.coders = [NameCodes(f"values of {name}") for name in self.ways]
        self.group_coder = NameCodes("groups") if self.group else None
        self.ways_sums = [KeyedSums() for _ in self.ways]
        self.pairs_sums = KeyedSums() if len(self.ways) == 2 else None

    @property
    def groups(self) -> int:
        """The number of groups, that of rows in no group included."""
        return 1 + (0 if self.group_coder is None else len(self.group_coder))

    @cached_property
    def counts(self) -> _Counts:
        """Make the first pass."""
        references = [name for name in self.scorers if name != "candidate"]
        stats = dict.fromkeys(("", *self.scorers), NO_VALUES)
        counts = _Counts(stats, dict.fromkeys(self.ways, 0), self.ways_sums)
        stride, first = -(-self.rows.count // SAMPLE_ROWS), 0
        for label, scores, ways, groups in self._batches():
            for name, values in {"": label, **scores}.items():
                counts.stats[name] |= ColumnStats.from_array(values)
            for name, codes in zip(self.ways, ways, strict=True):
                counts.unnamed[name] += int(np.count_nonzero(codes < 0))
            sums: list[NDArray[Any]] = [np.ones(label.size), label == 1]
            if references:
                assert isinstance(self.gate, PairedComparisonGate)
                sums += [is_differing(self.gate, scores["candidate"], scores[name]) for name in references]
            terms: list[FloatArray] = []
            if self.metric:
                with np.errstate(all="ignore"):  # of invalid rows, which are faults
                    terms = [part for score in scores.values() for part in self.metric.terms(label, score)]
                self._add_by_cluster(groups, ways, terms if references else [])
            else:
                for name, score in scores.items():
                    counts.samples.setdefault(name, []).append(_take_every(score, first, stride))
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
        for label, scores, _, groups in self._batches():
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
        for label, scores, ways, groups in self._batches():
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
            self.pairs_sums.add([groups, *named], [self.groups, *sizes], columns)
            if self.pairs_sums.is_full:
                self.pairs_sums = None  # then they are not subtracted, and bounds are wider

    def _batches(self) -> Iterator[tuple[FloatArray, dict[str, FloatArray], list[Codes], Codes]]:
        """Yield labels, scores by scorer, codes of clusters, and the number of the group, from 1 on, (n,) each."""
        texts = [*self.ways.values(), *([self.group] if self.group else [])]
        coders = [*self.coders, *([] if self.group_coder is None else [self.group_coder])]
        for numbers, names in self.rows.batches([self.label, *self.scorers.values()], texts):
            label, *scores = map(_to_numbers, numbers)
            codes = [coder.encode(batch) for coder, batch in zip(coders, names, strict=True)]
            groups = codes.pop() + 1 if self.group else np.zeros(label.size, dtype=np.int64)
            yield label, dict(zip(self.scorers, scores, strict=True)), codes, groups


def _to_numbers(values: object) -> FloatArray:
    array = to_float_array(values)
    if array is None:
        raise NotComputedError("labels or scores are not one row of numbers")
    return array


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
        if ":" in gate.metric:
            rows = label.rows.count
            text = f"{gate.metric} takes all labels and scores at once, and {rows:,} rows are read in batches"
            raise NotComputedError(f"{text}: take a built-in metric, or {exact_rows_fix(rows)}")
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
        return cls(RowPasses(gate, label.rows, label.name, names, ways, group), problems, group_problem)

    @property
    def size(self) -> int:
        return self.passes.rows.count if self.group is None else int(self._count(0))

    @property
    def clusters(self) -> StreamedClusters:
        names = tuple(self.passes.ways)
        if self.group is None:
            return StreamedClusters(names, self.passes.counts.clusters)
        return StreamedClusters(names, tuple(self._cluster_sums(way)[0].size for way in range(len(names))))

    def faults(self, *references: str, allow_constant: bool = False) -> list[str]:
        stats = self.passes.counts.stats
        faults = label_faults(self.passes.gate, stats[""])
        for name in ("candidate", *references):
            constant = allow_constant and name in references
            faults += score_faults(self.passes.gate, name, stats[name], stats[""], constant)
        return faults

    def cluster_faults(self) -> list[str]:
        if self.cluster_problems:
            return self.cluster_problems
        unnamed = self.passes.counts.unnamed
        faults = (unnamed_cluster_fault(name, count, self.passes.rows.count) for name, count in unnamed.items())
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
            first = 1 + len(passes.scorers) + 2 * place  # after rows, labels of 1, and differing rows
            numerator, denominator = self._count(first), self._count(first + 1)
            value = finite_or_none(passes.metric.from_sums(np.array([numerator]), np.array([denominator]))[0])
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
            return ratio_way(gate, metric, (sums[0], sums[1]), (sums[2], sums[3]), gain)

        ways = [one_way(self._cluster_sums(way)[1]) for way in range(len(self.passes.ways))]
        pairs = (lambda: one_way(self._pair_sums())) if self.passes.pairs_sums else None
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
        pairs = (lambda: one_way(self._pair_sums())) if self.passes.pairs_sums else None
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

    def _pair_sums(self) -> FloatArray:
        assert self.passes.pairs_sums
        return self._of_group(*self.passes.pairs_sums.result(), parts=3)[1]

    def _of_group(self, keys: Codes, sums: FloatArray, parts: int) -> tuple[Codes, FloatArray]:
        group = self.group or 0  # a gain of all rows is not asked for where there are groups
        first, end = np.searchsorted(split_key(keys, 0, parts), [group, group + 1])
        return keys[first:end], sums[:, first:end]


def _is_of_same_rows(column: object, label: object) -> TypeGuard[StreamedColumn]:
    return isinstance(column, StreamedColumn) and isinstance(label, StreamedColumn) and column.rows is label.rows


def _streamed_clusters(evidence: Evidence, label: StreamedColumn) -> tuple[dict[str, str], list[str]]:
    """Return the column of each way of clusters, in order of names, and all faults."""
    columns, faults = cluster_columns(evidence)
    for name, column in columns.items():
        if isinstance(column, MissingEvidence):
            faults.append(missing_cluster_fault(name, column))
        elif not _is_of_same_rows(column, label):
            faults.append(f"the clusters by {name} are not those of the labels' rows")
    return ({} if faults else {name: columns[name].name for name in sorted(columns)}), faults


def iter_numbers(*columns: object) -> Iterator[list[FloatArray]]:
    """Yield batches of columns (n,) of the same rows, streamed ones or whole ones in memory."""
    streamed = [column for column in columns if isinstance(column, StreamedColumn)]
    if not streamed:
        yield [_to_numbers(column) for column in columns]
        return
    if not all(_is_of_same_rows(column, streamed[0]) for column in columns):
        raise NotComputedError("some scores are in memory, others are read in batches")
    for numbers, _ in streamed[0].rows.batches([column.name for column in streamed]):
        yield [_to_numbers(values) for values in numbers]


def scan_scores(column: object) -> tuple[ColumnStats, ScoreBins]:
    """Return what is checked of scores (n,), and bins for them: one pass."""
    count = column.rows.count if isinstance(column, StreamedColumn) else np.size(column)  # type: ignore[arg-type]
    stride = max(-(-count // SAMPLE_ROWS), 1)
    stats, sample = NO_VALUES, [np.empty(0)]
    for [scores] in iter_numbers(column):
        sample.append(_take_every(scores, stats.size, stride))
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
        scores = _to_numbers(values)
        codes = coder.encode(texts[0]) if texts else np.zeros(scores.size, dtype=np.int64)
        is_named &= bool((codes >= 0).all())
        counts += [np.zeros(bins.count, dtype=np.int64) for _ in range(max(len(coder), 1) - len(counts))]
        places = bins.find(scores)
        for day in np.unique(codes):
            counts[day] += np.bincount(places[codes == day], minlength=bins.count)
    by_day = np.array(counts)
    return by_day if is_named else by_day.sum(axis=0, keepdims=True)


def sample_evidence(evidence: Evidence, max_rows: int) -> tuple[Evidence, int]:
    """Return the evidence with an even sample of its streamed rows in memory, and how many rows one of it stands for.

    It is for plots. 1 means that it has all rows.
    """
    strides = [1]

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
        candidate=load(evidence.candidate),
        champion=load(evidence.champion),
        recent_predictions=load(evidence.recent_predictions),
        clusters=load_each(evidence.clusters, _sample_texts),
        groups=load_each(evidence.groups, _sample_texts),
        baselines=load_each(evidence.baselines, _sample_numbers),
    )
    return loaded, max(strides)


def _sample_numbers(column: StreamedColumn, stride: int) -> FloatArray:
    first, parts = 0, [np.empty(0)]
    for [values] in iter_numbers(column):
        parts.append(_take_every(values, first, stride))
        first += values.size
    return np.concatenate(parts)


def _take_every(values: FloatArray, first: int, stride: int) -> FloatArray:
    """Return the rows whose number is a multiple of `stride`, copied, since a view would keep all of them."""
    return values[-first % stride :: stride].copy()


def _sample_texts(column: StreamedColumn, stride: int) -> list[str | None]:
    first, texts = 0, list[str | None]()
    for _, [batch] in column.rows.batches([], [column.name]):
        names = [*batch.names, None]  # the last one for the code -1
        texts += [names[code] for code in batch.codes[-first % stride :: stride].tolist()]
        first += len(batch.codes)
    return texts
