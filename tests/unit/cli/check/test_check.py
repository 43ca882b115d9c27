"""`evergreen check` names each common mistake in one fault, with its file, its line and the way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from evergreen.cli import app, check
from evergreen.cli.check import find_model_faults
from evergreen.cli.check.locations import ModelFault
from evergreen.settings import settings
from support.documents import DOCS, ROOT, documented_files
from support.small_models import forget_model, write_small_model

pytestmark = pytest.mark.unit

SPEC = """
from evergreen.spec.model import ModelSpec
from .raw import VISITS
MODEL = ModelSpec(
    name="shops",
    owner="tests",
    features=dict(
        timezone="UTC",
        first_day="2024-01-01",
        sources=[
            VISITS,
            dict(name="weather", files=dict(path="weather/%Y-%m-%d.csv", format="csv"), columns=dict(rain="float64")),
            dict(name="sales", query=dict(connection="till", sql="SELECT :start, :end"), columns=dict(x="int64")),
        ],
        spine="visits",
        views=["habits", "stocks"],
    ),
    feature_service="shops",
    request_columns=["hour"],
    label="sold",
    clusters=["day", "shop"],
    schedule="0 0 * * 1",
    training_libraries=["pyarrow"],
    score=dict(columns=["shop", "hour"]),
    gates=[
        dict(kind="threshold", metric="auc", at_least=0.5),
        dict(kind="by_slice", metric="auc", group_by="shop || hour", margin=0.1),
        dict(kind="by_slice", metric="brier", group_by="shop", margin=0.1),
        dict(kind="baseline", metric="log_loss", baseline="habits__mean_sold"),
        dict(kind="custom", function="evergreen_models.shops.rules:is_open"),
    ],
)
"""
RAW = """
VISITS = dict(
    name="visits",
    columns={
        "shop": dict(type="int64", nullable=False),
        "seen_at": "timestamp[us, tz=UTC]",
    },
)
"""
FEATURES = """
from evergreen.features import FeatureTables

SPINE = ("event_timestamp", "shop", "hour", "sold", "label_known_at")
STOCKS = ("event_timestamp", "shop", "pieces")


def build(spark, raw, days, calendar):
    return [
        FeatureTables({"visits": SPINE}, None),
        FeatureTables({"habits": ("event_timestamp", "shop", "mean_sold")}, None),
        FeatureTables({"stocks": STOCKS}, None),
    ]
"""
EXPECTATIONS = """
import great_expectations.expectations as gxe
from evergreen_models.shops.features import STOCKS


def raw_expectations(source, day):
    if source == "visits":
        return [gxe.ExpectColumnValuesToNotBeNull(column="seen_at")]
    return [gxe.ExpectTableRowCountToBeBetween(min_value=1)]


def feature_expectations(table):
    keys = {"visits": "shop", "habits": "shop", "stocks": "shop"}
    rules = [gxe.ExpectColumnValuesToNotBeNull(column=keys[table])]
    if table == "habits":
        rules.append(gxe.ExpectColumnValuesToBeBetween(column="mean_sold", min_value=0))
    return rules
"""
TRAIN = """
import a_package_of_the_trainer
from evergreen_models.shops.rules import is_open


def fit(job, output, checkpoints):
    return {}
"""
RULES = """
def is_open(evidence):
    return True
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Array, Float64, Int64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source
from evergreen_models.shops.features import STOCKS

