"""A ledger that lost its end, or whose end was rewritten, is noticed by a reader who has never seen it. Real MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

from evergreen import cli, ledger
from evergreen.errors import LedgerError, RegistryError
from evergreen.ledger import LedgerEntry
from evergreen.ledger.entries import hash_entry
from evergreen.promotion import rules, service
from evergreen.registry import aliases, anchors
from evergreen.settings import settings
from evergreen.spec import loader
from support.ledger_events import verdict_event
from support.ledgers import Book

pytestmark = pytest.mark.integration


@pytest.fixture
def book(new_book: Callable[[], Book]) -> Book:
    """Return a model with two champions, one after the other, and an anchor."""
    book = new_book()
    first = book.judge(10)
    anchors.update_anchor(book.model)  # as the task `register` does
    book.promote(first)
    book.promote(book.judge(20))
    return book


@pytest.fixture
def signing_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Turn signing on, and return the folder of the keys."""
    write_keys(tmp_path / "keys")
    monkeypatch.setenv("EVERGREEN_SIGNING_KEY", str(tmp_path / "keys/key.pem"))
    monkeypatch.setenv("EVERGREEN_SIGNING_PUBLIC_KEY", str(tmp_path / "keys/public.pem"))
    settings.cache_clear()
    yield tmp_path / "keys"
    monkeypatch.undo()
    settings.cache_clear()


def write_keys(folder: Path) -> None:
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)


def anchor_of(book: Book) -> str:
    return book.client.get_registered_model(book.model).tags[anchors.ANCHOR_TAG]


def anchored_number(book: Book) -> int:
    return json.loads(anchor_of(book))["number"]


def set_anchor(book: Book, value: str) -> None:
    book.client.set_registered_model_tag(book.model, anchors.ANCHOR_TAG, value)


def entry_file(book: Book, number: int) -> Path:
    return Path(settings().ledger, book.model, "0000", f"{number:06d}.json")


def truncate(book: Book, count: int) -> None:
    """Remove the last entries, and forget what this process has read."""
    head = book.state.head_number
    for number in range(head, head - count, -1):
        entry_file(book, number).unlink()
    ledger._open_journal.cache_clear()


def judge_champion(state: ledger.LedgerState, as_of: int) -> ledger.VerdictRecorded:
    return verdict_event(as_of, state.champion, champion_content=state.champion_content)


def change_champion(book: Book) -> None:
    """Change the champion as any command does."""
    spec = loader.load_spec("flight_delay").model_copy(update={"name": book.model})
    service.freeze_promotions(spec, "stocktaking", actor="ada")


def test_anchor_follows_every_change(book: Book) -> None:
    assert anchored_number(book) == 6
    change_champion(book)
    assert anchored_number(book) == book.state.head_number == 7
    book.judge(30, passed=False)
    assert anchored_number(book) == 7
    anchors.update_anchor(book.model)
    assert anchored_number(book) == 9
    assert anchors.check_anchor(book.model).head_number == 9


@pytest.mark.parametrize("removed", [1, 6])
def test_truncated_ledger_is_noticed_by_a_new_reader(book: Book, removed: int) -> None:
    truncate(book, removed)
    problem = f"ends with entry {6 - removed}, but by its anchor in MLflow it had 6"
    for read in (anchors.check_anchor, anchors.update_anchor, aliases.sync_aliases, aliases.repair_aliases):
        with pytest.raises(LedgerError, match=problem):
            read(book.model)
    with pytest.raises(LedgerError, match=problem):
        change_champion(book)
    assert book.state.head_number == 6 - removed, "nothing was added"
    assert anchored_number(book) == 6


def test_rewritten_ledger_is_noticed_by_a_new_reader(book: Book) -> None:
    """Also one that is longer than it was, whose hashes all hold."""
    truncate(book, 1)
    ledger.append_decision(book.model, "eve", lambda state: rules.decide_freeze(state, "mine"))
    ledger.append_decision(book.model, "eve", lambda state: rules.decide_unfreeze(state, "mine"))
    ledger._open_journal.cache_clear()
    with pytest.raises(LedgerError, match="entry 6 .* is not the one that its anchor in MLflow names"):
        anchors.check_anchor(book.model)
    with pytest.raises(LedgerError, match="entry 6"):
        change_champion(book)


def test_rewritten_past_is_noticed_too(book: Book) -> None:
    previous_hash = ""
    for number in range(1, 7):
        entry = LedgerEntry.model_validate_json(entry_file(book, number).read_bytes())
        actor = "eve" if number == 1 else entry.actor
        data = entry.model_copy(update={"actor": actor, "previous_hash": previous_hash}).to_bytes()
        entry_file(book, number).write_bytes(data)
        previous_hash = hash_entry(data)
    ledger._open_journal.cache_clear()
    assert ledger.verify_ledger(book.model).head_number == 6
    with pytest.raises(LedgerError, match="or one before it, was rewritten"):
        anchors.check_anchor(book.model)


def test_accepted_ledger_goes_on(book: Book) -> None:
    """As after an older copy was restored."""
    truncate(book, 1)
    assert anchors.replace_anchor(book.model) == 5
    change_champion(book)
    assert anchored_number(book) == book.state.head_number == 6


