"""Slices of gates that have many are in the lake, under their hash; the ledger entry stays small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evergreen.errors import InputsChangedError
from evergreen.gates import Evidence, FairnessGate, GateResult, NoChampion, SliceResult, decide_verdict, judge_evidence
from evergreen.gates.verdict import MAX_LISTED, NotComputedError
from evergreen.lake import datasets
from evergreen.ledger import VerdictRecorded
from evergreen.promotion.slices import MAX_ENTRY_SLICES, attach_slices, detach_slices
from support.ledger_events import verdict_event

pytestmark = pytest.mark.unit


def gate_result(gate: str, slices: int) -> GateResult:
    parts = tuple(
        SliceResult(name=f"{gate} {n}", rows=200, candidate=1 / (n + 3), interval=(-0.1, 0.1), is_judged=True)
        for n in range(slices)
    )
    return GateResult(gate=gate, outcome="passed", candidate=0.7, threshold=0.6, rows=9, slices=parts, reason="so")


FEW, MANY = gate_result("few", MAX_ENTRY_SLICES), gate_result("many", 4000)


def record(home: Path, *results: GateResult) -> VerdictRecorded:
    dataset = datasets.open_dataset("verdicts/flight_delay")
    verdict, files = detach_slices(decide_verdict(results), dataset)
    return verdict_event(10).model_copy(update={"verdict": verdict, "evidence": files})


def test_few_slices_stay_in_the_entry(home: Path) -> None:
    event = record(home, FEW)
    assert event.verdict == decide_verdict([FEW])
    assert event.evidence == {}
    assert attach_slices(event) is event


def test_many_slices_are_stored_and_read_back(home: Path) -> None:
    event = record(home, MANY, FEW)
    assert [(len(r.slices), r.stored_slices) for r in event.verdict.results] == [(0, 4000), (MAX_ENTRY_SLICES, 0)]
    assert len(event.model_dump_json()) < 10_000
    stored = VerdictRecorded.model_validate_json(event.model_dump_json())
    assert attach_slices(stored).verdict == decide_verdict([MANY, FEW])
    assert record(home, MANY, FEW) == event
    [file] = (home / "lake/verdicts/flight_delay").iterdir()
    assert datasets.lake_path(event.evidence["slices"]) == file


def test_changed_or_missing_slices_are_refused(home: Path) -> None:
    event = record(home, MANY)
    file = datasets.lake_path(event.evidence["slices"])
    file.write_bytes(file.read_bytes().replace(b"many 7", b"many 8", 1))
    with pytest.raises(InputsChangedError, match=r"slices-\w+.json: was changed after the verdict was recorded"):
        attach_slices(event)
    file.unlink()
    with pytest.raises(InputsChangedError, match=r"slices-\w+.json: the slices of a verdict are missing"):
        attach_slices(event)


def test_reason_lists_the_first_of_many_faults() -> None:
    faults = [f"slice {n} has no auc" for n in range(4000)]
    assert str(NotComputedError(*faults[:MAX_LISTED])) == "; ".join(faults[:MAX_LISTED])
    assert str(NotComputedError(*faults)).endswith("slice 9 has no auc; and 3,990 more")


def test_reason_of_a_gate_with_many_faulty_groups_is_short() -> None:
    labels = np.tile([0.0, 1.0], 4000)
    evidence = Evidence(
        label=labels,
        candidate=np.full(8000, np.inf),
        champion=NoChampion(),
        groups={"carrier": [f"c{n // 4}" for n in range(8000)]},
    )
    gate = FairnessGate(metric="log_loss", group_by="carrier", at_most=0.1, min_rows=4)
    assert len(judge_evidence([gate], evidence).reason) < 1000