shop = Entity(
    name="shop",
    join_keys=["shop"],
    value_type=ValueType.INT64,
)
habits = FeatureView(
    name="habits",
    entities=[shop],
    ttl=timedelta(days=1),
    schema=[Field(name="mean_sold", dtype=Float64)],
    source=feature_source("shops", "habits"),
)
stocks = FeatureView(
    name="stocks", entities=[shop], ttl=timedelta(days=1),
    schema=[Field(name="pieces", dtype=Int64)],
    source=feature_source("shops", "stocks"),
)
shops = FeatureService(name="shops", features=[habits, stocks])
"""


class Mistake(NamedTuple):
    """What is written instead, in which file, and what the fault says."""

    file: str
    old: str
    new: str
    problem: str
    fix: str
    place: str = ""
    """Text in the line of the fault, if not `new`; `-` if the fault has no line."""
    place_file: str = ""
    """The file of the fault, if not the one with the mistake."""


MODEL, FEAST = "shops/model.py", "feature_repo/shops.py"
BUILD, RULES_FILE, FIT = "shops/features.py", "shops/expectations.py", "shops/train.py"
WHOLE = "\0"  # instead of `old`: all of the file
MISTAKES = {
    # The spec.
    "syntax of the spec": Mistake(MODEL, 'label="sold",', 'label=="sold"', "SyntaxError", "correct it"),
    "a module that the spec lacks": Mistake(
        MODEL, "from .raw import", "from .rawr import", "No module named 'evergreen_models.shops.rawr'", "'raw'?"
    ),
    "input of a group": Mistake(
        MODEL,
        "    score=",
        '    input_groups=dict(\n        a=["hour", "habits"],\n        b=["stocks__peices"],\n    ),\n    score=',
        "'stocks__peices' is no input and no view",
        "did you mean 'stocks__pieces'?",
        "stocks__peices",
    ),
    "view of a group": Mistake(
        MODEL,
        "    score=",
        '    input_groups=dict(a=["habit"]),\n    score=',
        "'habit' is no input",
        "did you mean 'habits'?",
        "habit",
    ),
    "input in two groups": Mistake(
        MODEL,
        "    score=",
        '    input_groups=dict(\n        a=["habits", "hour"],\n        b=["habits__mean_sold"],\n    ),\n    score=',
        "habits__mean_sold is in the group 'a', too",
        "remove it from one of them",
        "habits__mean_sold",
    ),
    "no name": Mistake(MODEL, 'name="shops",\n    owner', "owner", "field required", "add it", "MODEL = ModelSpec("),
    "name of another folder": Mistake(
        MODEL,
        'name="shops",\n    owner',
        'name="shop",\n    owner',
        "is 'shop'",
        "name it like its folder",
        'name="shop",',
    ),
    "no MODEL": Mistake(MODEL, "MODEL = ModelSpec", "SPEC = ModelSpec", "defines no MODEL", "add MODEL =", "-"),
    "typo in a required field": Mistake(MODEL, "schedule=", "shedule=", "there is no such field", "'schedule'?"),
    "typo in a field of a source": Mistake(
        "shops/raw.py", "nullable=False", "nulable=False", "there is no such field", "did you mean 'nullable'?"
    ),
    "type of a raw column": Mistake("shops/raw.py", '"int64"', '"int"', "'int' is no type of a column", "write int64"),
    "kind of a gate": Mistake(MODEL, '"threshold"', '"treshold"', "is no kind of gate", "did you mean 'threshold'?"),
    "metric of a gate": Mistake(
        MODEL, 'metric="brier"', 'metric="brierr"', "metric 'brierr' is none of", "did you mean 'brier'?"
    ),
    "metric for other labels": Mistake(
        MODEL, 'metric="brier"', 'metric="mae"', "mae is for labels that are amounts or counts", "write one of auc"
    ),
    "metric for another kind": Mistake(
        MODEL, 'metric="brier"', 'metric="macro_f1"', "macro_f1 is a metric of multiclass models", "declare kind="
    ),
    "kind without its classes": Mistake(
        MODEL,
        'label="sold",',
        'label="sold", kind="multiclass",',
        "is missing, and kind is 'multiclass'",
        "list at least two",
        "MODEL = ModelSpec(",
    ),
    "column of a custom gate": Mistake(
        MODEL,
        "rules:is_open",
        'rules:is_open", columns=["howr"], name="open',
        "no column 'howr'",
        "did you mean 'hour'?",
    ),
    "column of a slice": Mistake(
        MODEL, 'group_by="shop",', 'group_by="shopp",', "the holdout has no column 'shopp'", "did you mean 'shop'?"
    ),
    "column in an expression": Mistake(
        MODEL, '"shop || hour"', '"shop || houre"', "the holdout has no column 'houre'", "did you mean 'hour'?"
    ),
    "expression that is no SQL": Mistake(MODEL, '"shop || hour"', '"shop |"', "is no SQL", "DuckDB's SQL"),
    "baseline without its view": Mistake(
        MODEL, "habits__mean_sold", "mean_sold", "no column 'mean_sold'", "did you mean 'habits__mean_sold'?"
    ),
    "function of a gate": Mistake(
        MODEL, "rules:is_open", "rules:is_opn", "has no function 'is_opn'; it has is_open", "did you mean 'is_open'?"
    ),
    "module of a gate": Mistake(
        MODEL,
        "shops.rules:is_open",
        "shop.rules:is_open",
        "evergreen_models.shop.rules cannot be imported",
        "correct it",
    ),
    "label that is not in the spine": Mistake(
        MODEL, 'label="sold"', 'label="sld"', "the spine 'visits' has no column 'sld'", "did you mean 'sold'?"
    ),
    "request column that is not in the spine": Mistake(
        MODEL, '["hour"]', '["hours"]', "has no column 'hours'", "did you mean 'hour'?"
    ),
    "column of predictions that is not in the spine": Mistake(
        MODEL, '["shop", "hour"]', '["shop", "houre"]', "has no column 'houre'", "did you mean 'hour'?"
    ),
    "field of score that does not exist": Mistake(
        MODEL, "score=dict(columns=", "score=dict(colums=", "there is no such field", "did you mean 'columns'?"
    ),
    "label as an input": Mistake(MODEL, '["hour"]', '["hour", "sold"]', "'sold' is of the label", "remove it"),
    "cluster that is not in the spine": Mistake(
        MODEL, '["day", "shop"]', '["day", "shops"]', "has no column 'shops'", "did you mean 'shop'?"
    ),
    "service that is not defined": Mistake(
        MODEL,
        'feature_service="shops"',
        'feature_service="shop"',
        "defines no service 'shop'; it has shops",
        "'shops'?",
    ),
    "view that is nowhere": Mistake(
        MODEL, '"habits", ', '"habit", ', "there is no view 'habit'", "did you mean 'habits'?"
    ),
    "view that the spec does not name": Mistake(
        MODEL,
        '"habits", ',
        "",
        "has 'habits', and `views` of the spec does not",
        "add it to `views`",
        "habits = FeatureView",
        FEAST,
    ),
    "spine that is not built": Mistake(
        MODEL, 'spine="visits"', 'spine="visit"', "builds no table 'visit'", "did you mean 'visits'?"
    ),
    "library that the trainer lacks": Mistake(
        MODEL, '["pyarrow"]', '["pyarow"]', "pyarow is not in", "add it there, or correct its name"
    ),
    "connection that is not set": Mistake(
        MODEL, 'connection="till"', 'connection="tills"', "EVERGREEN_CONNECTIONS__TILLS is not set", "mean 'till'?"
    ),
    "path of another format": Mistake(
        MODEL, ', format="csv"', "", "names files of .csv, and format is 'parquet'", "write format='csv'", "weather/"
    ),
    "path with a wrong wildcard": Mistake(
        MODEL, "%Y-%m-%d.csv", "%Y-%m-%d-?.csv", "has ?, which stands for itself", "only * stands for"
    ),
    "model that builds the features": Mistake(
        MODEL,
        WHOLE,
        SPEC[: SPEC.index("features=dict")] + 'features="shps",\n' + SPEC[SPEC.index("    feature_service") :],
        "there is no model 'shps'",
        "known models: shops",
        'features="shps"',
    ),
    # The feature repository.
    "no file in the repository": Mistake(FEAST, WHOLE, "", "no such file", "write it", "-"),
    "import of the repository": Mistake(
        FEAST, "Array, Float64", "Array, Flaot64", "cannot import name 'Flaot64'", "did you mean 'Float64'?"
    ),
    "misspelled name in the repository": Mistake(
        FEAST, "dtype=Int64", "dtype=Itn64", "name 'Itn64' is not defined", "did you mean 'Int64'?"
    ),
    "type that is not supported": Mistake(
        FEAST, "dtype=Float64", "dtype=Array(Float64)", "has type Array(Float64)", "a feature for each element"
    ),
    "entity without a variable": Mistake(
        FEAST,
        "entities=[shop],\n    ttl",
        'entities=[Entity(name="till", value_type=ValueType.INT64)],\n    ttl',
        "its entity 'till' is in no variable",
        "assign it to a variable",
        "habits = FeatureView",
    ),
    "feature that is not built": Mistake(FEAST, '"pieces"', '"peices"', "declares 'peices'", "did you mean 'pieces'?"),
    "source of another model": Mistake(
        FEAST,
        'feature_source("shops", "habits")',
        'feature_source("shop", "habits")',
        "which this model does not publish",
        "write source=feature_source('shops', 'habits')",
        "habits = FeatureView",
    ),
    "view without a variable": Mistake(
        FEAST,
        'shops = FeatureService(name="shops", features=[habits, stocks])',
        'by_name = {"stocks": stocks}\ndel stocks\n'
        'shops = FeatureService(name="shops", features=[habits, by_name["stocks"]])',
        "its view 'stocks' is in no variable",
        "assign it to a variable",
        "stocks = FeatureView",
    ),
    "key of a view under another name": Mistake(
        FEAST,
        "features=[habits, stocks]",
        'features=[habits.with_join_key_map({"shop": "shpo"}), stocks]',
        "its key 'shpo' is no column of the spine",
        "did you mean 'shop'?",
    ),
    "join key": Mistake(FEAST, 'join_keys=["shop"]', 'join_keys=["shp"]', "declares 'shp'", "did you mean 'shop'?"),
    # features.py.
    "no features.py": Mistake(BUILD, WHOLE, "", "no such file", "write it: it builds the features", "-"),
    "import of features.py": Mistake(
        BUILD, "import FeatureTables", "import FeatureTable", "cannot import name", "did you mean 'FeatureTables'?"
    ),
    "package that is not installed": Mistake(
        BUILD,
        "SPINE =",
        "import nosuchpackage\nSPINE =",
        "No module named 'nosuchpackage'",
        "install nosuchpackage",
        "import nosuchpackage",
    ),
    "no build": Mistake(BUILD, "def build", "def biuld", "there is no such function", "did you mean 'biuld'?", "-"),
    "arguments of build": Mistake(BUILD, "days, calendar", "days", "called as build(spark, raw", "define build("),
    "view that is not built": Mistake(
        BUILD, '{"stocks": STOCKS}', '{"stock": STOCKS}', "builds no table 'stocks'", "did you mean 'stock'?"
    ),
    "table without a time": Mistake(
        BUILD,
        'STOCKS = ("event_timestamp",',
        'STOCKS = ("event_time",',
        "no column 'event_timestamp'",
        "did you mean 'event_time'?",
        '{"stocks": STOCKS}',
    ),
    # expectations.py.
    "no expectations.py": Mistake(RULES_FILE, WHOLE, "", "no such file", "write it: it says what must hold", "-"),
    "a function of expectations": Mistake(
        RULES_FILE,
        "def feature_exp",
        "def features_exp",
        "no such function",
        "did you mean 'features_expectations'?",
        "-",
    ),
    "class of an expectation": Mistake(
        RULES_FILE,
        "gxe.ExpectTableRowCountToBeBetween",
        "gxe.ExpectTableRowsCountToBeBetween",
        "has no attribute 'ExpectTableRowsCountToBeBetween'",
        "did you mean 'ExpectTableRowCountToBeBetween'?",
    ),
    "argument of an expectation": Mistake(
        RULES_FILE, 'column="seen_at"', "", "field required", "correct it", "return [gxe.ExpectColumn"
    ),
    "column of a raw rule": Mistake(
        RULES_FILE, '"seen_at"', '"sen_at"', "the source 'visits' has no column 'sen_at'", "did you mean 'seen_at'?"
    ),
    "column of a feature rule": Mistake(
        RULES_FILE, 'column="mean_sold"', 'column="maen_sold"', "the table 'habits' has no column", "'mean_sold'?"
    ),
    "error of the rules": Mistake(
        RULES_FILE, '"visits": "shop", ', "", "KeyError: 'visits'", "correct it", "keys[table]"
    ),
    "wrong column in several lines": Mistake(
        RULES_FILE,
        'column="seen_at")]',
        'column="sen_at")]\n    if source == "sen_at":\n        return []',
        "has no column 'sen_at'",
        "did you mean 'seen_at'?",
        "def raw_expectations",
    ),
    "no rules": Mistake(
        RULES_FILE,
        '[gxe.ExpectColumnValuesToNotBeNull(column="seen_at")]',
        "[]",
        "returns no expectations",
        "at least one",
        "def raw_expectations",
    ),
    "a class instead of a rule": Mistake(
        RULES_FILE,
        '(column="seen_at")',
        "",
        "the class ExpectColumnValuesToNotBeNull",
        "return a list of expectations",
        "def raw_expectations",
    ),
    # train.py.
    "no train.py": Mistake(FIT, WHOLE, "", "no such file", "write it: it trains", "-"),
    "syntax of train.py": Mistake(FIT, "return {}", "return {", "SyntaxError: '{' was never closed", "correct it"),
    "no fit": Mistake(FIT, "def fit", "def fitt", "there is no such function", "did you mean 'fitt'?", "-"),
    "fit in a class": Mistake(
        FIT,
        "def fit(job, output, checkpoints):\n    return {}",
        "class Trainer:\n    def fit(self, job, output, checkpoints):\n        return {}",
        "there is no such function",
        "define fit(job, output, checkpoints)",
        "-",
    ),
    "arguments of fit": Mistake(
        FIT, "fit(job, output, checkpoints)", "fit(job)", "is defined as fit(job)", "define fit(job, output"
    ),
    "a module that train.py lacks": Mistake(
        FIT, "shops.rules", "shops.rulez", "rulez.py does not exist", "did you mean 'rules'?"
    ),
    "a function that a module lacks": Mistake(
        FIT, "import is_open", "import is_opened", "does not define", "did you mean 'is_open'?"
    ),
}


@pytest.fixture
def root(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model without faults, `shops`, and of its file in the feature repository."""
    monkeypatch.setenv("EVERGREEN_CONNECTIONS__TILL", "sqlite://")
    modules = dict(raw=RAW, features=FEATURES, expectations=EXPECTATIONS, train=TRAIN, rules=RULES, model=SPEC)
    write_small_model("shops", tmp_path, monkeypatch, use_models, DEFINITIONS, **modules)
    settings.cache_clear()
    return tmp_path


