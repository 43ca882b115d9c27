"""Sixteen processes promote sixteen versions of a model at once: how often is an update of the champion lost?

    python benchmarks/races.py [--rounds 1000] [--bare 100]

The same race, against a real MLflow server, on SQLite and on Postgres where that is installed:

    Evergreen             the ledger decides, the aliases follow
    bare, by hand         read who is champion, set alias `previous` to it and alias `champion` to one's own version
    bare, looking first   the same, but give up if the champion is not the one that one's version was judged against

All versions of a round are judged against the champion of that round, so one of them should win. Reported per round:

    winners          versions whose racer was told that it is champion now
    lost             of 100 rounds, those that no serial order explains: two replaced the same champion, or alias
                     `previous` is not what the holder of alias `champion` has replaced
    unseen           winners that nobody replaced and that are not champion either
    ledger           of 100 rounds, those after which the aliases were not what the ledger says

Sixteen racers are a torture; two, a scheduled run and somebody who retrains by hand, are what happens. Both are run
for the bare ways. A model lives for 100 rounds: 1,700 entries, more than a weekly model gets in its life.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from support import servers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from evergreen import ledger
from support import promotion_races
from support.promotion_races import CHAMPION, PREVIOUS, RACERS, Place, Promoter

LIFE = 100
WAYS: dict[str, Promoter] = {
    "Evergreen": promotion_races.evergreen,
    "bare, by hand": promotion_races.set_aliases,
    "bare, looking first": promotion_races.check_then_set_aliases,
}
HEADER = ("database", "way", "racers", "rounds", "winners", "lost", "unseen", "ledger", "s/round")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=1000, help="of Evergreen")
    arguments.add_argument("--bare", type=int, default=100, help="rounds of each bare way")
    asked = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # or the servers would live on
    row(*HEADER)
    databases: list[Literal["sqlite", "postgres"]] = ["sqlite", "postgres"]
    for database in databases:
        if database == "postgres" and (reason := servers.no_postgres()):
            print(reason)
            continue
        with (
            tempfile.TemporaryDirectory() as folder,
            servers.mlflow_on(database, Path(folder) / "mlflow") as url,
        ):
            nowhere = Place(url, Path(folder) / "ledger", "")
            measure(database, "Evergreen", nowhere, RACERS, asked.rounds)
            for way in ("bare, by hand", "bare, looking first"):
                for racers in (RACERS, 2):
                    measure(database, way, nowhere, racers, asked.bare)


def measure(database: str, name: str, nowhere: Place, racers: int, rounds: int) -> None:
    winners = lost = unseen = wrong = 0
    seconds = 0.0
    bare = WAYS[name] is not promotion_races.evergreen
    for first in range(0, rounds, LIFE):
        place = nowhere.new_model()
        place.enter()
        versions = place.register(2 * racers + 2)
        if bare:
            place.client.set_registered_model_alias(place.model, CHAMPION, versions[-1])
            place.client.set_registered_model_alias(place.model, PREVIOUS, versions[-2])
        started = time.monotonic()
        # One round more: in the first, the racers start.
        for number, was in enumerate(
            promotion_races.race(place, WAYS[name], versions[: 2 * racers], min(LIFE, rounds - first) + 1, racers)
        ):
            if number == 0:
                started = time.monotonic()
                continue
            winners += len(was.promoted)
            lost += not was.is_serial
            unseen += was.lost_promotions
            wrong += not bare and was.aliases != promotion_races.by_ledger(ledger.read_state(place.model))
        seconds += time.monotonic() - started
    row(
        database,
        name,
        racers,
        rounds,
        f"{winners / rounds:.2f}",
        f"{100 * lost / rounds:.1f}",
        f"{unseen / rounds:.2f}",
        "" if bare else f"{100 * wrong / rounds:.1f}",
        f"{seconds / rounds:.2f}",
    )


def row(*cells: object) -> None:
    widths = (9, 20, 7, 7, 8, 6, 7, 7, 8)
    print(
        " ".join(
            f"{cell!s:<{width}}" if k < 2 else f"{cell!s:>{width}}"
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
