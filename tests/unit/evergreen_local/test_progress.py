"""Progress as plain lines in a log, and on a terminal."""

from io import StringIO

import pytest
from rich.console import Console

from evergreen_local.progress import Progress, ProgressStep, ProgressView, format_duration

pytestmark = pytest.mark.unit


class LoggedProgress:
    """A progress with its output in a string, and with a clock set by the test."""

    def __init__(self):
        self.now = 0.0
        self.text = StringIO()
        self.progress = Progress(Console(file=self.text, width=120), clock=lambda: self.now)

    def lines(self):
        return self.text.getvalue().splitlines()


def view(done, *steps, title="features"):
    return ProgressView(title, done, 3, "days", steps, change_key=done)


def test_update_prints_changes_only():
    logged = LoggedProgress()
    for second, done in [(0, 0), (2, 0), (4, 1), (6, 1), (8, 2)]:
        logged.now = second
        logged.progress.update(view(done))
    assert [line.split() for line in logged.lines()] == [
        ["0", "s", "features", "0/3", "days"],
        ["4", "s", "features", "1/3", "days"],
        ["8", "s", "features", "2/3", "days"],
    ]


def test_refresh_repeats_the_line_every_15_seconds():
    logged = LoggedProgress()
    logged.progress.update(view(0))
    for second in range(1, 61):
        logged.now = second
        logged.progress.refresh()
    assert [line.split()[0] for line in logged.lines()] == ["0", "15", "30", "45", "1"]  # 1 min 00 s


def test_update_limits_the_rate_of_lines():
    logged = LoggedProgress()
    for n in range(100):
        logged.now = n / 10
        logged.progress.update(view(n))
    assert len(logged.lines()) <= 6


def test_clear_ends_the_lines():
    logged = LoggedProgress()
    logged.progress.update(view(0))
    logged.progress.clear()
    logged.now = 100
    logged.progress.refresh()
    assert len(logged.lines()) == 1


def test_elapsed_time_starts_with_each_title():
    logged = LoggedProgress()
    for second, title in [(0, "one"), (20, "one"), (40, "two")]:
        logged.now = second
        logged.progress.update(view(0, title=title))
    assert [line.split()[0] for line in logged.lines()] == ["0", "20", "0"]


def test_view_as_text_names_active_steps_only():
    steps = (
        ProgressStep("plan", "success", 1.0),
        ProgressStep("train", "running", 75.4),
        ProgressStep("judge", "waiting"),
        ProgressStep("build", "up_for_retry"),
    )
    assert str(view(1, *steps)) == "features  1/3 days  ▸ train 1 min 15 s  ↻ build up for retry"


def test_print_ignores_markup():
    logged = LoggedProgress()
    logged.progress.print("[red]a path like [/tmp][/red]")
    assert logged.lines() == ["[red]a path like [/tmp][/red]"]


def test_render_limits_the_number_of_steps():
    steps = tuple(ProgressStep(f"2013-01-{day:02d} build", "running", 3.0) for day in range(1, 32))
    console = Console(file=StringIO(), width=100)
    console.print(view(1, *steps).render("-", 65))
    lines = console.file.getvalue().splitlines()
    assert "1/3 days" in lines[0]
    assert "1 min 05 s" in lines[0]
    assert len(lines) == 12
    assert lines[-1].split() == ["and", "21", "more"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (60, "1 min 00 s"), (3599.9, "60 min 00 s")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text