def path_of(root: Path, name: str) -> Path:
    return root / name if name.startswith("feature_repo") else root / "evergreen_models" / name


def change(root: Path, name: str, old: str, new: str) -> None:
    """Replace text of a file; all of it, and the file itself if `new` is empty, if `old` is WHOLE."""
    file = path_of(root, name)
    if old == WHOLE and not new:
        file.unlink()
    else:
        text = file.read_text()
        assert old == WHOLE or text.count(old) == 1
        file.write_text(new if old == WHOLE else text.replace(old, new))
    forget_model("shops")


def check_shops() -> list[ModelFault]:
    forget_model("shops")
    return find_model_faults("shops")


def test_a_model_without_faults_passes(root: Path) -> None:
    assert check_shops() == []


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_fault_with_file_and_fix(root: Path, case: str) -> None:
    mistake = MISTAKES[case]
    change(root, mistake.file, mistake.old, mistake.new)
    faults = check_shops()
    assert [str(fault.to_fault()) for fault in faults[1:]] == []
    [fault] = faults
    file = path_of(root, mistake.place_file or mistake.file)
    assert fault.file == file
    assert mistake.problem in fault.problem
    assert mistake.fix in fault.fix
    assert fault.fix
    if mistake.place == "-":
        assert fault.line is None
    else:
        assert fault.line
        assert (mistake.place or mistake.new) in file.read_text().splitlines()[fault.line - 1]


