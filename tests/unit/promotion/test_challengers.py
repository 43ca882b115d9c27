"""A challenger gathers evidence, or waits for its promotion: the state of the ledger, and the rules."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen import ledger
from evergreen.errors import LedgerError, PromotionRefusedError
from evergreen.lake import fingerprints
from evergreen.ledger import (
    ChallengerWithdrawn,
    LedgerEvent,
    LedgerState,
    PromotionDeferred,
    PromotionsFrozen,
    PromotionsUnfrozen,
    VersionPromoted,
)
from evergreen.periods import Duration
from evergreen.promotion import challengers, rules
from evergreen.promotion.rules import PromotionRequest
from evergreen.spec.model import MonitorPolicy
from evergreen.spec.prediction_type import ForecastSeries
from evergreen.window import RunReason
from support.calendars import DAYS, cooldown
from support.ledger_events import (
    append_event,
    build_entries,
    build_state,
    content,
    day,
    deferral,
    look_event,
    loss,
    promotion,
    registration,
    rollback,
    verdict_event,
    withdrawal,
)
from support.ledgers import ledger_model

pytestmark = pytest.mark.unit

MODEL = ledger_model("flight_delay", gates=({"kind": "against_champion", "metric": "auc", "must_be": "better"},))
FIRST = look_event(
    verdict_event(20, "1").model_copy(update={"fingerprints": {"gates": challengers.gates_fingerprint(MODEL)}}),
    "inconclusive",
)
"""On days 13 to 19, in entry 3: the challenger is the model of day 20."""
GATHERING: tuple[LedgerEvent, ...] = (verdict_event(10), promotion("1", 10, 1), FIRST, registration("2", 3))


def later(outcome: str, looks: int = 2) -> ledger.VerdictRecorded:
    [compared] = [entry.event for entry in build_entries([*GATHERING])[2:3]]
    assert isinstance(compared, ledger.VerdictRecorded)
    return look_event(compared.model_copy(update={"holdout": FIRST.holdout}), outcome, looks, first_entry=3)


def test_inconclusive_verdict_makes_the_challenger() -> None:
    state = build_state(*GATHERING[:3])
    assert state.challenger == content(20)[:12], "it has no other name until it is registered"
    state = build_state(*GATHERING)
    assert (state.challenger, state.open_comparison, state.challenger_verdict) == ("2", 3, 3)
    assert state.challenger_event
    assert state.comparisons == (), "it has not ended"


def test_looks_are_one_comparison_when_it_has_ended() -> None:
    waiting = build_state(*GATHERING, later("inconclusive"))
    assert (waiting.open_comparison, waiting.challenger_verdict) == (3, 5)
    for outcome, looks in (("passed", 3), ("failed", 3)):
        state = append_event(waiting, later(outcome, looks))
        [comparison] = state.comparisons
        assert comparison.promoted is (outcome == "passed")
        assert comparison.is_decided
        assert comparison.days == DAYS.dates(day(13), day(34))
        assert comparison.look_ends == tuple(map(date.fromisoformat, (day(20), day(27), day(34))))
        assert comparison.spending == (("auc_against_champion", 0.02, outcome == "passed"),)
        assert state.challenger == ("2" if outcome == "passed" else None)


def test_withdrawn_challenger_counts_as_not_promoted() -> None:
    state = build_state(*GATHERING, later("inconclusive"), withdrawal("2", 5))
    assert (state.challenger, state.open_comparison) == (None, None)
    [comparison] = state.comparisons
    assert not comparison.promoted
    assert not comparison.is_decided
    assert comparison.look_ends == DAYS.dates(day(20), day(27))


def test_promotion_by_a_later_look() -> None:
    state = build_state(*GATHERING, later("passed"))
    event = rules.decide_promotion(state, PromotionRequest(5, "2", RunReason.SCHEDULE), **cooldown(0))
    assert isinstance(event, VersionPromoted)
    assert event.as_of == day(20), "that of the candidate's data"
    state = append_event(state, event)
    assert (state.champion, state.challenger) == ("2", None)
    assert state.champion_tenure
    assert state.champion_tenure.labels_until == day(13)
    assert state.last_promoted_as_of == day(27), "the cooldown begins with the look"


def test_a_passed_challenger_waits_for_the_end_of_a_freeze() -> None:
    state = build_state(*GATHERING, later("passed"), PromotionsFrozen(reason="audit"))
    request = PromotionRequest(5, "2", RunReason.SCHEDULE, as_of=day(30))
    event = rules.decide_promotion(state, request, **cooldown(0))
    assert isinstance(event, PromotionDeferred)
    state = append_event(state, event)
    assert not state.open_comparison
    assert "passed its gates, and its promotion is held back: the model was frozen" in challengers.challenger_wait(
        state, MODEL
    )
    assert challengers.evidence_wait(state, MODEL, day(30)) is None, "it gathers no evidence"


def test_a_later_run_promotes_after_the_cooldown() -> None:
    state = build_state(*GATHERING, later("passed"))
    deferred = PromotionRequest(5, "2", RunReason.SCHEDULE)
    assert isinstance(rules.decide_promotion(state, deferred, **cooldown(20)), PromotionDeferred)
    after = PromotionRequest(5, "2", RunReason.SCHEDULE, as_of=day(30))
    assert isinstance(rules.decide_promotion(state, after, **cooldown(20)), VersionPromoted)


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ((look_event(verdict_event(40, "1"), "inconclusive"),), "the comparison that began in entry 3 goes on"),
        ((look_event(verdict_event(40, "1"), "failed"),), "the comparison that began in entry 3 goes on"),
        ((look_event(verdict_event(20, "1", model=30), "failed", 2, 3),), "it is about another candidate"),
        ((look_event(FIRST, "failed", 2, 1),), "it continues the comparison of entry 1, which does not go on"),
        ((look_event(FIRST, "failed", 2, 3, level=0.03),), "does not continue its looks at the same alpha"),
        ((later("passed").model_copy(update={"holdout": (day(14), day(27))}),), "it does not have all days"),
        ((later("inconclusive"), later("inconclusive", 1)), "it does not have all days of the look before"),
        ((later("failed"), later("passed", 3)), "which does not go on"),
        ((withdrawal("1", 3),), "version 1 is not the challenger"),
        ((withdrawal("2", 1),), "version 2 is not the challenger by the verdict in entry 1"),
        ((promotion("2", 20, 3, "1"),), "does not let it replace 1"),
    ],
)
def test_ledger_refuses_what_does_not_follow(events: tuple[LedgerEvent, ...], problem: str) -> None:
    with pytest.raises(LedgerError, match=problem):
        build_state(*GATHERING, *events)


def test_no_verdict_waits_for_evidence_beside_a_passed_challenger() -> None:
    passed = (verdict_event(10), promotion("1", 10, 1), verdict_event(20, "1"), deferral("2", 20, 3))
    with pytest.raises(LedgerError, match="it waits for evidence, but the challenger was"):
        build_state(*passed, look_event(verdict_event(40, "1"), "inconclusive"))


def test_evidence_wait_names_the_end_and_the_way_out() -> None:
    state = build_state(*GATHERING)
    end = DAYS.shift(day(13), 28)
    assert challengers.evidence_end(state, MODEL) == end
    reason = challengers.evidence_wait(state, MODEL, day(30))
    assert reason
    assert f"version 2 gathers evidence until {end}" in reason
    assert "evergreen withdraw flight_delay --reason" in reason
    replaceable = MODEL.model_copy(update={"monitor": MonitorPolicy(replaceable=True)})
    assert challengers.evidence_wait(state, replaceable, day(30)) is None
    assert challengers.evidence_wait(state, MODEL, DAYS.shift(end, 6)), "a last look may still be taken"
    assert challengers.evidence_wait(state, MODEL, DAYS.shift(end, 7)) is None, "the monitor DAG is paused, or fails"
    late = MODEL.model_copy(update={"label_delay": Duration(30, "d")})
    assert challengers.evidence_end(state, late) == DAYS.shift(end, 30)


def test_days_without_rows_do_not_shorten_a_comparison() -> None:
    [result] = FIRST.verdict.results
    looks = tuple(look.model_copy(update={"days": 5}) for look in result.looks)  # nobody works at weekends
    verdict = FIRST.verdict.model_copy(update={"results": (result.model_copy(update={"looks": looks}),)})
    state = build_state(*GATHERING[:2], FIRST.model_copy(update={"verdict": verdict}), GATHERING[3])
    assert challengers.evidence_end(state, MODEL) == DAYS.shift(day(13), 40)  # 28 of 7 days in which 5 have rows


def test_a_passed_challenger_that_is_refused_for_good_is_withdrawn() -> None:
    """It was judged as the model's first; since then another became champion, and was lost."""
    first = (verdict_event(20), PromotionsFrozen(reason="audit"), deferral("2", 20, 1), PromotionsUnfrozen(reason="ok"))
    state = build_state(*first, verdict_event(10), promotion("1", 10, 5), loss("1", None))
    assert state.challenger == "2"
    reason = challengers.withdrawal_reason(state, MODEL)
    assert reason
    assert "it was judged before the champion was lost" in reason


