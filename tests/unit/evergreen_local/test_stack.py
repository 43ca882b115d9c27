"""What is recorded about engines, and the end of a log."""

import json

import pytest

from evergreen_local.processes import ProcessIdentity
from evergreen_local.stack import ServiceRecord, StackError, StackRecord, log_tail

pytestmark = pytest.mark.unit

ENGINE = {"process": ProcessIdentity(pid=7, start_time=12.34), "url": "http://127.0.0.1:5000"}


def test_a_record_is_read_as_it_was_written(tmp_path):
    engine = ServiceRecord(
        **ENGINE, log=tmp_path / "logs" / "mlflow.log", environment={"EVERGREEN_HOME": str(tmp_path)}
    )
    record = StackRecord().with_service("mlflow", engine)
    record.write(tmp_path)
    assert StackRecord.read(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]


def test_writing_replaces_one_engine_and_keeps_the_others(tmp_path):
    spark, mlflow, newer = (ServiceRecord(**ENGINE, log=tmp_path / name) for name in "abc")
    record = StackRecord().with_service("spark", spark).with_service("mlflow", mlflow).with_service("spark", newer)
    assert record.services == {"spark": newer, "mlflow": mlflow}


def test_no_record_means_nothing_is_up(tmp_path):
    assert StackRecord.read(tmp_path).services == {}


@pytest.mark.parametrize("text", ["", "{", json.dumps({"engines": {"mlflow": {"pid": 7}}})])
def test_a_file_that_is_something_else_is_named_with_the_way_out(tmp_path, text):
    (tmp_path / "stack.json").write_text(text)
    with pytest.raises(StackError, match=r"stack.json is not readable: delete it"):
        StackRecord.read(tmp_path)


def test_the_tail_of_a_log_is_its_last_lines_that_say_something(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\n".join(b"line %d\n" % n for n in range(5000)) + b"\xff\n\n")
    assert log_tail(log, 2) == "line 4999\n\N{REPLACEMENT CHARACTER}"
    log.write_text("\n")
    assert log_tail(log) == "(the log is empty)"
    assert log_tail(tmp_path / "another") == "(no log)"