def test_faults_of_all_files_are_named_at_once(root: Path) -> None:
    cases = (
        *("kind of a gate", "metric of a gate", "arguments of build", "type that is not supported"),
        *("a function of expectations", "no fit"),
    )
    for mistake in (MISTAKES[case] for case in cases):
        change(root, mistake.file, mistake.old, mistake.new)
    assert len(check_shops()) == len(cases)


def test_columns_that_no_source_tells_are_no_faults(root: Path) -> None:
    change(root, BUILD, '{"visits": SPINE}', '{"visits": raw["visits"].columns}')
    change(root, MODEL, 'label="sold"', 'label="anything"')
    change(root, MODEL, 'group_by="shop",', 'group_by="anybody",')
    change(root, RULES_FILE, '"visits": "shop"', '"visits": "anything"')
    assert check_shops() == []
    change(root, MODEL, "habits__mean_sold", "habits__maen_sold")
    assert [fault.fix for fault in check_shops()] == ["did you mean 'habits__mean_sold'?"]


def test_only_a_build_can_import_what_needs_a_session(root: Path) -> None:
    window = 'from pyspark.sql import Window\n\nBY_SHOP = Window.partitionBy("shop")\n'
    imported = "from evergreen_models.shops.features import STOCKS\n"
    copied = "STOCKS = ('event_timestamp', 'shop', 'pieces')\n"
    change(root, BUILD, "from evergreen.features import", f"{window}from evergreen.features import")
    for file in (RULES_FILE, FEAST):
        change(root, file, imported, copied)
    assert check_shops() == []
    change(root, RULES_FILE, copied, imported)
    [fault] = check_shops()
    assert fault.file == path_of(root, BUILD)
    assert fault.fix.startswith("put it into a function")


