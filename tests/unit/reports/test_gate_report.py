"""The gate report renders for every verdict, whatever the evidence."""

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
from scipy.special import zeta

from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    ChurnGate,
    CustomGate,
    Evidence,
    FairnessGate,
    Gate,
    GateResult,
    InputSignature,
    LabelledGate,
    Look,
    MissingEvidence,
    NoChampion,
    OnlineEqualsOfflineGate,
    OnlineSample,
    PredictionDriftGate,
    ServingGate,
    SignatureGate,
    SliceResult,
    ThresholdGate,
    Verdict,
    decide_verdict,
    judge_evidence,
)
from evergreen.gates.alpha_spending import AlphaSpend, EarlierComparison
from evergreen.ledger import VerdictRecorded
from evergreen.reports import gate_report
from evergreen.reports.gate_report import render_gate_report
from evergreen.spec.model import ModelSpec
from evergreen.spec.prediction_type import PredictionType
from evergreen.window import RunReason
from support.clusters import day_clusters
from support.ledger_events import content, model_files
from support.streamed_evidence import stream

pytestmark = pytest.mark.unit

HOLDOUT = (date(2013, 2, 22), date(2013, 3, 1))
FORECAST = PredictionType(kind="forecast")
BINARY_GATES: tuple[Gate, ...] = (
    ThresholdGate(metric="auc", at_least=0.6),
    AgainstChampionGate(metric="auc", must_be="better", guarantee="lifetime"),
    BySliceGate(metric="auc", group_by="carrier", margin=0.05),
    FairnessGate(group_by="carrier", cut=0.5, at_most=0.2),
    BaselineGate(metric="log_loss"),
    ServingGate(quantity="single_p99_ms", at_most=20),
    SignatureGate(),
    OnlineEqualsOfflineGate(),
    PredictionDriftGate(at_most=0.5),
    CustomGate(function="evergreen_models.flight_delay.gates:night_flights"),
)
CONTINUOUS_GATES: tuple[Gate, ...] = (
    ThresholdGate(metric="rmse", at_most=20),
    AgainstChampionGate(metric="mae", must_be="not_worse", margin=1),
    BySliceGate(metric="mae", group_by="carrier", margin=2),
)

MODEL = ModelSpec(
    name="flight_delay",
    owner="somebody@example.org",
    description="Probability that a flight arrives late.",
    features="flight_delay",
    feature_service="flight_delay",
    schedule="0 0 * * 1",
    gates=BINARY_GATES,
)
EARLIER = EarlierComparison(
    (date(2013, 2, 1), date(2013, 2, 8)),
    (AlphaSpend("auc_against_champion", 0.005, False), AlphaSpend("auc_against_champion", 0.02, True)),
)


class Page(HTMLParser):
    """Parses a page, collects text, tags and attributes, and raises if a tag is not closed."""

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
    def words(self) -> str:
        return " ".join(self.text.split())


def evidence(n: int = 1_500, **changes: Any) -> Evidence:
    random = np.random.default_rng(7)
    label = (random.random(n) < 0.3).astype(float)
    carrier = random.choice(["AA", "B6", "rare"], n, p=[0.5, 0.48, 0.02])

    def scores(noise: float) -> Any:
        return 1 / (1 + np.exp(-random.normal(1.5 * label - 1, noise)))

    defaults = Evidence(
        label=label,
        candidate=scores(1.0),
        champion=scores(2.5),
        days=HOLDOUT,
        clusters=day_clusters(n, 14),
        groups={"carrier": list(carrier)},
        baselines={"prior": np.full(n, 0.3)},
        recent_predictions=scores(1.0)[:300],
        serving_costs={"single_p99_ms": 12.5, "size_mib": 3.1},
        input_signature=InputSignature((("hour", "long"),), (("hour", "long"),)),
        online_sample=OnlineSample(600, 0),
    )
    return replace(defaults, **changes)


def continuous_evidence(n: int = 1_500, **changes: Any) -> Evidence:
    random = np.random.default_rng(8)
    label = random.gamma(2, 15, n)
    carrier = list(random.choice(["AA", "B6"], n))
    candidate, champion = label + random.normal(0, 10, n), label + random.normal(3, 12, n)
    return Evidence(
        label,
        candidate,
        champion,
        HOLDOUT,
        **{"clusters": day_clusters(n, 14), "groups": {"carrier": carrier}, **changes},
    )


