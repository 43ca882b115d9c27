"""Pages that readers follow: their blocks, and the output that they show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from support.documents import DOCS

TUTORIAL = DOCS / "tutorial.md"


@dataclass(frozen=True)
class Block:
    """A fenced block of the page, the paragraph before it, and the heading above."""

    language: str
    text: str
    introduction: str
    section: str


def read_blocks(text: str) -> Iterator[Block]:
    section = ""
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        section = part.splitlines()[0] if part.startswith("## ") else ""
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
            introduction = part[: match.start()].rstrip().rpartition("\n\n")[2]
            yield Block(match[1], match[2], introduction, section)


def assert_shown(expected: str, output: str) -> None:
    """Check that the lines of `expected` are in `output`, in this order.

    Blanks, borders of tables and numbers with a decimal point may differ: libraries and terminals decide them. `…`
    stands for any text in a line, or for any lines.
    """
    lines = iter([normalise(line) for line in output.splitlines()])
    for line in filter(None, (normalise(line) for line in expected.splitlines())):
        pattern = re.escape(line).replace("…", ".*")
        assert line == "…" or any(re.fullmatch(pattern, other) for other in lines), f"{line!r} is not in\n{output}"


def normalise(line: str) -> str:
    text = re.sub(r"[│─╭╮╰╯├┤┬┴┼]", " ", line)
    return " ".join(re.sub(r"(?<![\w-])[−+-]?\d+(,\d{3})*\.\d+", "#", text).split())