def test_removed_anchor_is_written_again(book: Book, caplog: pytest.LogCaptureFixture) -> None:
    book.client.delete_registered_model_tag(book.model, anchors.ANCHOR_TAG)
    anchors.check_anchor(book.model)
    assert f"somebody removed the tag {anchors.ANCHOR_TAG}" in caplog.text
    change_champion(book)
    assert anchored_number(book) == 7


def test_deleted_model_needs_no_anchor(book: Book) -> None:
    book.client.delete_registered_model(book.model)
    assert anchors.check_anchor(book.model).champion == "2"
    anchors.update_anchor(book.model)
    with pytest.raises(RegistryError, match="has no registered model"):
        anchors.replace_anchor(book.model)
    book.client.create_registered_model(book.model)
    anchors.update_anchor(book.model)
    assert anchored_number(book) == 6


@pytest.mark.parametrize("value", ["junk", "{}", '{"number": 0, "sha256": "x"}', "[" * 4000])
def test_invalid_anchor_names_the_way_out(book: Book, value: str) -> None:
    set_anchor(book, value)
    with pytest.raises(LedgerError, match=f"is no anchor of its ledger; .*`evergreen ledger anchor {book.model}`"):
        anchors.check_anchor(book.model)
    anchors.replace_anchor(book.model)
    assert anchored_number(book) == 6


def test_racing_writers_leave_the_newest_anchor(book: Book) -> None:
    barrier = Barrier(4)

    def change(thread: int) -> None:
        barrier.wait()
        for turn in range(3):
            as_of = 30 + 3 * turn + thread
            ledger.append_decision(
                book.model,
                f"{thread}",
                lambda state, as_of=as_of: judge_champion(state, as_of),
            )
            anchors.update_anchor(book.model)

    book.client.delete_registered_model_tag(book.model, anchors.ANCHOR_TAG)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(4)))
    assert anchored_number(book) == book.state.head_number == 18


def test_signed_anchor_holds(signing_keys: Path, book: Book) -> None:
    assert json.loads(anchor_of(book))["signature"]
    assert anchors.check_anchor(book.model).head_number == 6
    truncate(book, 1)
    with pytest.raises(LedgerError, match="ends with entry 5"):
        anchors.check_anchor(book.model)


def test_hostile_writer_of_both_makes_no_signed_anchor(signing_keys: Path, book: Book) -> None:
    signed = json.loads(anchor_of(book))
    truncate(book, 1)
    unsigned = {"number": 5, "sha256": book.state.head_hash}
    for forged, problem in (
        (unsigned, "is not signed, and signing is on"),
        (unsigned | {"signature": signed["signature"]}, "has a signature that does not hold"),
        (unsigned | {"signature": {"key": "0" * 64, "value": "AA=="}}, "is signed by the key 000000000000, not by one"),
    ):
        set_anchor(book, json.dumps(forged))
        with pytest.raises(LedgerError, match=problem):
            anchors.check_anchor(book.model)
    book.client.delete_registered_model_tag(book.model, anchors.ANCHOR_TAG)
    with pytest.raises(LedgerError, match="nothing shows that the ledger is whole; .*`evergreen ledger anchor"):
        change_champion(book)
    assert anchors.replace_anchor(book.model) == 5
    change_champion(book)
    assert json.loads(anchor_of(book))["signature"]


def test_anchor_of_another_model_does_not_hold(signing_keys: Path, book: Book) -> None:
    other_book = Book(f"{book.model}_other", book.folder)
    shutil.copytree(Path(settings().ledger, book.model), Path(settings().ledger, other_book.model))
    set_anchor(other_book, anchor_of(book))
    tag = anchor_of(book)
    with pytest.raises(LedgerError, match="has a signature that does not hold"):
        anchors.check_anchor_tag(other_book.model, tag, book.state)


def test_process_without_a_key_leaves_the_signed_anchor(
    signing_keys: Path, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = anchor_of(book)
    monkeypatch.delenv("EVERGREEN_SIGNING_KEY")
    settings.cache_clear()
    change_champion(book)
    assert anchor_of(book) == signed
    with pytest.raises(RegistryError, match="set EVERGREEN_SIGNING_KEY too"):
        anchors.replace_anchor(book.model)


def test_first_promotion_that_is_killed_is_retried_with_signing(
    signing_keys: Path, new_book: Callable[[], Book]
) -> None:
    """Its retry finds an anchor, which was written before the entry."""
    settings.cache_clear()
    book = new_book()
    candidate = book.judge(10)
    anchors.update_anchor(book.model)
    book.record(candidate)
    change_champion(book)
    assert anchored_number(book) == 4


def test_commands_verify_and_accept(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cli, "load_spec", lambda name: loader.load_spec("flight_delay").model_copy(update={"name": name})
    )
    runner = CliRunner()
    assert f"{book.model}: 6 entries, each follows" in runner.invoke(cli.app, ["ledger", "verify", book.model]).output
    truncate(book, 1)
    result = runner.invoke(cli.app, ["ledger", "verify", book.model])
    assert result.exit_code == 1
    assert "ends with entry 5" in result.output
    assert "anchor is entry 5" in runner.invoke(cli.app, ["ledger", "anchor", book.model]).output
    assert runner.invoke(cli.app, ["ledger", "verify", book.model]).exit_code == 0
