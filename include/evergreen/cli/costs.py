"""What training has cost, by team and model, in the terminal."""

from __future__ import annotations

from collections import defaultdict

from rich import box
from rich.table import Table

from evergreen import storage
from evergreen.cli.progress import Progress
from evergreen.settings import settings
from evergreen.training.attempt import Attempt, read_attempts
from evergreen.training.cost import PriceTable, total_cost


def show_training_costs(progress: Progress) -> None:
    """One line for each team and model, of all attempts that are on record.

    Raises:
        SpecError: the table of prices is missing or wrong.
    """
    priced = settings().prices
    prices = PriceTable.read(priced) if priced else None
    found: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    root = storage.storage_path(settings().jobs)
    for model in storage.list_names(root):
        for job in storage.list_names(root / model):
            for attempt in read_attempts(root / model / job):
                found[attempt.team, attempt.model].append(attempt)
    if not found:
        progress.print(f"no attempt is on record in {settings().jobs}")
        return
    table = Table(title="cost of training", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("team", "model"):
        table.add_column(column)
    money = prices.currency if prices else "price"
    for column in ("attempts", "GPU hours", "CPU hours", "GiB hours", money):
        table.add_column(column, justify="right")
    for (team, model), known in sorted(found.items()):
        cost = total_cost(known, prices)
        hours = (cost.gpu_seconds / 3600, cost.cpu_seconds / 3600, cost.memory_gib_seconds / 3600)
        price = "–" if cost.price is None else f"{cost.price:,.2f}"
        table.add_row(team or "–", model, str(cost.attempts), *(f"{value:,.2f}" for value in hours), price)
    progress.print(table)
    if prices is None:
        progress.print("no prices are set: EVERGREEN_PRICES names the table, see docs/kubernetes.md")