def test_keep_candidates_ready_is_about_pauses_only() -> None:
    state = build_state(*GATHERING)
    ready = MODEL.model_copy(update={"keep_candidates_ready": True})
    assert challengers.evidence_wait(state, ready, day(30))
    obstacle = challengers.comparison_obstacle(state, day(40), content(40), "1", content(10), ready)
    assert obstacle
    assert "gathers evidence" in obstacle


def test_the_challenger_itself_is_not_compared_again() -> None:
    replaceable = MODEL.model_copy(update={"monitor": MonitorPolicy(replaceable=True)})
    state = build_state(*GATHERING)
    obstacle = challengers.comparison_obstacle(state, day(40), content(20), "1", content(10), replaceable)
    assert obstacle == "the candidate is the challenger already, byte for byte, and gathers evidence"
    assert challengers.comparison_obstacle(state, day(40), content(40), "1", content(10), replaceable) is None


def test_withdrawal_reasons() -> None:
    state = build_state(*GATHERING)
    assert challengers.withdrawal_reason(state, MODEL) is None
    assert challengers.withdrawal_reason(state, MODEL, day(40)) is None
    over = challengers.withdrawal_reason(state, MODEL, day(41))
    assert over
    assert "the days of its comparison were over" in over
    other_gate = MODEL.gates[0].model_copy(update={"confidence": 0.9})
    for text, changes in (
        ("the model's gates have changed", {"gates": (other_gate,)}),
        ("the spec lets no candidate gather evidence", {"monitor": None}),
    ):
        model = MODEL.model_copy(update=changes)
        assert text in (challengers.withdrawal_reason(state, model) or "")
        assert challengers.evidence_wait(state, model, day(30)) is None, "it holds up nobody"


