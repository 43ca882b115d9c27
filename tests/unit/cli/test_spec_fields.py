"""The fields of a spec in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.cli.spec_fields import spec_parts

pytestmark = pytest.mark.unit


def show(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["fields", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("part", spec_parts())
def test_every_part_shows_every_field(part: str) -> None:
    text, fields = show(part), spec_parts()[part].model_fields
    assert len(fields) > 1
    assert all(f"  {name} " in text for name in fields)
    records = {record["field"]: record for record in json.loads(show(part, "--json"))}
    assert list(records) == list(fields)
    for name, field in fields.items():
        assert (records[name]["default"] == "needed") == field.is_required()


def test_a_part_of_a_part_is_named_where_it_belongs() -> None:
    assert {"features", "features.sources.query", "gates.against_champion", "forecast"} <= set(spec_parts())
    assert "features.sources.query" in show()
    assert "parts: features.sources.files" in show("features.sources")
    assert "parts:" not in show("forecast")
    assert "../guides" not in show(), "a link leads nowhere in a terminal"


def test_no_part_of_a_spec_is_left_out() -> None:
    def nested(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for argument in get_args(annotation):
            yield from nested(argument)

    parts = set(spec_parts().values())
    for part in parts:
        for field in part.model_fields.values():
            assert set(nested(field.annotation)) <= parts


def test_a_typo_is_answered() -> None:
    for part, answer in (("featurs.sources", "did you mean 'features.sources'?"), ("€", "there are features, ")):
        result = CliRunner().invoke(app, ["fields", part])
        assert result.exit_code
        assert answer in result.output
