"""A number, an alias or a tag in MLflow is never believed: only files with the hashes in the ledger are used.

Real MLflow on SQLite. Whoever changes it here can write to its database and to its artifacts.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evergreen import cli, ledger
from evergreen.errors import EvergreenError, PromotionRefusedError, RegistryError, ScoringError, SignatureError
from evergreen.ledger import ChallengerWithdrawn, ChampionLost
from evergreen.promotion import service
from evergreen.promotion.service import PromotionRequest
from evergreen.registry import aliases, signing, versions
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason
from support.ledger_events import content, day, look_event, model_bytes, verdict_event
from support.ledgers import Book, Candidate, ledger_model, was_consistent

pytestmark = pytest.mark.unit


@pytest.fixture
def book(new_book: Callable[[], Book]) -> Book:
    return new_book()


@pytest.fixture
def model(book: Book) -> ModelSpec:
    return ledger_model(book.model)


def promote(model: ModelSpec, candidate: Candidate, version: str | None = None) -> str | None:
    request = PromotionRequest(candidate.verdict_entry, version or candidate.version, RunReason.SCHEDULE)
    return service.promote_version(model, request, actor="retrain")


def champions(book: Book, model: ModelSpec, number: int) -> list[Candidate]:
    """Judge and promote this many models, one after the other, each with newer data."""
    candidates = []
    for n in range(number):
        candidates.append(book.judge(10 * (n + 1)))
        assert promote(model, candidates[-1]) is None
    return candidates


def served(model: ModelSpec) -> bytes:
    """Return what a server of the champion would load."""
    with versions.open_champion(model.name) as (folder, _):
        return (folder / "model.ubj").read_bytes()


def replace_files(book: Book, target: Candidate, source: Candidate) -> None:
    """Put the files and the tags of one version into another, as somebody does who can write to all of MLflow."""
    for file in book.files(source).iterdir():
        shutil.copy(file, book.files(target))
    for tag, value in (("manifest", "0" * 64), ("fingerprint", "another")):
        book.client.set_model_version_tag(book.model, target.version, f"evergreen.{tag}", value)


def test_barred_model_registered_again_stays_barred(book: Book, model: ModelSpec) -> None:  # C1
    _, second = champions(book, model, 2)
    service.roll_back_champion(model, None, "late", actor="ada")
    book.client.delete_model_version(book.model, second.version)
    version = book.register_again(second)
    assert version == "3"
    with pytest.raises(PromotionRefusedError, match="version 3 is not promoted: its content is barred by a rollback"):
        promote(model, second, version)
    assert book.state.barred_versions == {"3"}
    # Also when another run trains the same model on newer data.
    again = book.judge(30, number=second.number)
    with pytest.raises(PromotionRefusedError, match="barred"):
        promote(model, again)
    service.release_version(model, again.version, "it was the weather", actor="ada")
    with pytest.raises(PromotionRefusedError, match="barred or lost until entry"):  # D6
        promote(model, again)
    newer = book.judge(40, number=second.number)
    assert promote(model, newer) is None
    assert served(model) == model_bytes(second.number)


def test_release_then_rollback_needs_a_newer_verdict(book: Book, model: ModelSpec) -> None:  # D6
    champions(book, model, 2)
    service.roll_back_champion(model, None, "late", actor="ada")
    service.release_version(model, "2", "weather", actor="ada")
    with pytest.raises(PromotionRefusedError, match="no version to restore instead of version 1"):
        service.roll_back_champion(model, None, "late too", actor="ada")
    assert book.state.champion == "1"
    service.roll_back_champion(model, "2", "ada knows it", actor="ada")
    assert book.state.champion == "2"


def test_candidate_with_the_champions_number_is_not_champion(book: Book, model: ModelSpec) -> None:  # C2
    [first] = champions(book, model, 1)
    book.client.delete_registered_model(book.model)
    candidate = book.judge(20, passed=False)  # by a run that was under way
    assert candidate.version == "1"
    for use in (
        lambda: versions.get_champion_version(model),
        lambda: versions.find_champion(model),
        lambda: served(model),
        lambda: aliases.sync_aliases(book.model),
        lambda: aliases.repair_aliases(book.model),
    ):
        with pytest.raises(RegistryError) as error:
            use()
        for part in (
            f"champion of {book.model} is version {content(first.number)[:12]} by the ledger",
            "clear the register task of flight_delay.retrain manual__1",
            "roll back",
            f"`evergreen declare-lost {book.model}`",
        ):
            assert part.lower() in str(error.value).lower()
        assert book.aliases == {}
    with pytest.raises(PromotionRefusedError):
        promote(model, candidate)
    # The first way out.
    assert book.register_again(first) == "2"
    assert {s.alias: s.status for s in aliases.repair_aliases(book.model)}["champion"] == "missing"
    assert (book.aliases, served(model)) == ({"champion": "2"}, model_bytes(first.number))


def test_candidate_that_passed_replaces_a_deleted_champion(book: Book, model: ModelSpec) -> None:
    """It was judged against the champion, and has its number: it becomes champion by its own verdict."""
    champions(book, model, 1)
    book.client.delete_registered_model(book.model)
    candidate = book.judge(20)
    assert promote(model, candidate) is None
    assert (book.state.champion, book.aliases) == ("1", {"champion": "1"})
    assert served(model) == model_bytes(candidate.number)


def test_foreign_version_with_the_champions_number(book: Book, model: ModelSpec) -> None:
    """Somebody deletes and creates the model by hand; the ledger has not heard of it."""
    first, other = book.judge(10), book.judge(11)
    assert promote(model, first) is None
    book.client.delete_registered_model(book.model)
    book.client.create_registered_model(book.model)
    source = book.files(other).as_uri()
    assert book.client.create_model_version(book.model, source, tags={"evergreen.fingerprint": "x"}).version == 1
    book.client.set_registered_model_alias(book.model, "champion", "1")
    with pytest.raises(SignatureError, match="evergreen-manifest.json: is not the one that was registered"):
        served(model)
    with pytest.raises(SignatureError):
        aliases.repair_aliases(book.model)
    assert book.aliases == {}


def test_replaced_file_and_tag_are_not_promoted(book: Book, model: ModelSpec) -> None:  # C3
    candidate, other = book.judge(10), book.judge(11)
    replace_files(book, candidate, other)
    with pytest.raises(SignatureError, match="was registered"):
        promote(model, candidate)
    assert book.state.champion is None
    assert book.aliases == {}


def test_replaced_file_is_promoted_by_no_other_verdict(book: Book, model: ModelSpec) -> None:
    """The files of a version are those of a candidate that passed, and its own verdict is of one that did not."""
    good, bad = book.judge(10), book.judge(11, passed=False)
    with pytest.raises(RegistryError, match=f"version {bad.version} of {book.model} is candidate candidate of day 11"):
        promote(model, good, bad.version)
    replace_files(book, good, bad)
    with pytest.raises(EvergreenError):
        promote(model, good)
    unknown = book.register()
    with pytest.raises(RegistryError, match=f"version {unknown} of {book.model} is not in its ledger"):
        promote(model, good, unknown)
    assert book.state.champion is None


def test_replaced_files_of_an_earlier_champion(book: Book, model: ModelSpec) -> None:
    first, second, third = champions(book, model, 3)
    replace_files(book, second, third)
    with pytest.raises(SignatureError):
        service.roll_back_champion(model, None, "late", actor="ada")
    statuses = {status.alias: status for status in aliases.repair_aliases(book.model)}
    assert statuses["previous"].status == "unavailable"
    assert "previous was version 2, and cannot be set: the files of" in statuses["previous"].message
    assert book.aliases == {"champion": "3"}, "an alias with other files than those of the ledger is deleted"
    service.roll_back_champion(model, first.version, "late", actor="ada")
    assert (book.aliases["champion"], served(model)) == ("1", model_bytes(first.number))


def test_older_signed_files_are_not_the_champion(
    book: Book, model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # C4
    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run(["openssl", "genpkey", *curve, "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    key = signing.SigningKey(private)
    candidates = [book.judge(10), book.judge(20, number=77)]
    for candidate in candidates:
        fingerprint = ledger.read_verdict_event(book.model, candidate.verdict_entry).candidate_fingerprint
        signing.write_model_manifest(book.files(candidate), signing.ModelIdentity(book.model, fingerprint), key)
    monkeypatch.setenv("EVERGREEN_SIGNING_KEY", str(private))
    monkeypatch.setenv("EVERGREEN_SIGNING_PUBLIC_KEY", str(public))
    settings.cache_clear()
    older, champion = candidates
    assert promote(model, champion) is None
    assert served(model) == model_bytes(77)
    replace_files(book, champion, older)
    with pytest.raises(SignatureError, match="is not the one that was registered"):
        served(model)


@pytest.mark.parametrize("tag", ["holdout", "fingerprint", "manifest", "as_of"])
def test_tags_are_for_people_only(book: Book, model: ModelSpec, tag: str) -> None:  # C5
    candidate = book.judge(10)
    book.client.set_model_version_tag(book.model, candidate.version, f"evergreen.{tag}", "2030-01-01")
    assert promote(model, candidate) is None
    champion = versions.find_champion(model)
    assert champion is not None
    assert (champion.version, champion.labels_until, champion.content) == ("1", day(3), content(candidate.number))
    book.client.delete_model_version_tag(book.model, candidate.version, f"evergreen.{tag}")
    assert versions.find_champion(model) == champion
    assert served(model) == model_bytes(candidate.number)


def test_first_champion_that_is_lost_leaves_none(book: Book, model: ModelSpec) -> None:  # C6
    [first] = champions(book, model, 1)
    with pytest.raises(PromotionRefusedError, match="version 1 is not lost: MLflow has all its files"):
        service.declare_champion_lost(model, "gone", actor="ada")
    book.client.delete_model_version(book.model, first.version)
    with pytest.raises(RegistryError, match="is version 1 by the ledger, but MLflow has no such version"):
        versions.find_champion(model)
    event = service.declare_champion_lost(model, "somebody cleaned up", actor="ada")
    assert event == ChampionLost(lost_version="1", restored_version=None, reason="somebody cleaned up")
    assert versions.find_champion(model) is None
    assert book.aliases == {}
    with pytest.raises(RegistryError, match="has no champion: promote a version first"):
        served(model)
    with pytest.raises(PromotionRefusedError, match="there is no champion that could be lost"):
        service.declare_champion_lost(model, "gone", actor="ada")
    candidate = book.judge(10)  # as a first one: its data need not be newer
    assert promote(model, candidate) is None
    assert (book.state.champion, served(model)) == ("2", model_bytes(candidate.number))
    assert was_consistent(aliases.repair_aliases(book.model))


def test_lost_champion_is_followed_by_the_one_before(book: Book, model: ModelSpec) -> None:  # C6
    _, second, third, fourth = champions(book, model, 4)
    for lost in (third, fourth):
        book.client.delete_model_version(book.model, lost.version)
    event = service.declare_champion_lost(model, "somebody cleaned up", actor="ada")
    assert (event.lost_version, event.restored_version) == ("4", "2")
    assert (book.aliases["champion"], served(model)) == ("2", model_bytes(second.number))
    assert promote(model, book.judge(25)) is None, "compared with version 2, and newer than that"


def test_unreadable_files_are_not_taken_for_lost(book: Book, model: ModelSpec) -> None:
    """An artifact store that does not respond must not make an older model champion, or none."""
    first, second = champions(book, model, 2)
    for candidate in (first, second):
        book.files(candidate).rename(book.files(candidate).with_suffix(".away"))
    with pytest.raises(ScoringError, match="its artifact cannot be loaded"):
        served(model)
    with pytest.raises(ScoringError, match=f"alias champion of {book.model}: its artifact cannot be loaded"):
        aliases.repair_aliases(book.model)
    assert book.aliases["champion"] == "2", "it may be there again in a moment"
    with pytest.raises(PromotionRefusedError, match="version 1, which would be champion again, cannot be loaded"):
        service.declare_champion_lost(model, "gone", actor="ada")
    assert service.declare_champion_lost(model, "gone", actor="ada", is_restoring=False).restored_version is None


def test_deleted_previous_version_keeps_nothing_from_promotion(book: Book, model: ModelSpec) -> None:
    """Old versions are deleted to save space."""
    first, _ = champions(book, model, 2)
    book.client.delete_model_version(book.model, first.version)
    third = book.judge(30)
    assert promote(model, third) is None
    assert book.aliases == {"champion": "3", "previous": "2"}
    book.client.delete_model_version(book.model, "2")
    statuses = {status.alias: status.status for status in aliases.repair_aliases(book.model)}
    assert statuses["previous"] == "unavailable"
    assert promote(model, book.judge(40)) is None


def test_killed_registration_is_repeated(book: Book, model: ModelSpec) -> None:
    """The version of the attempt that was killed is nobody's; that of the next attempt is promoted."""
    candidate = book.judge(10)

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        book.register_again(candidate, die)
    with pytest.raises(RegistryError, match=f"version 2 of {book.model} is not in its ledger"):
        promote(model, candidate, "2")
    assert book.register_again(candidate) == "3"
    assert promote(model, candidate, "3") is None
    assert book.aliases == {"champion": "3"}
    assert served(model) == model_bytes(candidate.number)