def test_a_challenger_is_withdrawn_when_the_champion_changes() -> None:
    champions = (verdict_event(10), promotion("1", 10, 1), verdict_event(12, "1"), promotion("2", 12, 3, "1"))
    first = look_event(verdict_event(20, "2").model_copy(update={"fingerprints": FIRST.fingerprints}), "inconclusive")
    state = build_state(*champions, first, registration("3", 5), rollback("1", "2"))
    reason = challengers.withdrawal_reason(state, MODEL)
    assert reason
    assert "it was judged against version 2, but version 1 is champion now" in reason
    event = rules.decide_withdrawal(state, "3", reason)
    assert isinstance(event, ChallengerWithdrawn)
    assert append_event(state, event).challenger is None


def test_withdrawal_happens_once_and_is_final() -> None:
    state = build_state(*GATHERING, later("passed"))
    event = rules.decide_withdrawal(state, "2", "not needed")
    assert isinstance(event, ChallengerWithdrawn)
    state = append_event(state, event)
    again = rules.decide_withdrawal(state, "2", "not needed")
    assert again == state.entries[-1]
    with pytest.raises(PromotionRefusedError, match="it was withdrawn by ada: not needed"):
        rules.decide_promotion(state, PromotionRequest(5, "2", RunReason.SCHEDULE), **cooldown(0))
    with pytest.raises(PromotionRefusedError, match="version 1 is not the challenger, no version is"):
        rules.decide_withdrawal(state, "1", "a typo")