def test_columns_by_a_local_name_are_not_those_of_the_module(root: Path) -> None:
    change(root, FEAST, '"pieces"', '"value"')
    assert [fault.fix for fault in check_shops()] == ["build the column, or remove it here"]
    change(root, BUILD, "    return [", "    STOCKS = raw['stocks'].columns\n    return [")
    assert check_shops() == []


def write_guest(root: Path) -> Path:
    """Write a model that uses the features of `shops`, and return its folder."""
    start, end = SPEC.index("features=dict"), SPEC.index("    feature_service")
    text = (SPEC[:start] + 'features="shops",\n' + SPEC[end:]).replace('name="shops"', 'name="guest"')
    folder = root / "evergreen_models/guest"
    folder.mkdir()
    for name, content in {"__init__": "", "raw": RAW, "train": TRAIN, "model": text}.items():
        (folder / f"{name}.py").write_text(content)
    forget_model("guest")
    return folder


def test_a_model_with_borrowed_features_names_their_faults_once(root: Path) -> None:
    folder = write_guest(root)
    assert find_model_faults("guest") == []
    mistake = MISTAKES["import of the repository"]
    change(root, mistake.file, mistake.old, mistake.new)
    [fault] = find_model_faults("guest")
    assert (fault.file, fault.subject, fault.fix) == (folder / "model.py", "features", "evergreen check shops")
    assert len(find_model_faults("shops")) == 1


