"""`evergreen init` and `evergreen new` as a newcomer calls them: nothing is overwritten, everything is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from typer.testing import CliRunner

from evergreen import settings as settings_module
from evergreen.cli import app
from evergreen.ingest.preview import read_source
from evergreen.ingest.raw_files import raw_folder
from evergreen.scaffold.files import write_new_files
from evergreen.settings import REPOSITORY, settings, use_project_of_folder
from evergreen.spec.loader import load_spec
from evergreen.spec.model import FeatureSpec
from support.scaffolds import Project, make_project, order_lines
from support.small_models import reload_spec

pytestmark = pytest.mark.unit

SKELETON = {
    *("models/.gitkeep", "dags/.gitkeep", "feature_repo/feature_store.yaml", "tests/conftest.py"),
    *(".gitignore", ".env", "README.md"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None]) -> Project:
    return make_project(tmp_path / "my models", monkeypatch, use_models)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sample") / "order lines.parquet"
    pq.write_table(order_lines(days=5), file)
    return file


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def init(folder: Path) -> str:
    result = CliRunner().invoke(app, ["init", str(folder)])
    assert result.exit_code == 0, result.output
    return result.output


def test_init_writes_a_skeleton_twice_the_same(tmp_path: Path) -> None:
    init(tmp_path / "a folder")
    first = files_of(tmp_path / "a folder")
    assert set(first) == SKELETON
    assert first["feature_repo/feature_store.yaml"] == (REPOSITORY / "feature_repo/feature_store.yaml").read_bytes()
    output = init(tmp_path / "a folder")
    assert files_of(tmp_path / "a folder") == first
    assert output.count("is there, and stays\n") == len(SKELETON)


def test_the_variables_of_a_project_survive_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s $HOME "x"'
    init(folder)
    script = 'set -a; . ./.env; printf %s "$EVERGREEN_PROJECT"'
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == str(folder)


def test_init_keeps_what_an_airflow_project_has(tmp_path: Path) -> None:
    own = {".gitignore": "logs\n", ".env": "X=1\n", "README.md": "ours\n", "workflows/a.py": "1\n"}
    for name, text in {
        **own,
        "airflow.cfg": f"[core]\ndags_folder = {tmp_path}/workflows\nparallelism = 32%\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    output = init(tmp_path)
    assert all((tmp_path / name).read_text() == text for name, text in own.items())
    assert "add the lines `.evergreen` and `.env`" in output
    assert not (tmp_path / "dags").exists()
    assert (tmp_path / "workflows/.gitkeep").exists()


@pytest.mark.parametrize("text", ["[core]\ndags_folder = /elsewhere\n", "no [config\n", "[api]\n", "\xff"])
def test_init_ignores_an_unusable_airflow_cfg(text: str, tmp_path: Path) -> None:
    (tmp_path / "airflow.cfg").write_bytes(text.encode("latin-1"))
    init(tmp_path)
    assert (tmp_path / "dags/.gitkeep").exists()


def test_init_in_a_place_that_is_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    result = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert result.exit_code == 1
    assert "models/.gitkeep: cannot be written" in result.stderr


def test_links_are_kept_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "README.md").symlink_to(tmp_path / "nowhere")
    init(tmp_path)
    assert not (tmp_path / "nowhere").exists()


def test_killed_between_two_files_is_completed(tmp_path: Path) -> None:
    """A process that is killed after each number of files; the next call completes what it left."""
    files = {f"folder {n}/file": f"{n}\n" * 1000 for n in range(4)}
    code = (
        "import os, signal\nfrom evergreen.scaffold import files\nfrom pathlib import Path\n"
        "create, counts = files.create_if_absent, []\n"
        "def create_or_die(*arguments):\n"
        "    counts.append(1)\n"
        "    if len(counts) > {count}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return create(*arguments)\n"
        "files.create_if_absent = create_or_die\n"
        "files.write_new_files(Path({folder!r}), {files!r})\n"
    )
    for count in range(4):
        folder = tmp_path / str(count)
        done = subprocess.run([sys.executable, "-c", code.format(count=count, folder=str(folder), files=files)])
        assert done.returncode == -signal.SIGKILL
        written = write_new_files(folder, files)
        assert (len(written.existing), len(written.created)) == (count, 4 - count)
        assert {name: content.decode() for name, content in files_of(folder).items()} == files


def test_new_twice_is_the_same_and_other_flags_are_refused(project: Project, lines: Path) -> None:
    project.new("margin", lines, "--label", "loss")
    first = files_of(project.folder)
    (project.folder / "dags/margin.py").unlink()  # killed before the last file
    assert "✓ dags/margin.py" in project.new("margin", lines, "--label", "loss").output
    assert files_of(project.folder) == first
    message = project.new("margin", lines, "--label", "gift", code=1).stderr
    assert "models/margin/model.py: exists, and is another file" in message
    assert files_of(project.folder) == first


def test_new_without_a_label_lists_the_columns(project: Project, lines: Path) -> None:
    message = project.new("margin", lines, code=1).stderr
    assert "--label: names no column to predict" in message
    assert "'Store'" in message
    assert not (project.folder / "models/margin").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--period", "3d"), "3d is no period"),
        (("--label-delay", "soon"), "no length of time"),
        (("--timezone", "Mars"), "is no IANA time zone"),
        (("--time", "gift"), "is bool, and no date"),
    ],
)
def test_wrong_arguments_are_faults(arguments: tuple[str, ...], words: str, project: Project, lines: Path) -> None:
    assert words in project.new("margin", lines, "--label", "loss", *arguments, code=1).stderr
    assert not (project.folder / "models/margin").exists()


def test_a_name_that_no_model_can_have_is_refused(project: Project, lines: Path) -> None:
    assert "cannot be the name of a model" in project.new("Late-Delivery", lines, "--label", "loss", code=1).stderr


def test_new_outside_a_project_says_init(
    tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None]
) -> None:
    monkeypatch.setenv("EVERGREEN_PROJECT", str(tmp_path))
    settings.cache_clear()
    result = CliRunner().invoke(app, ["new", "margin", "--from", str(lines), "--label", "loss"])
    assert f"run `evergreen init {tmp_path}`" in result.stderr
    settings.cache_clear()


def test_new_outside_a_project_does_not_write_into_a_checkout(
    tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None]
) -> None:
    """Which is the project of an editable installation, if nothing names another."""
    monkeypatch.delenv("EVERGREEN_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    result = CliRunner().invoke(app, ["new", "margin", "--from", str(lines), "--label", "loss", "--timezone", "UTC"])
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert f"is in no project of Evergreen, and the model would be written to the checkout {REPOSITORY}" in message
    assert "run `evergreen init` in an empty folder, go to a project, or set EVERGREEN_PROJECT" in message
    assert not settings_module.is_outside_of_checkout(REPOSITORY / "docs")
    settings.cache_clear()


def test_deliver_splits_the_sample_and_keeps_files(project: Project, lines: Path) -> None:
    arguments = ("--label", "loss", "--deliver", "--timezone", "Europe/Berlin")
    assert "delivered 6 days of order_lines" in project.new("margin", lines, *arguments).output
    spec = load_spec("margin").features
    assert isinstance(spec, FeatureSpec)
    assert str(spec.last_day) == "2026-03-07"
    days = [f"2026-03-0{day}" for day in range(2, 8)]
    rows = [read_source(spec.sources[0], day) for day in days]
    assert sum(table.num_rows for table in rows) == pq.read_metadata(lines).num_rows
    kept = raw_folder() / f"order_lines/day={days[2]}/order_lines.parquet"
    kept.write_bytes(b"delivered by another")
    (raw_folder() / f"order_lines/day={days[3]}/order_lines.parquet").unlink()
    output = project.new("margin", lines, *arguments).output
    assert "delivered 1 days of order_lines; 5 were there, and stay" in output
    assert kept.read_bytes() == b"delivered by another"
    assert "periods of 1d, which begin in Europe/Berlin" in output
    assert "remove" not in output
    assert f"6 were there, and stay: remove {raw_folder()}/order_lines first" in " ".join(
        project.new("margin", lines, *arguments).output.split()
    )


def test_periods_without_rows_are_delivered_empty(project: Project, tmp_path: Path) -> None:
    table = order_lines(days=8)
    days = [moment.day for moment in table["sold at"].to_pylist()]
    pq.write_table(table.filter([day not in (4, 5) for day in days]), tmp_path / "gap.parquet")
    project.new("margin", tmp_path / "gap.parquet", "--label", "loss", "--deliver", "--timezone", "Europe/Berlin")
    spec = load_spec("margin").features
    assert isinstance(spec, FeatureSpec)
    [source] = spec.sources
    assert source.empty_periods == "delivered"
    assert read_source(source, "2026-03-04").num_rows == 0


def test_nothing_is_delivered_into_an_object_store(
    project: Project, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_RAW", "s3://company/raw")
    settings.cache_clear()
    message = project.new("margin", lines, "--label", "loss", "--deliver", code=1).stderr
    assert "only delivered to a folder of this machine" in message
    assert not (project.folder / "models/margin").exists()


def test_a_table_is_declared_as_a_table(project: Project, tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "lines"), order_lines(days=5).drop_columns(["notes"]))
    assert "leave it out" in project.new("margin", tmp_path / "lines", "--label", "loss", "--deliver", code=1).stderr
    project.new("margin", tmp_path / "lines", "--label", "loss")
    spec = load_spec("margin").features
    assert isinstance(spec, FeatureSpec)
    assert spec.sources[0].table
    assert (spec.sources[0].table.location, spec.sources[0].table.time_column) == (str(tmp_path / "lines"), "sold at")


def test_the_address_of_a_database_is_written_nowhere(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shop.db"
    with duckdb.connect(str(file)) as database:
        database.register("lines", order_lines(days=5).drop_columns(["notes"]))
        database.execute('CREATE TABLE sales AS SELECT * REPLACE ("sold at"::TIMESTAMPTZ AS "sold at") FROM lines')
    monkeypatch.setenv("EVERGREEN_CONNECTIONS__SHOP", "")  # restored after the test
    result = project.new("margin", f"duckdb:///{file}", "--query", "SELECT * FROM sales", "--label", "loss")
    spec = load_spec("margin").features
    assert isinstance(spec, FeatureSpec)
    query = spec.sources[0].query
    assert query
    assert query.connection == "shop"
    assert 'WHERE "sold at" >= :start AND "sold at" < :end' in query.sql
    day = read_source(spec.sources[0], "2026-03-03")
    assert {moment.day for moment in day["sold at"].to_pylist()} == {3}
    assert "set EVERGREEN_CONNECTIONS__SHOP" in result.output
    written = [content for name, content in files_of(project.folder).items() if not name.startswith(".evergreen")]
    assert not any(str(file).encode() in content for content in written)
    assert str(file) not in result.output


def test_a_terminal_is_asked_what_flags_do_not_say(
    project: Project, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evergreen.cli.scaffold.is_terminal", lambda: True)
    answers = "loss\n\nStore\n3d\n"
    result = CliRunner().invoke(app, ["new", "margin", "--from", str(lines)], input=answers)
    assert result.exit_code == 0, result.output
    spec = reload_spec("margin")
    assert isinstance(spec.features, FeatureSpec)
    assert (spec.label, spec.features.views, str(spec.label_delay)) == ("loss", ("store_history",), "3d")


def test_a_terminal_is_asked_which_columns_name_a_series(
    project: Project, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of an order have times of their own: whether stores are series is not to be guessed."""
    arguments = ("new", "demand", "--from", str(lines), "--kind", "forecast")
    refused = CliRunner().invoke(app, [*arguments, "--label", "profit"])
    assert refused.exit_code == 1
    assert "--key: is missing, and which of" in refused.output.replace("\n", " ")
    assert not (project.folder / "models/demand").exists()
    monkeypatch.setattr("evergreen.cli.scaffold.is_terminal", lambda: True)
    result = CliRunner().invoke(app, arguments, input="profit\n\n1d\nStore\n3\n\n")
    assert result.exit_code == 0, result.output
    spec = reload_spec("demand")
    assert spec.forecast
    assert (spec.label, spec.forecast.series, spec.forecast.season) == ("profit", ("store",), 1)


@pytest.mark.parametrize("is_checkout", [False, True])
def test_the_command_finds_the_project_of_its_folder(
    is_checkout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(tmp_path / "a")
    (tmp_path / "a/models/x").mkdir()
    monkeypatch.setattr(settings_module, "IS_CHECKOUT", is_checkout)
    monkeypatch.setenv("EVERGREEN_PROJECT", "")  # restored after the test
    use_project_of_folder(tmp_path)
    assert os.environ["EVERGREEN_PROJECT"] == ""
    use_project_of_folder(tmp_path / "a/models/x")
    assert os.environ["EVERGREEN_PROJECT"] == str(tmp_path / "a")
    init(tmp_path / "b")
    use_project_of_folder(tmp_path / "b")
    assert os.environ["EVERGREEN_PROJECT"] == str(tmp_path / "a"), "a setting wins"
