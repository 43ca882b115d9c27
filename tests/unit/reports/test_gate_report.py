"""A page for every verdict, whatever the evidence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    CustomGate,
    Evidence,
    FairnessGate,
    Gate,
    GateResult,
    InputSignature,
    MissingEvidence,
    NoChampion,
    OnlineEqualsOfflineGate,
    OnlineSample,
    PredictionDriftGate,
    ServingGate,
    SignatureGate,
    SliceResult,
    ThresholdGate,
    decide_verdict,
    judge_evidence,
)
from evergreen.reports import AlphaBudget, GateReportContext, render_gate_report

pytestmark = pytest.mark.unit

ABOUT = GateReportContext(
    model="flight_delay",
    description="Probability that a flight arrives late.",
    owner="somebody@example.org",
    candidate_fingerprint="3f9c2b71aa90c4e2" * 4,
    candidate_version=None,
    champion_version="7",
    as_of=date(2013, 3, 1),
    holdout=(date(2013, 2, 22), date(2013, 3, 1)),
    holdout_rows=1_500,
    run_id="scheduled__2013-03-01",
    run_reason="scheduled",
    input_fingerprints={"training set": "aa11" * 16},
    alpha_budgets=[AlphaBudget("auc_against_champion", 0.01, 0.05)],
)
CLASSES: tuple[Gate, ...] = (
    ThresholdGate(metric="auc", at_least=0.6),
    AgainstChampionGate(metric="auc", must_be="better"),
    BySliceGate(metric="auc", group_by="carrier", margin=0.05),
    FairnessGate(group_by="carrier", cut=0.5, at_most=0.2),
    BaselineGate(metric="log_loss", resamples=200),
    ServingGate(quantity="single_p99_ms", at_most=20),
    SignatureGate(),
    OnlineEqualsOfflineGate(),
    PredictionDriftGate(at_most=0.5),
    CustomGate(function="evergreen_models.flight_delay.gates:night_flights"),
)
AMOUNTS: tuple[Gate, ...] = (
    ThresholdGate(metric="rmse", at_most=20),
    AgainstChampionGate(metric="mae", must_be="not_worse", margin=1, resamples=200),
    BySliceGate(metric="mae", group_by="carrier", margin=2, resamples=200),
)


class Page(HTMLParser):
    """Raises at what is not closed; collects text, tags and attributes."""

    void = frozenset({"meta", "br", "wbr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void and tag not in ("li", "p"):
            while self.open[-1] in ("li", "p"):
                self.open.pop()
        assert self.open.pop() == tag
        self.text += " " if tag == "td" else ""

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def said(self) -> str:
        return " ".join(self.text.split())


def evidence(n: int = 1_500, **changes: Any) -> Evidence:
    random = np.random.default_rng(7)
    label = (random.random(n) < 0.3).astype(float)
    carrier = random.choice(["AA", "B6", "rare"], n, p=[0.5, 0.48, 0.02])

    def scores(noise: float) -> Any:
        return 1 / (1 + np.exp(-random.normal(1.5 * label - 1, noise)))

    made = Evidence(
        label=label,
        candidate=scores(1.0),
        champion=scores(2.5),
        days=ABOUT.holdout,
        groups={"carrier": list(carrier)},
        baselines={"prior": np.full(n, 0.3)},
        recent_predictions=scores(1.0)[:300],
        serving_costs={"single_p99_ms": 12.5, "size_mib": 3.1},
        input_signature=InputSignature((("hour", "long"),), (("hour", "long"),)),
        online_sample=OnlineSample(600, 0),
    )
    return replace(made, **changes)


def amounts(n: int = 1_500, **changes: Any) -> Evidence:
    random = np.random.default_rng(8)
    label = random.gamma(2, 15, n)
    carrier = list(random.choice(["AA", "B6"], n))
    candidate, champion = label + random.normal(0, 10, n), label + random.normal(3, 12, n)
    return Evidence(label, candidate, champion, ABOUT.holdout, {"carrier": carrier}, **changes)


def page(of: Evidence, gates: tuple[Gate, ...] = CLASSES, about: GateReportContext = ABOUT) -> Page:
    return Page(render_gate_report(about, gates, judge_evidence(gates, of), of))


@cache
def good() -> str:
    return render_gate_report(ABOUT, CLASSES, judge_evidence(CLASSES, evidence()), evidence())


def test_good_evidence_shows_everything() -> None:
    shown = Page(good())
    # The own gate's module is not there: all else passes.
    assert "of 10 gates for candidate 3f9c2b71aa90, 1 could not be computed" in shown.said
    assert shown.tags.count("svg") == 5
    assert shown.said.count("✓ passed") >= 9
    for text in ("candidate AUC 0.8", "champion AUC 0.6", "Calibration", "label 1", "rare (", "12.5", "600"):
        assert text in shown.said, text
    assert "could not be drawn" not in shown.said
    assert ("aria-label", "20.0 % of the budget") in shown.attributes


def test_a_verdict_to_promote_says_so() -> None:
    shown = page(evidence(), CLASSES[:-1])
    assert "✓ All 9 gates passed: candidate 3f9c2b71aa90 may replace version 7." in shown.said
    assert ("class", "finding yes") in shown.attributes


def test_the_first_champion() -> None:
    shown = page(evidence(champion=NoChampion()), CLASSES[:-1], replace(ABOUT, champion_version=None, alpha_budgets=()))
    assert "may become the first champion" in shown.said
    assert "there is no champion yet" in shown.said
    assert "champion AUC" not in shown.said
    assert shown.tags.count("svg") == 4  # no comparison by slice


def test_what_is_missing_is_named_with_its_problem() -> None:
    gone: dict[str, Any] = {
        "champion": MissingEvidence("champion <b>is gone</b>"),
        "groups": {"carrier": MissingEvidence("groups <b>is gone</b>")},
        "baselines": {"prior": MissingEvidence("baselines <b>is gone</b>")},
        **{
            name: MissingEvidence(f"{name} <b>is gone</b>")
            for name in ("recent_predictions", "serving_costs", "input_signature", "online_sample")
        },
    }
    shown = page(evidence(**gone))
    for name in gone:
        # Above, in the table, and among what is missing; as text, not as bold.
        assert shown.said.count(f"{name} <b>is gone</b>") >= 3, name
    assert "could not be drawn" not in shown.said


def test_amounts_show_errors_instead_of_curves() -> None:
    shown = page(amounts(), AMOUNTS)
    assert "Residuals" in shown.said
    assert "candidate: predicted against actual" in shown.said
    assert "ROC" not in shown.said
    assert "could not be drawn" not in shown.said


BAD: dict[str, dict[str, Any]] = {
    "NaN scores": {"candidate": np.full(1_500, np.nan)},
    "some NaN scores": {"candidate": np.where(np.arange(1_500) % 2, np.nan, 0.3 + np.arange(1_500) / 5_000)},
    "constant scores": {"candidate": np.full(1_500, 0.2), "champion": np.full(1_500, 0.2)},
    "one class": {"label": np.zeros(1_500)},
    "labels of amounts": {"label": np.arange(1_500.0)},
    "text": {"label": ["late"] * 1_500},
    "another length": {"candidate": [0.2, 0.3]},
    "empty": {
        "label": [],
        "candidate": [],
        "champion": [],
        "groups": {"carrier": []},
        "recent_predictions": [],
    },
    "scores beyond all bounds": {
        "candidate": np.full(1_500, 1e308),
        "champion": np.linspace(-1e9, 1e9, 1_500),
    },
    "scores that hardly differ": {
        "candidate": 0.5 + np.arange(1_500) * 1e-17,
        "recent_predictions": [0.5] * 300,
    },
    "NaN in what was measured": {
        "serving_costs": {"single_p99_ms": float("nan")},
        "recent_predictions": [float("nan")] * 300,
    },
    "nothing compared online": {"online_sample": OnlineSample(0, 0)},
    "another type": {
        "groups": None,
        "baselines": None,
        "serving_costs": [1],
        "input_signature": "hour",
        "online_sample": 3,
    },
    "a text measured": {
        "serving_costs": {"single_p99_ms": "<b>fast</b>"},
        "input_signature": InputSignature((), None),
    },  # type: ignore[arg-type]
    "None": {"label": None, "candidate": None, "champion": None, "recent_predictions": None},
}
OF_AMOUNTS = ("some NaN scores", "constant scores", "one class", "empty", "scores beyond all bounds")


@pytest.mark.parametrize(
    ("gates", "changes"),
    [
        *(pytest.param(CLASSES, changes, id=name) for name, changes in BAD.items()),
        *(pytest.param(AMOUNTS, BAD[name], id=f"amounts, {name}") for name in OF_AMOUNTS),
    ],
)
def test_bad_evidence_is_shown_as_what_it_is(gates: tuple[Gate, ...], changes: Mapping[str, Any]) -> None:
    of = evidence(**({"recent_predictions": MissingEvidence("made later")} | dict(changes)))
    verdict = judge_evidence(gates, of)
    shown = Page(render_gate_report(ABOUT, gates, verdict, of))
    assert "could not be drawn" not in shown.said
    for record in verdict.results:
        assert record.outcome == "passed" or shown.said.count(" ".join(record.reason.split())) >= 2


def test_three_rows() -> None:
    rows = slice(0, 3)
    of = evidence(label=[0, 1, 1], groups={"carrier": ["AA", None, "B6"]}, baselines={"prior": [0.5] * 3})
    of = replace(of, candidate=np.asarray(of.candidate)[rows], champion=np.asarray(of.champion)[rows])
    shown = page(of)
    assert "3 rows are too few" in shown.said
    assert shown.tags.count("svg") >= 2  # three rows can be drawn all the same


def test_a_drawing_that_fails_leaves_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from evergreen.reports import plots

    def fails(*_: object) -> str:
        raise OverflowError("too wide")

    monkeypatch.setattr(plots, "plot_binary_predictions", fails)
    assert "this could not be drawn: OverflowError: too wide" in page(evidence()).said


def test_a_verdict_without_gates_and_gates_without_a_record() -> None:
    of = evidence()
    shown = Page(render_gate_report(ABOUT, CLASSES, decide_verdict([]), of))
    assert "no gates: nothing speaks for the candidate" in shown.said
    stray = GateResult(
        gate="gone", outcome="failed", candidate=1, threshold=2, rows=3, interval=(0, 1), reason="it is so"
    )
    shown = Page(render_gate_report(ABOUT, (), decide_verdict([stray]), of))
    assert "of the only gate for candidate 3f9c2b71aa90, 1 failed" in shown.said
    assert "not in the spec" in shown.said


def test_the_page_is_whole_in_itself() -> None:
    html = good()
    for reference in ("<script", "http", "//", "@import", "<link", "<img", "url(data"):
        assert reference not in html, reference
    ids = [value for name, value in Page(html).attributes if name == "id"]
    used = [value for name, value in Page(html).attributes if name == "href" and value]
    assert {value.removeprefix("#") for value in used} <= set(ids)
    assert html.count('<svg role="img" aria-label="') == html.count("<svg") == 5


def test_names_are_text() -> None:
    names = ["<script>alert(1)</script>", '$x$ & "y"', "línea\nnueva\x00", "長い" * 40]
    parts = tuple(
        SliceResult(name=name, rows=200, candidate=0.5 + 0.1 * n, is_judged=True) for n, name in enumerate(names)
    )
    gate = FairnessGate(metric="auc", group_by="carrier", at_most=0.1)
    record = GateResult(
        gate=gate.name,
        outcome="failed",
        candidate=0.2,
        threshold=0.1,
        rows=400,
        slices=parts,
        reason="<b>much</b>",
    )
    about = replace(ABOUT, description="a <i>model</i>", owner='"><script>', run_id="</title>")
    html = render_gate_report(about, (gate,), decide_verdict([record]), evidence())
    assert "<script" not in html
    shown = Page(html)
    assert "<b>much</b>" in shown.said
    assert '$x$ & "y"' in shown.said
    assert "could not be drawn" not in shown.said


def test_many_slices_are_cut_to_the_worst() -> None:
    parts = tuple(
        SliceResult(
            name=f"s{n:03}",
            rows=200,
            candidate=0.5,
            champion=0.5 + n / 1000,
            interval=(-1, 1),
            is_judged=True,
        )
        for n in range(100)
    )
    gate = BySliceGate(metric="auc", group_by="airport", margin=0.2)
    record = GateResult(
        gate=gate.name,
        outcome="passed",
        candidate=0.5,
        threshold=-0.2,
        rows=20_000,
        slices=parts,
        reason="fine",
    )
    shown = Page(render_gate_report(ABOUT, (gate,), decide_verdict([record]), evidence()))
    assert "s099 (200 rows)" in shown.said
    assert "s001 (200 rows)" not in shown.said
    assert "60 more are not shown" in shown.said


def test_the_signatures_differences_and_the_first_online_one_are_shown() -> None:
    shown = page(
        evidence(
            input_signature=InputSignature((("hour", "long"), ("miles", "double")), (("hour", "string"),)),
            online_sample=OnlineSample(600, 3, "origin EWR: wind 3.1 offline, 2.9 online"),
        )
    )
    assert "hour long hour string miles double –" in shown.said
    assert "3 of 600 compared values differ (0.5 %); the first: origin EWR: wind 3.1 offline" in shown.said


def test_equal_inputs_give_equal_bytes() -> None:
    assert render_gate_report(ABOUT, CLASSES, judge_evidence(CLASSES, evidence()), evidence()) == good()


def test_a_large_holdout_makes_a_small_page_soon() -> None:
    of = evidence(100_000, recent_predictions=np.random.default_rng(5).random(50_000))
    verdict = judge_evidence(CLASSES[:1], of)
    good()  # what is loaded once is not counted
    start = time.process_time()
    html = render_gate_report(ABOUT, CLASSES, verdict, of)
    assert time.process_time() - start < 3
    assert len(html.encode()) < 1_000_000
