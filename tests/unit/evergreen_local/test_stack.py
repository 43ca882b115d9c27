"""The record of services, and the end of a log."""

import json

import pytest

from evergreen_local.processes import ProcessIdentity
from evergreen_local.stack import ServiceRecord, StackError, StackRecord, log_tail

pytestmark = pytest.mark.unit

FIELDS = {"process": ProcessIdentity(pid=7, start_time=12.34), "url": "http://127.0.0.1:5000"}


def test_record_round_trip(tmp_path):
    service = ServiceRecord(
        **FIELDS, log=tmp_path / "logs" / "mlflow.log", environment={"EVERGREEN_HOME": str(tmp_path)}
    )
    record = StackRecord().with_service("mlflow", service)
    record.write(tmp_path)
    assert StackRecord.read(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]


def test_with_service_replaces_one_service(tmp_path):
    spark, mlflow, newer = (ServiceRecord(**FIELDS, log=tmp_path / name) for name in "abc")
    record = StackRecord().with_service("spark", spark).with_service("mlflow", mlflow).with_service("spark", newer)
    assert record.services == {"spark": newer, "mlflow": mlflow}


def test_read_without_a_record_is_empty(tmp_path):
    assert StackRecord.read(tmp_path).services == {}


@pytest.mark.parametrize("text", ["", "{", json.dumps({"services": {"mlflow": {"pid": 7}}})])
def test_read_names_an_invalid_record(tmp_path, text):
    (tmp_path / "stack.json").write_text(text)
    with pytest.raises(StackError, match=r"stack.json is not readable: delete it"):
        StackRecord.read(tmp_path)


def test_log_tail_skips_empty_lines(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\n".join(b"line %d\n" % n for n in range(5000)) + b"\xff\n\n")
    assert log_tail(log, 2) == "line 4999\n\N{REPLACEMENT CHARACTER}"
    log.write_text("\n")
    assert log_tail(log) == "(the log is empty)"
    assert log_tail(tmp_path / "another") == "(no log)"