def render(gates: tuple[Gate, ...], verdict: Verdict, data: Evidence, **changes: Any) -> str:
    """Return the page; `changes` are of the model, or of the event."""
    event = VerdictRecorded(
        run="scheduled__2013-03-01",
        run_reason=RunReason.SCHEDULE,
        as_of="2013-03-01",
        holdout=tuple(map(str, HOLDOUT)),
        days=HOLDOUT,
        candidate_fingerprint="3f9c2b71aa90c4e2" * 4,
        candidate_files=model_files(1),
        candidate_inputs=("distance",),
        champion_version="7",
        champion_content=content(7),
        verdict=verdict,
        fingerprints={"training_set": "aa11" * 16, "evaluation": "bb22" * 16},
    )
    of_model = {name: value for name, value in changes.items() if name in ModelSpec.model_fields}
    of_event = {name: value for name, value in changes.items() if name not in of_model}
    model = MODEL.model_copy(update={"gates": gates, **of_model})  # not validated: a model without gates, too
    return render_gate_report(model, event.model_copy(update=of_event), data, [EARLIER])


def page(data: Evidence, gates: tuple[Gate, ...] = BINARY_GATES, **changes: Any) -> Page:
    return Page(render(gates, judge_evidence(gates, data), data, **changes))


@cache
def good_page() -> str:
    return render(BINARY_GATES, judge_evidence(BINARY_GATES, evidence()), evidence())


def test_report_of_good_evidence_shows_everything() -> None:
    report = Page(good_page())
    # The custom gate's module does not exist; all other gates pass.
    assert "of 10 gates for candidate 3f9c2b71aa90, 1 could not be computed" in report.words
    assert report.tags.count("svg") == 6
    assert report.words.count("✓ passed") >= 9
    for text in ("candidate AUC 0.8", "champion AUC 0.6", "Calibration", "label 1", "rare (", "12.5", "600"):
        assert text in report.words, text
    assert "could not be drawn" not in report.words
    spent = 100 * (0.005 + 0.05 / zeta(1.6)) / 0.05  # of the earlier comparison that failed, and of this one
    assert ("aria-label", f"{spent:.1f} % of the budget") in report.attributes
    assert "training set aa11aa11aa11, evaluation bb22bb22bb22" in report.words


def test_report_of_passed_gates_says_so() -> None:
    report = page(evidence(), BINARY_GATES[:-1])
    assert "✓ All 9 gates passed: candidate 3f9c2b71aa90 may replace version 7." in report.words
    assert ("class", "summary yes") in report.attributes


def test_report_says_what_asked_for_the_run() -> None:
    assert "reason for the runschedule" in Page(good_page()).text.replace("\n", "")
    cause = "drift since 2013-02-20: t.<b>x</b> & y level (alarm in entry 12)"
    caused = page(evidence(), run_reason=RunReason.ALARM, cause=cause)
    assert f"reason for the runalarm: {cause}" in caused.text.replace("\n", "")


def test_report_without_champion_shows_candidate_only() -> None:
    report = page(evidence(champion=NoChampion()), BINARY_GATES[:-1], champion_version=None, champion_content=None)
    assert "may become the first champion" in report.words
    assert "there is no champion yet" in report.words
    assert "champion AUC" not in report.words
    assert report.tags.count("svg") == 4  # no comparison by slice


def test_report_names_missing_evidence_with_its_problem() -> None:
    missing: dict[str, Any] = {
        "champion": MissingEvidence("champion <b>is gone</b>"),
        "groups": {"carrier": MissingEvidence("groups <b>is gone</b>")},
        "baselines": {"prior": MissingEvidence("baselines <b>is gone</b>")},
        **{
            name: MissingEvidence(f"{name} <b>is gone</b>")
            for name in ("recent_predictions", "serving_costs", "input_signature", "online_sample")
        },
    }
    report = page(evidence(**missing))
    for name in missing:
        # Above, in the table, and among what is missing; as text, not as bold.
        assert report.words.count(f"{name} <b>is gone</b>") >= 3, name
    assert "could not be drawn" not in report.words


def test_report_of_continuous_labels_shows_residuals() -> None:
    report = page(continuous_evidence(), CONTINUOUS_GATES)
    assert "Residuals" in report.words
    assert "candidate: predicted against actual" in report.words
    assert "ROC" not in report.words
    assert "could not be drawn" not in report.words


