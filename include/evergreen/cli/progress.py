"""What goes on, for people: redrawn in place on a terminal, plain lines anywhere else.

On a terminal nothing scrolls by but what is finished. Elsewhere (a log, CI) a line appears whenever there is
news, and every fifteen seconds when there is none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

REPEAT_INTERVAL_S = 15.0
"""Seconds after which a plain line is repeated although nothing has changed."""

_MIN_INTERVAL_S = 2.0  # no two plain lines follow each other faster than this
_STEPS = 10  # steps that fit on a screen

_STATE_STYLES = {
    "success": ("✓", "green"),
    "failed": ("✗", "red"),
    "upstream_failed": ("✗", "red"),
    "skipped": ("–", "yellow"),
    "up_for_retry": ("↻", "yellow"),
    "running": ("▸", "cyan"),
}


@dataclass(frozen=True)
class ProgressStep:
    """One thing that waits, runs, or is over. `state` is one of Airflow's; `seconds` it has taken so far."""

    name: str
    state: str
    seconds: float | None = None

    def __str__(self) -> str:
        sign = _STATE_STYLES.get(self.state, ("·", ""))[0]
        note = "" if self.state in ("success", "running") else f" {self.state}"
        return f"{sign} {self.name}{note}" + (f" {format_duration(self.seconds)}" if self.seconds is not None else "")


@dataclass(frozen=True)
class ProgressView:
    """The state of something under way. A change of `news` is worth a plain line of its own."""

    title: str
    completed: int
    total: int
    unit: str
    steps: tuple[ProgressStep, ...] = ()
    change_key: Hashable = None

    def __str__(self) -> str:
        under_way = [step for step in self.steps if step.state not in ("waiting", "success", "skipped")]
        parts = [f"{self.title}  {self.completed}/{self.total} {self.unit}", *map(str, under_way)]
        return "  ".join(parts)

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
        for step in self.steps[:_STEPS]:
            sign, style = _STATE_STYLES.get(step.state, ("·", "dim"))
            seconds = format_duration(step.seconds) if step.seconds is not None else ""
            rows.add_row(" ", Text(sign, style=style), Text(step.name, style=style), step.state, seconds)
        if len(self.steps) > _STEPS:
            rows.add_row(" ", "", Text(f"and {len(self.steps) - _STEPS} more", style="dim"))
        return Group(head, rows)


class Progress:
    """Where a command says what it does; a context, so that the terminal is left as it was found.

    It keeps talking while its user waits for something: by itself it redraws, or repeats the last line.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal and console is None:
            self.console.width = 160  # a log has no width; eighty columns would tear tables apart
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
        if self.console.is_terminal:
            self._live.start()
        else:
            threading.Thread(target=self._refresh_periodically, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
        self._stop_event.set()
        if self.console.is_terminal:
            self._live.stop()

    def print(self, text: RenderableType, style: str = "") -> None:
        """Something that is so, and stays on the screen."""
        with self._lock:
            self._last_print_time = self._clock()
            if isinstance(text, str):
                self.console.print(text, style=style, markup=False, soft_wrap=True)
            else:
                self.console.print(text)

    def update(self, view: ProgressView) -> None:
        """How it stands now; call it as often as you look."""
        with self._lock:
            if self._view is None or view.title != self._view.title:
                self._start_time = self._clock()
            self._view = view
        self.refresh()

    def refresh(self) -> None:
        """Repeat the view as a plain line, if there is news in it or nothing has been said for long."""
        with self._lock:
            if self._view is None or self.console.is_terminal:
                return
            quiet = self._clock() - self._last_print_time
            if quiet >= REPEAT_INTERVAL_S or (
                self._view.change_key != self._last_change_key and quiet >= _MIN_INTERVAL_S
            ):
                self._last_change_key = self._view.change_key
                self.print(f"{format_duration(self._clock() - self._start_time):>9}  {self._view}")

    def clear(self) -> None:
        """What was shown is over."""
        with self._lock:
            self._view = None

    def _refresh_periodically(self) -> None:
        while not self._stop_event.wait(1):
            self.refresh()

    def _render_view(self) -> RenderableType:
        with self._lock:
            return self._view.render(self._spinner, self._clock() - self._start_time) if self._view else ""


def format_duration(seconds: float) -> str:
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
