"""The examples of the documentation: Python is executed, data is parsed, commands exist with their options.

What cannot be run is preceded by `<!--- skip: next "reason" -->`. The files of the guide to a repository of one's
own, and all of the tutorial, are executed by tests/integration/release.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

import pytest
import yaml
from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from typer.main import get_command
from typer.testing import CliRunner

from evergreen.cli import app, load_commands
from support.documents import PAGES, ROOT, documented_files, page_name

pytestmark = pytest.mark.unit

SKIPPED_EXAMPLES = 1
# Programs that examples call and that no test has: their lines are only parsed by the shell.
OTHER_PROGRAMS = {
    "airflow",
    "cd",
    "cosign",
    "curl",
    "docker",
    "dvc",
    "git",
    "kind",
    "kubectl",
    "mkdir",
    "openssl",
    "pip",
    "printf",
    "python3.11",
    "setfacl",
    "tail",
}
# Run, not only parsed: they need no server and change nothing.
CHEAP_COMMANDS = (["--version"], ["--help"], ["history", "flight_delay"])
LANGUAGES = {"python", "console", "json", "yaml", "toml", "dockerfile", "text"}

LINE_CONTINUATION = re.compile(r"\\\n\s*")
FENCE = re.compile(r"^ *```(\w*)", re.MULTILINE)
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
MAKE_VARIABLES = set(re.findall(r"^([A-Z_]+) [?:]?=|\$\(([A-Z_]+)\)", (ROOT / "Makefile").read_text(), re.MULTILINE))

load_commands()


def run_python(example: Example) -> None:
    """Execute a block in the namespace of its page. Two kinds are checked otherwise.

    A DAG file must be like those of this repository. A whole file of another repository, and what the tutorial does in
    its project, is compiled; its engines are too slow for a unit test.
    """
    if name := re.search(r'airflow_dags\("(\w+)"\)', example.parsed):
        code = re.sub(r"^# .*\n", "", example.parsed)
        assert code == (ROOT / "dags/flight_delay.py").read_text().replace("flight_delay", name[1])
    elif example.path.endswith("docs/tutorial.md") or (
        re.match(r"# (?!.*/model\.py)[\w./-]+\.py\n", example.parsed) and example.path.endswith("own-repository.md")
    ):
        compile(example.parsed, example.path, "exec")
    else:
        PythonEvaluator()(example)


def check_console(example: Example) -> None:
    for command in console_commands(example.parsed):
        check_command(command)


def console_commands(block: str) -> Iterator[str]:
    """Yield the commands of a block: lines after a prompt, without comments."""
    for line in LINE_CONTINUATION.sub("", block).splitlines():
        if not line.startswith("$ "):
            raise AssertionError(f"{line!r} is no command: begin it with '$ ', or show output in a text block")
        yield line[2:]


def check_command(line: str) -> None:
    """Check that the shell can parse the line, and that its programs, targets and options exist."""
    subprocess.run(["bash", "-n"], input=line, text=True, check=True)
    for part in re.split(r" (?:&&|\|) ", line):
        words = shlex.split(part, comments=True)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        match words:
            case ["evergreen" | "deploy/compose" | "deploy/cluster", *arguments]:
                check_arguments(arguments)
                if any(arguments[: len(cheap)] == cheap for cheap in CHEAP_COMMANDS):
                    result = CliRunner().invoke(app, arguments)
                    assert result.exit_code == 0, result.output
            case ["make", *arguments]:
                targets = [word for word in arguments if "=" not in word]
                assert set(targets) <= MAKE_TARGETS, part
                variables = {word.partition("=")[0] for word in arguments if "=" in word}
                assert variables <= {name for pair in MAKE_VARIABLES for name in pair}, part
            case ["python" | ".venv/bin/python" | ".trainer/bin/python", "-m", module, *_]:
                assert module in ("pytest", "model_signing"), part
            case ["python", script, *_]:
                assert (ROOT / script).exists() or script in shown_files(), part
            case ["export" | ".", *_]:
                pass
            case [program, *_]:
                assert program in OTHER_PROGRAMS, part


def check_arguments(arguments: list[str]) -> None:
    """Parse the arguments as the command line does, without running the command."""
    command, is_eager = get_command(app), arguments[:1] in (["--version"], ["--help"])
    context = command.make_context("evergreen", list(arguments), resilient_parsing=is_eager)
    while (commands := getattr(command, "commands", None)) and (rest := [*context._protected_args, *context.args]):
        assert rest[0] in commands, f"evergreen has no command {rest[0]}"
        command = commands[rest[0]]
        context = command.make_context(rest[0], rest[1:], parent=context)


def shown_files() -> set[str]:
    return {name for page in PAGES for name in documented_files(page)}


PARSERS = (
    SkipParser(),
    CodeBlockParser("python", run_python),
    CodeBlockParser("console", check_console),
    CodeBlockParser("json", lambda example: json.loads(example.parsed) and None),
    CodeBlockParser("yaml", lambda example: list(yaml.safe_load_all(example.parsed)) and None),
    CodeBlockParser("toml", lambda example: tomllib.loads(example.parsed) and None),
)


def evaluate(page: Path) -> Counter[str]:
    """Evaluate all examples of a page; return how many passed, and how many are skipped."""
    document = Document.parse(str(page), *PARSERS)
    counts: Counter[str] = Counter()
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest:
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return counts


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_examples_hold(page: Path, home: Path) -> None:
    evaluate(page)


def test_skipped_examples_only_become_fewer() -> None:
    texts = [page.read_text() for page in PAGES]
    reasons = [reason for text in texts for reason in re.findall(r"^<!--- skip: next (.*)-->$", text, re.MULTILINE)]
    assert all(reason.strip().strip('"') for reason in reasons)
    assert len(reasons) == SKIPPED_EXAMPLES


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_blocks_have_a_language_that_is_checked(page: Path) -> None:
    openings = FENCE.findall(page.read_text())[::2]
    assert set(openings) - {""} <= LANGUAGES


def test_broken_examples_are_noticed(tmp_path: Path) -> None:
    blocks = {
        "python": "assert 1 == 2",
        "json": "{'a': 1}",
        "toml": "a = ",
        "yaml": "a: [",
        "console": "$ evergreen history flight_delay --since 2013-03-01",
    }
    for language, block in blocks.items():
        page = tmp_path / f"{language}.md"
        page.write_text(f"```{language}\n{block}\n```\n")
        with pytest.raises(BaseException):  # noqa: B017, PT011 - of any kind; what matters is that there is one
            evaluate(page)


@pytest.mark.parametrize(
    "line",
    [
        "$ evergreen histori flight_delay",
        "$ evergreen rollback flight_delay",
        "$ make retran",
        "$ make up STAK=compose",
        "$ rm x",
    ],
)
def test_wrong_commands_are_noticed(line: str) -> None:
    with pytest.raises(BaseException):  # noqa: B017, PT011
        check_command(line[2:])
