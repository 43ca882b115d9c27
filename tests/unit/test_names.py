"""Names: a public one means one thing in the whole package, and tests have names that fit on a line."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("evergreen", "evergreen_local")
# Implementations of one protocol: every kind of gate has `compute`, every module that logs has `log`.
PROTOCOLS = {"compute", "log"}
# Words that say nothing without their neighbours.
BARE = frozenset(
    [
        "about",
        "after",
        "all",
        "along",
        "and",
        "any",
        "asked",
        "at",
        "at_once",
        "before",
        "beside",
        "between",
        "both",
        "by",
        "done",
        "each",
        "else",
        "empty",
        "every",
        "few",
        "found",
        "for",
        "from",
        "given",
        "gone",
        "had",
        "held",
        "here",
        "in",
        "kept",
        "known",
        "left",
        "like",
        "made",
        "many",
        "mine",
        "more",
        "most",
        "of",
        "off",
        "on",
        "one",
        "other",
        "others",
        "ours",
        "out",
        "over",
        "own",
        "said",
        "same",
        "seen",
        "shown",
        "so",
        "some",
        "such",
        "taken",
        "than",
        "that",
        "theirs",
        "them",
        "then",
        "there",
        "these",
        "this",
        "those",
        "to",
        "told",
        "under",
        "until",
        "up",
        "wanted",
        "what",
        "when",
        "where",
        "which",
        "who",
        "whom",
        "whose",
        "why",
        "with",
        "without",
    ]
)
LONGEST_TEST_NAME = 60


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def is_task(node: ast.AST) -> bool:
    """Whether a function is a task of a DAG, which is named like its task."""
    decorators = getattr(node, "decorator_list", [])
    return any("task" in ast.unparse(decorator).split("(")[0].split(".") for decorator in decorators)


def public_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() if not is_task(node):
                names = [node.name]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                continue
        yield from (name for name in names if not name.startswith("_"))


def bound_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()):
                yield node.lineno, name


def test_public_names_are_unique() -> None:
    homes = defaultdict(list)
    for path, tree in sources(*(f"include/{package}" for package in PACKAGES)):
        for name in public_names(tree):
            homes[name].append(str(path))
    assert not {name: paths for name, paths in homes.items() if len(paths) > 1 and name not in PROTOCOLS}


def test_names_stand_on_their_own() -> None:
    bare = [
        f"{path}:{line}: {name}"
        for path, tree in sources("include", "dags", "plugins", "feature_repo")
        for line, name in bound_names(tree)
        if name.strip("_") in BARE
    ]
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize("folder", sorted(path.name for path in (ROOT / "tests").iterdir() if path.is_dir()))
def test_test_names_fit_on_a_line(folder: str) -> None:
    long = [
        f"{path}:{node.lineno}: {node.name}"
        for path, tree in sources(f"tests/{folder}")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and len(node.name) > LONGEST_TEST_NAME + len("test_")
    ]
    assert not long, "\n".join(long)
