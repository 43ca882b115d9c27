"""The backtest report shows every policy and every date of the results."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from evergreen.gates import GateResult, decide_verdict
from evergreen.periods import days_from
from evergreen.reports.backtest import (
    BacktestResults,
    BacktestStep,
    DeploymentSummary,
    GainEstimate,
    PeriodSummary,
    PolicySummary,
    render_backtest_report,
    summarize_backtest,
    summary_lines,
)
from support.calendars import later

pytestmark = pytest.mark.unit

DATES = [later("2013-03-01", 7 * week) for week in range(8)]
DEPLOYED = {
    "gates": (0, 2, 5),
    "every_date": range(8),
    "monthly": (0, 4),
    "on_drift": (0, 3),
    "on_loss": (0, 6),
    "never": (0,),
}
LABELS = {"gates": "Evergreen's gates", "every_date": "weekly", "on_drift": "on drift", "on_loss": "on loss"}


def step(number: int) -> BacktestStep:
    promoted = number in DEPLOYED["gates"]
    auc = 0.71 + 0.002 * number
    records = [
        GateResult(
            gate="auc_threshold", outcome="passed", candidate=auc, threshold=0.6, rows=5000, reason=f"{auc:.4g} ≥ 0.6"
        ),
        GateResult(
            gate="auc_against_champion",
            outcome="passed" if promoted else "failed",
            candidate=auc,
            champion=None if number == 0 else auc - 0.01,
            interval=None if number == 0 else (0.002 if promoted else -0.003, 0.02),
            threshold=0.0,
            rows=5000,
            reason="it is <b>at least</b> 0.002 better" if promoted else "it is not shown to be better",
        ),
    ]
    if number == 3:
        records[0] = GateResult(
            gate="auc_threshold", outcome="not_computed", threshold=0.6, rows=3, reason="3 rows are too few"
        )
    verdict = decide_verdict(records)
    champions = [other for other in DEPLOYED["gates"] if other < number]
    return BacktestStep(
        as_of=DATES[number],
        holdout_start=later(DATES[number], -7),
        candidate_fingerprint="3f9c2b71aa90c4e2" * 4,
        train_rows=50_000 + number,
        champion_as_of=DATES[champions[-1]] if champions else None,
        verdict=verdict,
        promoted=promoted,
        reason=verdict.reason,
    )


def policy(name: str) -> PolicySummary:
    numbers = list(DEPLOYED[name])
    ends = [*(DATES[number] for number in numbers[1:]), None]
    age = [week - max(number for number in numbers if number <= week) for week in range(7)]
    values = np.round(0.72 - 0.004 * np.array(age) + 0.01 * np.sin(range(7)), 4).tolist()
    worst = int(np.argmin(values))
    return PolicySummary(
        name=name,
        label=LABELS.get(name, name),
        rule=f"the rule of {name}",
        training_count=8 if name in ("gates", "every_date") else len(numbers),
        deployments=tuple(
            DeploymentSummary(
                as_of=DATES[number],
                end=end,
                live_days=days_from(DATES[number], end or DATES[-1]),
                reason="auc was 0.72 on its own holdout and 0.69 later" if number else "the first candidate",
            )
            for number, end in zip(numbers, ends, strict=True)
        ),
        metric_values=tuple(values),
        mean=float(np.mean(values)),
        worst_value=values[worst],
        worst_period_start=DATES[worst],
        gain_over_never=None if name == "never" else GainEstimate(mean=0.0124, low=0.0031, high=0.0216),
        notes=("alarms of performance are not simulated",) if name == "on_drift" else (),
    )


@cache
def results(steps: int = 8) -> BacktestResults:
    periods = [
        PeriodSummary(live_as_of=start, start=start, end=later(start, 7), rows=5000, positive_share=0.2 + n / 50)
        for n, start in enumerate(DATES[: steps - 1])
    ]
    policies = [policy(name) for name in DEPLOYED]
    if not periods:
        first = {
            "metric_values": (),
            "mean": None,
            "worst_value": None,
            "worst_period_start": None,
            "gain_over_never": None,
        }
        policies = [
            p.model_copy(update=first | {"deployments": (p.deployments[0].model_copy(update={"end": None}),)})
            for p in policies
        ]
    return BacktestResults(
        model="flight_delay",
        description="Probability that a <i>flight</i> arrives late.",
        fingerprint="aa11" * 16,
        spec_fingerprint="bb22" * 16,
        excluded_candidates=3,
        metric="auc",
        higher_is_better=True,
        label="arrived_late",
        train="364d",
        holdout="7d",
        steps=tuple(step(number) for number in range(steps)),
        periods=tuple(periods),
        compared_periods=tuple(range(len(periods))),
        policies=tuple(policies),
    )


def test_page_shows_every_date_gate_and_policy() -> None:
    page = render_backtest_report(results())
    assert all(f">{day}</td>" in page for day in DATES)
    for text in ("auc_threshold", "auc_against_champion"):
        assert text in page.replace("<wbr>", "")
    for text in ("✓ 0.7100", "? –", "✗ 0.7120 / 0.7020", "+0.0124", "+0.0031 … +0.0216", "Evergreen&#39;s gates"):
        assert text in " ".join(page.split()), text
    assert page.count("<svg") == 1
    for label in ("on drift", "on loss"):
        assert f"What “{label}” reacted to" in page
    assert "on drift: alarms of performance are not simulated." in page
    assert "3 candidates of another spec are left out" in " ".join(page.split())
    assert "&lt;b&gt;at least&lt;/b&gt;" in page
    assert "<i>flight" not in page
    assert "<script" not in page


def test_equal_results_give_equal_bytes() -> None:
    page = render_backtest_report(results())
    assert render_backtest_report(BacktestResults.model_validate_json(results().model_dump_json())) == page


def test_one_date_has_no_plot_and_no_comparison() -> None:
    page = render_backtest_report(results(1))
    assert "<svg" not in page
    assert "nothing after it to measure" in summarize_backtest(results(1))
    assert "One champion, of 2013-03-01" in page


def test_summary_lines_show_each_policy_once() -> None:
    lines = summary_lines(results())
    assert lines[0] == "flight_delay: 8 candidates; 3 of another spec left out"
    for label in ("Evergreen's gates", "weekly", "monthly", "on drift", "on loss", "never"):
        assert sum(f"{line.strip()} ".startswith(f"{label} ") for line in lines[1:-1]) == 1, label
    assert "on drift: alarms of performance are not simulated" in lines
    assert any("+0.0124 (+0.0031 … +0.0216)" in line for line in lines)
    assert lines[-1] == summarize_backtest(results())
    assert "would have promoted 3 of 8 candidates" in lines[-1]
    assert "0.0124 better than never retraining (at least 0.0031, at 95 % confidence)" in lines[-1]
