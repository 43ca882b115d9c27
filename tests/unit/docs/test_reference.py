"""The reference is complete: settings, fields, commands, errors; and what it quotes is what the code says."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import evergreen
import evergreen_local
from evergreen.settings import ENV_PREFIX, Settings, variable_name
from evergreen.spec.gates import METRIC_SCALES, Gate
from evergreen.spec.model import ModelSpec
from support.documents import DOCS, PAGES, ROOT, page_name, read_page, reference_tables

pytestmark = pytest.mark.unit

ERRORS = DOCS / "reference/errors.md"
PACKAGES = (evergreen, evergreen_local)
# Variables that Evergreen reads and that are no settings: reference/settings.md lists them apart. And those of tests.
OTHER_VARIABLES = {"EVERGREEN_PRELOAD", "EVERGREEN_STACK"} | {
    f"EVERGREEN_TEST_{name}" for name in ("DVC", "IMAGE", "S3", "S3A_JARS", "SPARK_IMAGE")
}


@cache
def modules() -> tuple[tuple[str, ast.Module], ...]:
    """Every module of the library, as a syntax tree: nothing is imported."""
    files = [file for package in PACKAGES for file in sorted((ROOT / "include" / package.__name__).rglob("*.py"))]
    return tuple((file.relative_to(ROOT).as_posix(), ast.parse(file.read_text())) for file in files)


def public_error_classes() -> set[str]:
    classes = (node for _, tree in modules() for node in tree.body if isinstance(node, ast.ClassDef))
    return {node.name for node in classes if node.name.endswith("Error") and not node.name.startswith("_")}


def message_text(node: ast.AST) -> str:
    """Return a string of the code, with `…` for values."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(message_text(part) for part in parts)
        case ast.BinOp(left=left, right=right):
            return message_text(left) + message_text(right)
    return "…"


def test_every_error_class_is_on_the_errors_page() -> None:
    page = ERRORS.read_text()
    headings = set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
    mentioned = set(re.findall(r"^\| (`\w+Error`.*?) \|", page, re.MULTILINE))
    internal = {name for cell in mentioned for name in re.findall(r"\w+", cell)}
    assert headings | internal == public_error_classes()


def test_quoted_messages_are_in_the_code() -> None:
    texts = {message_text(node) for _, tree in modules() for node in ast.walk(tree) if isinstance(node, ast.expr)}
    quoted = re.findall(r"^\| `([^`]+)` \|", ERRORS.read_text(), re.MULTILINE)
    messages = [message for message in quoted if not message.endswith("Error")]
    assert len(messages) > 30
    unknown = [message for message in messages if not any(message in text for text in texts)]
    assert not unknown


def test_all_settings_are_listed() -> None:
    text = read_page(DOCS / "reference/settings.md")
    groups = ("pods", "retention", "notifications")
    names = [variable_name(name) for name in Settings.model_fields if name not in groups]
    names += [
        variable_name(group, name) for group in groups for name in Settings.model_fields[group].annotation.model_fields
    ]
    assert [name for name in names if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_variables_named_in_docs_are_settings(page: Path) -> None:
    known = {variable_name(name) for name in Settings.model_fields} | OTHER_VARIABLES
    named = set(re.findall(rf"\b{ENV_PREFIX}[A-Z0-9_]*[A-Z0-9]", read_page(page)))
    assert not {name for name in named if name.partition("__")[0] not in known}


def test_all_fields_of_the_spec_are_listed() -> None:
    text = read_page(DOCS / "reference/spec.md")
    assert [name for name in ModelSpec.model_fields if f"| `{name}` |" not in text] == []


def test_all_gates_and_metrics_are_listed() -> None:
    text = read_page(DOCS / "reference/gates.md")
    kinds = [gate.model_fields["kind"].default for gate in Gate.__origin__.__args__]
    assert [kind for kind in kinds if f"### {kind}\n" not in text] == []
    assert [metric for metric in METRIC_SCALES if f"`{metric}`" not in text] == []


def test_every_field_has_a_description() -> None:
    for page in ("settings", "spec", "gates"):
        rows = re.findall(r"^\| .* \|$", read_page(DOCS / f"reference/{page}.md"), re.MULTILINE)
        generated = [row for row in rows if row.count(" | ") == 3]
        assert [row for row in generated if re.search(r"\|\s+\|$", row)] == []


def test_reference_does_not_depend_on_the_machine() -> None:
    for page in (DOCS / "reference").glob("*.md"):
        assert str(ROOT) not in read_page(page)


def test_types_are_readable() -> None:
    tables = reference_tables()
    table = tables.render_model(ModelSpec)
    assert "| `schedule` | cron expression | required |" in table
    assert "| `features` | [FeatureSpec](#featurespec) or name | required |" in table
    assert "| `holdout` | length of time | `14d` |" in table


def test_conf_of_every_dag_is_listed() -> None:
    sections = re.split(
        r"^## `(?:<model>|evergreen)\.(\w+)`$", (DOCS / "reference/dag-run-conf.md").read_text(), flags=re.MULTILINE
    )
    listed = {kind: re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) for kind, text in pairwise(sections[1:])}
    for name, tree in modules():
        if not name.startswith("include/evergreen/orchestration/dags/") or name.endswith("__init__.py"):
            continue
        constants = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        }
        params = next((k.value for k in ast.walk(tree) if isinstance(k, ast.keyword) and k.arg == "params"), None)
        if params is None:  # the routes of notifications are settings
            assert name.endswith("/notifications.py")
            continue
        keys = [key.value if isinstance(key, ast.Constant) else constants[key.id] for key in params.keys]
        assert set(listed[Path(name).stem]) >= set(keys)
        assert keys


def test_glossary_names_code_that_exists() -> None:
    trees = {name.removeprefix("include/").removesuffix(".py").replace("/", "."): tree for name, tree in modules()}
    code = {name.removesuffix(".__init__") for name in trees}
    for name, tree in trees.items():
        for node in tree.body:
            targets = getattr(node, "targets", [])
            names = [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]
            code |= {f"{name}.{defined}" for defined in names if defined}
    paths = re.findall(r"\| `([\w.]+)` \|$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert len(paths) > 40
    # The last part may be an attribute of a class.
    assert [path for path in paths if not {f"evergreen.{path}", f"evergreen.{path}".rpartition(".")[0]} & code] == []


def test_versions_to_install_are_those_of_the_lock() -> None:
    guide, lock = (DOCS / "guides/own-repository.md").read_text(), (ROOT / "requirements.txt").read_text()
    assert set(re.findall(r"feast==\S+", guide)) == set(re.findall(r"^feast==\S+", lock, re.MULTILINE))
    assert set(re.findall(r"airflow:([\d.]+)", guide)) == set(re.findall(r"^apache-airflow==(\S+)", lock, re.MULTILINE))
    assert set(re.findall(r"evergreen-([\d.]+)-py3", guide)) == {evergreen.__version__}


def test_all_commands_are_listed() -> None:
    text = read_page(DOCS / "reference/command-line.md")
    for command in ("history", "rollback", "ledger repair", "online rebuild", "doctor", "up", "retrain"):
        assert f"## evergreen {command}\n" in text
    assert "evergreen rollback MODEL --reason TEXT [--to-version VERSION]" in text