def test_invalid_features_of_another_model_are_one_fault(root: Path) -> None:
    write_guest(root)
    mistake = MISTAKES["kind of a gate"]
    change(root, mistake.file, mistake.old, mistake.new)
    [fault] = find_model_faults("guest")
    assert (fault.subject, fault.fix) == ("features", "evergreen check shops")


def test_a_model_that_is_not_there_is_a_fault(root: Path) -> None:
    [fault] = find_model_faults("shosp")
    assert fault.fix == "known models: shops"


def test_command_prints_results_and_then_all_faults(root: Path) -> None:
    result = CliRunner().invoke(app, ["check"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "shops   no fault" in result.stdout
    change(root, FIT, "def fit", "def fitt")
    change(root, MODEL, 'label="sold"', 'label="sld"')
    result = CliRunner().invoke(app, ["check", "shops"])
    assert result.exit_code == 1
    assert "shops   2 faults" in result.stdout
    line = 1 + SPEC[: SPEC.index("label=")].count("\n")
    assert f"  - {path_of(root, MODEL)}, line {line}: label: the spine 'visits' has no column 'sld'" in result.stderr


def test_json_has_file_and_line_of_each_fault(root: Path) -> None:
    change(root, RULES_FILE, "def raw_expectations(source, day):", "def raw_expectations(source, day):\n    print('x')")
    change(root, RULES_FILE, "seen_at", "sen_at")
    result = CliRunner().invoke(app, ["check", "shops", "--json"])
    assert result.exit_code == 1
    [record] = json.loads(result.stdout)
    [fault] = record["faults"]
    assert (record["model"], record["passed"]) == ("shops", False)
    assert fault["file"] == str(path_of(root, RULES_FILE))
    assert fault["fix"] == "did you mean 'seen_at'?"
    assert "sen_at" in path_of(root, RULES_FILE).read_text().splitlines()[fault["line"] - 1]


def test_columns_that_no_view_declares_are_hints(root: Path) -> None:
    change(root, BUILD, '"pieces")', '"pieces", "palettes", "day")')
    result = CliRunner().invoke(app, ["check", "shops"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "shops   no fault" in result.stdout
    [hint] = [line for line in result.stdout.splitlines() if line.startswith("hint: ")]
    assert "view stocks: features.py builds palettes in 'stocks', which no view declares and no model reads" in hint
    [record] = json.loads(CliRunner().invoke(app, ["check", "shops", "--json"]).stdout)
    assert record["passed"]
    assert [hint["subject"] for hint in record["hints"]] == ["view stocks"]
    change(root, BUILD, ', "palettes", "day")', ")")
    assert json.loads(CliRunner().invoke(app, ["check", "shops", "--json"]).stdout)[0]["hints"] == []


def names_below(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*"))


def test_bytecode_of_packages_is_kept_and_that_of_models_is_not(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each check compiles packages again that an installer has not compiled."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    writes: list[bool] = []
    monkeypatch.setattr(check, "_import_engines", lambda: writes.append(not sys.dont_write_bytecode))
    assert check_shops() == []
    assert writes == [True]
    assert not sys.dont_write_bytecode
    assert not list(root.rglob("*.pyc"))


def test_nothing_is_left_behind(root: Path) -> None:
    """In a process of its own, whose home folder and lake are watched."""
    user_home = root / "user"
    user_home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
    environment |= {"HOME": str(user_home), "TMPDIR": str(root / "user")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = names_below(root)
    code = (
        "import sys; from evergreen.cli import app; app(['check', 'shops'], standalone_mode=False); "
        "print({'airflow', 'mlflow'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("set()\n")
    assert names_below(root) == before


def test_the_model_of_the_guide_has_no_faults(
    home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in documented_files(DOCS / "guides/own-repository.md").items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    shutil.copy(ROOT / "feature_repo/feature_store.yaml", tmp_path / "feature_repo")
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(tmp_path / "feature_repo"))
    use_models(tmp_path / "models", only=True)
    assert find_model_faults("late_delivery") == []


@pytest.mark.parametrize("name", ["departure_counts", "flight_delay", "flight_delay_net", "cautious", "coin", "slow"])
def test_models_that_ship_have_no_faults(home: Path, name: str) -> None:
    assert find_model_faults(name) == []