def test_look_wait_counts_new_days() -> None:
    state: LedgerState = build_state(*GATHERING)
    assert "until 2013-01-21" in (challengers.look_wait(state, MODEL, day(30), day(20)) or "")
    assert "3 days are new since the look before, of 7" in (challengers.look_wait(state, MODEL, day(30), day(23)) or "")
    assert challengers.look_wait(state, MODEL, day(30), day(27)) is None
    assert challengers.look_wait(state, MODEL, day(20), day(27)), "it was looked at as of that day"
    last = build_state(*GATHERING, later("inconclusive", 3))
    assert challengers.look_wait(last, MODEL, day(41), day(41)) is None, "no more days will come"
    assert challengers.look_wait(last, MODEL, day(40), day(36))
    assert challengers.look_wait(last, MODEL, day(41), day(36)) is None, "nor will those without features"


_MAX_LOOKS = 4  # one more would claim data of days after its entry


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["judge", "look", "suffices", "fails", "withdraw", "roll back"]), max_size=14))
def test_any_history_has_one_open_comparison_and_counts_all(steps: list[str]) -> None:
    """Whatever happens in whatever order: what began is counted once it has ended, and only one is open."""
    events: list[LedgerEvent] = [
        verdict_event(1),
        promotion("1", 1, 1),
        verdict_event(2, "1"),
        promotion("2", 2, 3, "1"),
    ]
    state, begun, as_of, looks = build_state(*events), 0, 20, 1
    for step in steps:
        as_of += 1
        champion, basis = state.champion, state.challenger_event
        assert champion
        if step == "judge":
            judged = look_event(verdict_event(as_of, champion, champion_content=state.champion_content), "inconclusive")
            if state.open_comparison:
                with pytest.raises(LedgerError, match="goes on"):
                    append_event(state, judged)
                continue
            if state.challenger:  # it has passed
                continue
            event: LedgerEvent = judged
            begun, looks = begun + 1, 1
        elif step == "withdraw" and state.challenger:
            decided = rules.decide_withdrawal(state, state.challenger, "a reason")
            assert isinstance(decided, ChallengerWithdrawn)
            event = decided
        elif (
            step == "roll back"
            and state.previous_champion
            and state.previous_tenure.content not in state.barred_contents
        ):
            event = rollback(state.previous_champion, champion)
        elif step in ("look", "suffices", "fails") and basis and state.open_comparison and looks < _MAX_LOOKS:
            outcome = {"look": "inconclusive", "suffices": "passed", "fails": "failed"}[step]
            looks += 1
            first = state.find_verdict_event(state.open_comparison)
            assert first
            event = look_event(first, outcome, looks, first_entry=state.open_comparison)
            if basis.champion_content != state.champion_content:
                with pytest.raises(LedgerError, match="it compares with another champion"):
                    append_event(state, event)
                looks -= 1
                continue
        else:
            continue
        state = append_event(state, event)
        assert len(state.comparisons) + (state.open_comparison is not None) == begun
        assert (state.challenger is None) == (state.challenger_verdict is None)
        if state.open_comparison:
            assert state.challenger_event
            assert state.challenger_event.verdict.is_inconclusive


def test_the_fingerprint_of_gates_has_what_every_look_measures_by() -> None:
    """A later look with other weights, or another horizon, is no later look of the same comparison."""
    series = {"series": ["shop"], "horizon": "days_ahead", "season": 7}
    weighted, other = (MODEL.model_copy(update={"weight": weight}) for weight in ("units", "price"))
    forecasts = [
        MODEL.model_copy(update={"forecast": ForecastSeries.model_validate(series | change)})
        for change in ({}, {"season": 14}, {"horizon": "weeks_ahead"}, {"series": ["shop", "item"]})
    ]
    models = [MODEL, weighted, other, *forecasts]
    assert len({challengers.gates_fingerprint(model) for model in models}) == len(models)
    # As before there were weights and forecasts, so that comparisons go on over an upgrade.
    specs = [gate.model_dump(mode="json") for gate in MODEL.gates]
    assert challengers.gates_fingerprint(MODEL) == fingerprints.compute_fingerprint(specs)