def test_command_declares_the_champion_lost(book: Book, model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "load_spec", lambda _: model)
    command = ["declare-lost", model.name, "--reason", "the bucket was emptied"]
    champions(book, model, 2)
    book.client.delete_model_version(book.model, "2")
    result = CliRunner().invoke(cli.app, command)
    assert result.output.splitlines() == [f"{model.name}: version 2 is recorded as lost", "version 1 is champion again"]
    book.client.delete_model_version(book.model, "1")
    result = CliRunner().invoke(cli.app, [*command, "--first"])
    assert result.output.splitlines()[-1] == "there is no champion: the next candidate is judged as the first one"
    event = ledger.read_state(model.name).entries[-1].event
    assert event == ChampionLost(lost_version="1", restored_version=None, reason="the bucket was emptied")


def test_find_champion_knows_an_accepted_change(book: Book, model: ModelSpec) -> None:
    book.promote(book.judge(10))
    champion = versions.find_champion(model)
    assert champion
    assert champion.accepted_change is None
    accepted = ledger.ChangeAccepted(champion="1", reason="the source was closed")
    ledger.append_decision(model.name, "ada", lambda _: accepted)
    champion = versions.find_champion(model)
    assert champion
    assert "the source was closed" in (champion.accepted_change or "")


def test_challenger_has_its_alias_once_it_is_registered(book: Book, model: ModelSpec) -> None:
    champions(book, model, 1)
    judged = look_event(
        verdict_event(20, "1", model=20, champion_content=ledger.read_state(model.name).champion_content),
        "inconclusive",
    )
    entry = ledger.append_decision(model.name, "retrain", lambda _: judged)
    service.sync_champion_aliases(model)
    assert book.aliases == {"champion": "1"}, "the run was killed before it registered the challenger"
    candidate = Candidate("2", entry.number, day(20), 20)
    assert book.register_again(candidate) == "2"
    service.sync_champion_aliases(model)
    assert book.aliases == {"champion": "1", "challenger": "2"}
    book.client.delete_model_version(book.model, "2")
    *_, status = aliases.repair_aliases(book.model)
    assert status.status == "unavailable"
    assert "clear the register task of" in status.message
    assert book.aliases == {"champion": "1"}


def test_command_withdraws_the_challenger(book: Book, model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "load_spec", lambda _: model)
    champions(book, model, 1)
    candidate = book.judge(20, is_inconclusive=True)
    service.sync_champion_aliases(model)
    assert book.aliases == {"champion": "1", "challenger": "2"}
    command = ["withdraw", model.name, "--reason", "trained on the wrong labels"]
    result = CliRunner().invoke(cli.app, command)
    assert result.output.startswith(f"{model.name}: version 2 is withdrawn")
    assert book.aliases == {"champion": "1"}
    event = ledger.read_state(model.name).entries[-1].event
    reason = "trained on the wrong labels"
    assert event == ChallengerWithdrawn(version="2", verdict_entry=candidate.verdict_entry, reason=reason)
    again = CliRunner().invoke(cli.app, command)
    assert isinstance(again.exception, PromotionRefusedError) or again.exit_code == 1
