"""`evergreen doctor`: whether all that Evergreen stands on is there, right, and allowed, as the servers themselves say.

A check is a function that looks at one thing. It gives what it has seen, or raises `Wrong` with the way out. They run
side by side, change nothing that stays, and none keeps the others waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from evergreen.cli.doctor import cluster, databases, environment, places, servers
from evergreen.cli.doctor.seen import Seen, Wrong
from evergreen.cli.progress import Progress, View
from evergreen.errors import EvergreenError, Fault, FaultsError
from evergreen.settings import Settings, settings, shown
from evergreen_local import stack

_WITHIN = 60.0  # seconds; each check has limits of its own, this is for what they do not reach
_CLOCKS = 5.0  # seconds that two clocks may differ: what Airflow forgives its tokens is 10


class NotWellError(FaultsError):
    """Something is wrong with what Evergreen stands on."""


@dataclass(frozen=True)
class Check:
    """Something to look at: what it is, where it is, and how."""

    subject: str
    where: str
    look: Callable[[], Seen]


@dataclass(frozen=True)
class Finding:
    """What a check came to; right if it needs no way out."""

    subject: str
    where: str
    what: str
    way_out: str = ""

    @property
    def right(self) -> bool:
        return not self.way_out


def checks(now: Settings, addresses: stack.Addresses | None) -> Iterator[Check]:
    """All checks for these settings; engines that were started on this machine are at `addresses`."""
    yield Check("settings", "the environment", environment.variables)
    yield Check("lake", str(now.lake), partial(places.folder, now.lake))
    yield Check("ledger", now.ledger, partial(places.place, now.ledger, append_only=True))
    yield Check("jobs", now.jobs, partial(places.place, now.jobs))
    yield Check("entries", now.ledger, places.entries)
    yield Check(
        "Feast's registry", shown(now.feast_registry), partial(databases.registry, now.feast_registry)
    )
    yield Check("online store", shown(now.online_store), partial(databases.online_store, now.online_store))
    if addresses:
        yield Check("Airflow", shown(addresses.airflow), partial(servers.airflow, addresses.airflow))
    else:
        yield Check("Airflow", "this machine", servers.not_up)
    mlflow = addresses.mlflow if addresses else now.mlflow
    if mlflow.startswith("http"):
        yield Check("MLflow", shown(mlflow), partial(servers.mlflow, mlflow))
    else:
        yield Check("MLflow's database", shown(mlflow), partial(databases.mlflow, mlflow))
    spark = addresses.spark if addresses else now.spark
    if spark.startswith("sc://"):
        yield Check("Spark Connect", shown(spark), partial(servers.spark, spark, now.lake))
    else:
        yield Check("Java", "this machine, for Spark", environment.java)
    if now.training == "pod":
        yield Check("Kubernetes", f"namespace {now.pods.namespace}", partial(cluster.kubernetes, now.pods))
    else:
        yield Check("trainer", str(now.trainer), partial(environment.trainer, now.trainer))
    for name in ("signing_key", "signing_passphrase", "signing_public_key", "prices"):
        if file := getattr(now, name):
            yield Check(name, str(file), partial(environment.readable, Path(file)))


def examine(todo: Sequence[Check]) -> Iterator[Finding]:
    """Make all checks at once; gives their findings in order, each as soon as those before it are there."""
    found: list[Finding | None] = [None] * len(todo)

    def make(number: int, check: Check) -> None:
        found[number] = _finding(check)

    # Not a pool: a check that hangs must not keep the command from ending.
    threads = [
        threading.Thread(target=make, args=(number, check), daemon=True) for number, check in enumerate(todo)
    ]
    for thread in threads:
        thread.start()
    for number, (check, thread) in enumerate(zip(todo, threads, strict=True)):
        thread.join(_WITHIN)
        yield found[number] or Finding(
            check.subject,
            check.where,
            f"gives no answer within {_WITHIN:.0f} s",
            "look at its log, or start it anew",
        )


def doctor(progress: Progress) -> None:
    """Make all checks that the settings call for, and tell of each.

    Raises:
        NotWellError: something is wrong; names all of it.
    """
    todo = list(checks(settings(), stack.addresses()))
    progress.show(View("looking at everything", 0, len(todo), "checks"))
    findings = list(examine(todo))
    progress.rest()
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "what", "where", "seen"):
        table.add_column(column, overflow="fold", no_wrap=column in ("", "what"))
    for finding in findings:
        sign = Text("✓", style="green") if finding.right else Text("✗", style="red")
        table.add_row(sign, finding.subject, Text(finding.where), Text(finding.what))
    progress.say(table)
    faults = [Fault(f"{f.subject}, {f.where}", f.what, f.way_out) for f in findings if not f.right]
    if faults:
        raise NotWellError("not all is well", faults)
    progress.say(f"all {len(findings)} checks are passed", style="green")


def _finding(check: Check) -> Finding:
    try:
        seen = check.look()
    except Wrong as wrong:
        return Finding(check.subject, check.where, wrong.what, wrong.way_out)
    except EvergreenError as error:
        return Finding(check.subject, check.where, str(error), "as it says")
    except Exception as error:  # a check that stumbles has not seen that all is well
        first = (str(error).splitlines() or [""])[0]
        return Finding(
            check.subject,
            check.where,
            f"cannot be checked: {type(error).__name__}: {first}",
            "this was not foreseen: mend what it names, then look again",
        )
    if seen.ahead is not None and abs(seen.ahead) > _CLOCKS:
        how = "ahead of" if seen.ahead > 0 else "behind"
        return Finding(
            check.subject,
            check.where,
            f"its clock is {abs(seen.ahead):.0f} s {how} this machine's",
            "keep both right by NTP (chrony or systemd-timesyncd): tokens and signatures expire by the clock",
        )
    return Finding(check.subject, check.where, seen.what)
