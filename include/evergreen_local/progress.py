"""Progress of a command: a live display on a terminal, plain lines elsewhere.

On a terminal only finished steps scroll. In a log or CI, a line is printed when something changes, and otherwise every
fifteen seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from evergreen.cli import create_console

REPEAT_INTERVAL_S = 15.0
"""Seconds after which a plain line is repeated even if nothing has changed."""

_MIN_INTERVAL_S = 2.0  # between two plain lines
_MAX_STEPS = 10  # on a screen

_STATE_STYLES = {
    "success": ("✓", "green"),
    "failed": ("✗", "red"),
    "upstream_failed": ("✗", "red"),
    "skipped": ("–", "dim"),
    "up_for_retry": ("↻", "yellow"),
    "running": ("▸", "cyan"),
}


@dataclass(frozen=True)
class ProgressStep:
    """One step. `state` is a task state of Airflow; `seconds` is its duration so far."""

    name: str
    state: str
    seconds: float | None = None

    def __str__(self) -> str:
        sign = _STATE_STYLES.get(self.state, ("·", ""))[0]
        note = "" if self.state in ("success", "running") else f" {self.state.replace('_', ' ')}"
        return f"{sign} {self.name}{note}" + (f" {format_duration(self.seconds)}" if self.seconds is not None else "")


@dataclass(frozen=True)
class ProgressView:
    """State of an operation. A change of `change_key` is printed as a plain line."""

    title: str
    completed: int
    total: int
    unit: str
    steps: tuple[ProgressStep, ...] = ()
    change_key: Hashable = None

    def __str__(self) -> str:
        active = [step for step in self.steps if step.state not in ("waiting", "success", "skipped")]
        return "  ".join([f"{self.title}  {self.completed}/{self.total} {self.unit}", *map(str, active)])

    def render(self, spinner: RenderableType, elapsed: float) -> RenderableType:
        head = Table.grid(padding=(0, 2))
        head.add_row(
            spinner,
            Text(self.title, style="bold"),
            ProgressBar(total=max(self.total, 1), completed=self.completed, width=24),
            f"{self.completed}/{self.total} {self.unit}",
            Text(format_duration(elapsed), style="dim"),
        )
        rows = Table.grid(padding=(0, 2))
        for step in self.steps[:_MAX_STEPS]:
            sign, style = _STATE_STYLES.get(step.state, ("·", "dim"))
            seconds = format_duration(step.seconds) if step.seconds is not None else ""
            rows.add_row(" ", Text(sign, style=style), Text(step.name, style=style), step.state, seconds)
        if len(self.steps) > _MAX_STEPS:
            rows.add_row(" ", "", Text(f"and {len(self.steps) - _MAX_STEPS} more", style="dim"))
        return Group(head, rows)


class Progress:
    """The console of a command; a context manager, so that the terminal is always restored.

    A thread redraws the view, or repeats the last line, while the command waits.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        self.console = console or create_console()
        self._clock = clock
        self._spinner = Spinner("dots")
        self._view: ProgressView | None = None
        self._start_time = 0.0
        self._last_change_key: Hashable = object()
        self._last_print_time = -REPEAT_INTERVAL_S
        self._lock = threading.RLock()
        self._stop_event = threading.Event()
        self._live = Live(console=self.console, transient=True, refresh_per_second=4, get_renderable=self._render_view)

    def __enter__(self) -> Self:
        if not self.console.is_terminal:
            threading.Thread(target=self._refresh_periodically, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self._stop_event.set()
        self._live.stop()

    def print(self, text: RenderableType, style: str = "") -> None:
        """Print a permanent line, or a table."""
        with self._lock:
            self._last_print_time = self._clock()
            self.console.print(text, style=style, markup=False, soft_wrap=isinstance(text, str))

    def update(self, view: ProgressView) -> None:
        """Show `view` until the next update."""
        with self._lock:
            if self._view is None or view.title != self._view.title:
                self._start_time = self._clock()
            self._view = view
        if self.console.is_terminal:
            self._live.start()  # does nothing if it runs
        self.refresh()

    def refresh(self) -> None:
        """Print the view as a plain line if it has changed, or if nothing was printed for long."""
        with self._lock:
            if self._view is None or self.console.is_terminal:
                return
            silence = self._clock() - self._last_print_time
            changed = self._view.change_key != self._last_change_key
            if silence >= (_MIN_INTERVAL_S if changed else REPEAT_INTERVAL_S):
                self._last_change_key = self._view.change_key
                self.print(f"{format_duration(self._clock() - self._start_time):>9}  {self._view}")

    def clear(self) -> None:
        """Remove the view."""
        with self._lock:
            self._view = None

    def _refresh_periodically(self) -> None:
        while not self._stop_event.wait(1):
            self.refresh()

    def _render_view(self) -> RenderableType:
        # Without the lock: rich's thread calls this while it holds its own, which `print` waits for.
        view = self._view
        return view.render(self._spinner, self._clock() - self._start_time) if view else ""


def format_duration(seconds: float) -> str:
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
