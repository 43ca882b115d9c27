"""Plain lines for logs: news at once, silence never, spam neither."""

from io import StringIO

import pytest
from rich.console import Console

from evergreen.cli.progress import Progress, ProgressStep, ProgressView, format_duration

pytestmark = pytest.mark.unit


class Watched:
    """A progress into a string, at a time of our choosing."""

    def __init__(self):
        self.now = 0.0
        self.text = StringIO()
        self.progress = Progress(Console(file=self.text, width=120), clock=lambda: self.now)

    def lines(self):
        return self.text.getvalue().splitlines()


def view(done, *steps, title="features"):
    return ProgressView(title, done, 3, "days", steps, change_key=done)


def test_news_is_said_and_no_news_is_not():
    watched = Watched()
    for second, done in [(0, 0), (2, 0), (4, 1), (6, 1), (8, 2)]:
        watched.now = second
        watched.progress.update(view(done))
    assert [line.split() for line in watched.lines()] == [
        ["0", "s", "features", "0/3", "days"],
        ["4", "s", "features", "1/3", "days"],
        ["8", "s", "features", "2/3", "days"],
    ]


def test_silence_is_broken_every_fifteen_seconds_though_nobody_shows_anything():
    watched = Watched()
    watched.progress.update(view(0))
    for second in range(1, 61):
        watched.now = second
        watched.progress.refresh()
    assert [line.split()[0] for line in watched.lines()] == ["0", "15", "30", "45", "1"]  # 1 min 00 s


def test_a_flood_of_news_is_thinned():
    watched = Watched()
    for n in range(100):
        watched.now = n / 10
        watched.progress.update(view(n))
    assert len(watched.lines()) <= 6


def test_nothing_is_said_about_what_is_over():
    watched = Watched()
    watched.progress.update(view(0))
    watched.progress.clear()
    watched.now = 100
    watched.progress.refresh()
    assert len(watched.lines()) == 1


def test_time_counts_from_the_first_look_at_each_thing():
    watched = Watched()
    for second, title in [(0, "one"), (20, "one"), (40, "two")]:
        watched.now = second
        watched.progress.update(view(0, title=title))
    assert [line.split()[0] for line in watched.lines()] == ["0", "20", "0"]


def test_a_line_names_what_is_under_way_and_leaves_out_what_is_not():
    steps = (
        ProgressStep("plan", "success", 1.0),
        ProgressStep("train", "running", 75.4),
        ProgressStep("judge", "waiting"),
        ProgressStep("build", "up_for_retry"),
    )
    assert str(view(1, *steps)) == "features  1/3 days  ▸ train 1 min 15 s  ↻ build up_for_retry"


def test_what_people_said_is_not_taken_for_markup():
    watched = Watched()
    watched.progress.print("[red]a path like [/tmp][/red]")
    assert watched.lines() == ["[red]a path like [/tmp][/red]"]


def test_on_a_terminal_everything_fits_the_screen():
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
def test_duration(seconds, text):
    assert format_duration(seconds) == text
