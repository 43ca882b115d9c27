"""What is recorded about engines, and the end of a log."""

import json

import pytest

from evergreen_local.processes import Identity
from evergreen_local.stack import Engine, Record, StackError, tail

pytestmark = pytest.mark.unit

ENGINE = {"process": Identity(pid=7, started=12.34), "url": "http://127.0.0.1:5000"}


def test_a_record_is_read_as_it_was_written(tmp_path):
    engine = Engine(**ENGINE, log=tmp_path / "logs" / "mlflow.log", told={"EVERGREEN_HOME": str(tmp_path)})
    record = Record().with_engine("mlflow", engine)
    record.write(tmp_path)
    assert Record.read(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]


def test_writing_replaces_one_engine_and_keeps_the_others(tmp_path):
    spark, mlflow, newer = (Engine(**ENGINE, log=tmp_path / name) for name in "abc")
    record = Record().with_engine("spark", spark).with_engine("mlflow", mlflow).with_engine("spark", newer)
    assert record.engines == {"spark": newer, "mlflow": mlflow}


def test_no_record_means_nothing_is_up(tmp_path):
    assert Record.read(tmp_path).engines == {}


@pytest.mark.parametrize("text", ["", "{", json.dumps({"engines": {"mlflow": {"pid": 7}}})])
def test_a_file_that_is_something_else_is_named_with_the_way_out(tmp_path, text):
    (tmp_path / "stack.json").write_text(text)
    with pytest.raises(StackError, match=r"stack.json is not readable: delete it"):
        Record.read(tmp_path)


def test_the_tail_of_a_log_is_its_last_lines_that_say_something(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\n".join(b"line %d\n" % n for n in range(5000)) + b"\xff\n\n")
    assert tail(log, 2) == "line 4999\n\N{REPLACEMENT CHARACTER}"
    log.write_text("\n")
    assert tail(log) == "(the log is empty)"
    assert tail(tmp_path / "another") == "(no log)"