BAD: dict[str, dict[str, Any]] = {
    "NaN scores": {"candidate": np.full(1_500, np.nan)},
    "some NaN scores": {"candidate": np.where(np.arange(1_500) % 2, np.nan, 0.3 + np.arange(1_500) / 5_000)},
    "constant scores": {"candidate": np.full(1_500, 0.2), "champion": np.full(1_500, 0.2)},
    "one class": {"label": np.zeros(1_500)},
    "continuous labels": {"label": np.arange(1_500.0)},
    "text": {"label": ["late"] * 1_500},
    "different length": {"candidate": [0.2, 0.3]},
    "empty": {
        "label": [],
        "candidate": [],
        "champion": [],
        "groups": {"carrier": []},
        "recent_predictions": [],
    },
    "huge scores": {
        "candidate": np.full(1_500, 1e308),
        "champion": np.linspace(-1e9, 1e9, 1_500),
    },
    "scores that hardly differ": {
        "candidate": 0.5 + np.arange(1_500) * 1e-17,
        "recent_predictions": [0.5] * 300,
    },
    "NaN measured": {
        "serving_costs": {"single_p99_ms": float("nan")},
        "recent_predictions": [float("nan")] * 300,
    },
    "nothing compared online": {"online_sample": OnlineSample(0, 0)},
    "wrong types": {
        "groups": None,
        "baselines": None,
        "serving_costs": [1],
        "input_signature": "hour",
        "online_sample": 3,
    },
    "text measured": {
        "serving_costs": {"single_p99_ms": "<b>fast</b>"},
        "input_signature": InputSignature((), None),
    },  # type: ignore[arg-type]
    "None": {"label": None, "candidate": None, "champion": None, "recent_predictions": None},
}
CONTINUOUS_CASES = ("some NaN scores", "constant scores", "one class", "empty", "huge scores")


@pytest.mark.parametrize(
    ("gates", "changes"),
    [
        *(pytest.param(BINARY_GATES, changes, id=name) for name, changes in BAD.items()),
        *(pytest.param(CONTINUOUS_GATES, BAD[name], id=f"continuous, {name}") for name in CONTINUOUS_CASES),
    ],
)
def test_report_shows_bad_evidence_as_problems(gates: tuple[Gate, ...], changes: Mapping[str, Any]) -> None:
    data = evidence(**({"recent_predictions": MissingEvidence("made later")} | dict(changes)))
    verdict = judge_evidence(gates, data)
    report = Page(render(gates, verdict, data))
    assert "could not be drawn" not in report.words
    for result in verdict.results:
        assert result.outcome == "passed" or report.words.count(" ".join(result.reason.split())) >= 2


def test_report_of_three_rows() -> None:
    rows = slice(0, 3)
    data = evidence(label=[0, 1, 1], groups={"carrier": ["AA", None, "B6"]}, baselines={"prior": [0.5] * 3})
    data = replace(data, candidate=np.asarray(data.candidate)[rows], champion=np.asarray(data.champion)[rows])
    report = page(data)
    assert "3 rows are too few" in report.words
    assert report.tags.count("svg") >= 2  # three rows can be drawn all the same


def test_report_shows_the_gain_by_day() -> None:
    report = page(evidence())
    assert "Gain by day: auc_against_champion" in report.words
    [description] = [text for name, text in report.attributes if name == "aria-label" and "by cluster" in str(text)]
    assert description is not None
    assert description.count("2013-03-") == 14
    without = page(evidence(champion=NoChampion()))
    assert "Gain by day" not in without.words


def test_report_shows_labels_and_churn() -> None:
    gates: tuple[Gate, ...] = (
        LabelledGate(at_least=0.9),
        ChurnGate(cut=0.5, at_most=0.4),
        ChurnGate(at_most=0.2, name="moves"),
    )
    words = page(evidence(label_counts={"2013-02-28": (1_600, 1_500)}), gates).words
    assert "1,500 rows, 6.25 % of all rows have no label yet" in words
    for text in (
        "at least 90 % of each day's rows have a label",
        "at most 40 % of answers at 0.5 change",
        "predictions move by at most 0.2 on average",
        "on 2013-02-28 1,500 of 1,600 rows have a label",
        "answers differ from the champion's at 0.5",
    ):
        assert text in words, text
    assert "have no label yet" not in page(evidence(), gates).words


def test_report_shows_the_evidence_growing() -> None:
    gates, data = (AgainstChampionGate(metric="auc", must_be="better"),), evidence()
    result = judge_evidence(gates, data).results[0]
    looks = (
        Look(end=date(2013, 3, 15), days=14, level=0.0012, gain=0.0123, low=-0.0045),
        Look(end=date(2013, 3, 22), days=21, level=0.0077, gain=0.0131, low=-0.0011),
    )
    waiting = result.model_copy(update={"outcome": "inconclusive", "looks": looks})
    report = Page(render(gates, decide_verdict([waiting]), data))
    for text in ("Evidence so far: auc_against_champion", "2013-03-22", "0.0131", "−0.0011", "… inconclusive"):
        assert text in report.words.replace("-0.0011", "−0.0011"), text
    assert "1 inconclusive; none rejects it" in report.words
    assert "This is a later look" not in report.words


def test_report_survives_a_failing_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    from evergreen.reports import plots

    def fails(*_: object) -> str:
        raise OverflowError("too wide")

    monkeypatch.setattr(plots, "plot_binary_predictions", fails)
    assert "this could not be drawn: OverflowError: too wide" in page(evidence()).words


def test_report_of_results_without_gates_and_vice_versa() -> None:
    data = evidence()
    report = Page(render(BINARY_GATES, decide_verdict([]), data))
    assert "no gates: nothing speaks for the candidate" in report.words
    stray = GateResult(
        gate="gone", outcome="failed", candidate=1, threshold=2, rows=3, interval=(0, 1), reason="it is so"
    )
    report = Page(render((), decide_verdict([stray]), data))
    assert "of the only gate for candidate 3f9c2b71aa90, 1 failed" in report.words
    assert "not in the spec" in report.words


def test_report_references_nothing_outside() -> None:
    html = good_page()
    for reference in ("<script", "http", "//", "@import", "<link", "<img", "url(data"):
        assert reference not in html, reference
    ids = [value for name, value in Page(html).attributes if name == "id"]
    used = [value for name, value in Page(html).attributes if name == "href" and value]
    assert {value.removeprefix("#") for value in used} <= set(ids)
    assert html.count('<svg role="img" aria-label="') == html.count("<svg") == 6


def test_report_escapes_names() -> None:
    names = ["<script>alert(1)</script>", '$x$ & "y"', "línea\nnueva\x00", "長い" * 40]
    parts = tuple(
        SliceResult(name=name, rows=200, candidate=0.5 + 0.1 * n, is_judged=True) for n, name in enumerate(names)
    )
    gate = FairnessGate(metric="auc", group_by="carrier", at_most=0.1)
    result = GateResult(
        gate=gate.name,
        outcome="failed",
        candidate=0.2,
        threshold=0.1,
        rows=400,
        slices=parts,
        reason="<b>much</b>",
    )
    texts = {"description": "a <i>model</i>", "owner": '"><script>', "run": "</title>"}
    html = render((gate,), decide_verdict([result]), evidence(), **texts)
    assert "<script" not in html
    report = Page(html)
    assert "<b>much</b>" in report.words
    assert '$x$ & "y"' in report.words
    assert "could not be drawn" not in report.words


def test_report_shows_the_worst_of_many_slices() -> None:
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
    result = GateResult(
        gate=gate.name,
        outcome="passed",
        candidate=0.5,
        threshold=-0.2,
        rows=20_000,
        slices=parts,
        reason="fine",
    )
    report = Page(render((gate,), decide_verdict([result]), evidence()))
    assert "s099 (200 rows)" in report.words
    assert "s001 (200 rows)" not in report.words
    assert "60 more are not shown" in report.words


def test_report_shows_signature_and_online_differences() -> None:
    report = page(
        evidence(
            input_signature=InputSignature((("hour", "long"), ("miles", "double")), (("hour", "string"),)),
            online_sample=OnlineSample(600, 3, "origin EWR: wind 3.1 offline, 2.9 online"),
        )
    )
    assert "hour long hour string miles double –" in report.words
    assert "3 of 600 compared values differ (0.5 %); the first: origin EWR: wind 3.1 offline" in report.words


def test_equal_inputs_render_equal_bytes() -> None:
    assert render(BINARY_GATES, judge_evidence(BINARY_GATES, evidence()), evidence()) == good_page()


def test_plots_of_streamed_rows_show_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_report, "_PLOTTED_ROWS", 1_000)
    data = evidence()
    report = page(stream(data))
    assert "1,500 rows; plots show one row in 2" in report.words
    assert "plots show" not in Page(good_page()).words
    assert report.tags.count("svg") == 6
    monkeypatch.undo()
    # Of a sample of all rows, the plots are those of rows in memory.
    whole = render(BINARY_GATES, judge_evidence(BINARY_GATES, data), stream(data))
    assert whole == good_page()


def test_report_of_large_holdout_is_small_and_fast() -> None:
    data = evidence(100_000, recent_predictions=np.random.default_rng(5).random(50_000))
    verdict = judge_evidence(BINARY_GATES[:1], data)
    good_page()  # imports are not counted
    start = time.process_time()
    html = render(BINARY_GATES, verdict, data)
    assert time.process_time() - start < 3
    assert len(html.encode()) < 1_000_000


def test_report_of_a_sample_without_a_row_that_the_gate_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is of all rows; the section by day says what it lacks, and the rest of the page is there."""
    gate = AgainstChampionGate(metric="mae", must_be="better", horizon=7)
    data = continuous_evidence(horizons=np.where(np.arange(1_500) < 750, 7, 1), prediction_type=FORECAST)
    judged = judge_evidence((gate,), stream(data))
    assert judged.results[0].interval
    monkeypatch.setattr(gate_report, "_PLOTTED_ROWS", 500)
    assert "this could not be drawn" not in Page(render((gate,), judged, stream(data))).words
    report = Page(render((gate,), judged, stream(replace(data, horizons=np.ones(1_500)))))
    assert f"Gain by cluster: {gate.name} " in report.words
    assert "this could not be drawn: NotComputedError: none of" in report.words
