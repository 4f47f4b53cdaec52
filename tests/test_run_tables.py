"""A run folder has one list of what lies in it, and readers that go by it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curate.run import names, tables
from curate.run.tables import NumberedTables, Table
from tests.tag_runs import additions, tag, write_jsonl

ROOT = Path(__file__).parents[1]
TABLES = {name: each for name, each in vars(tables).items() if isinstance(each, Table)}
NUMBERED = {name: each for name, each in vars(tables).items() if isinstance(each, NumberedTables)}
OTHER_FILES = {
    value.rpartition("/")[2]
    for name, value in vars(names).items()
    if name.isupper() and isinstance(value, str) and "." in value
}
# Names that are not a run's alone: models have configurations, repositories cards.
SHARED = {"README.md", "config.toml"}
# Files that only the stage that writes them knows.
OF_ONE_STAGE = {
    "probes/stages/sample.py",  # Shards drawn before it is their turn.
    "probes/rescoring/rescore.py",
    "probes/rescoring/rollout_scores.py",
    "recipes/forecast/forecast.py",
    "recipes/train/checkpoints.py",
}


def literals(file: Path) -> Iterator[tuple[int, str]]:
    """Strings of a module that are no docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    dataset = write_jsonl(folder / "sums.jsonl", additions(8))
    out, run = folder / "sums.tagged.jsonl", folder / "run"
    ran = tag(dataset, "--model", tiny_model, "--out", out, "--run-dir", run)
    assert ran.status == 0, ran.stderr
    return run


def test_no_file_of_a_run_is_named_outside_of_the_list() -> None:
    known = {table.file.rpartition("/")[2] for table in TABLES.values()} | OTHER_FILES - SHARED
    named = [
        f"{file.relative_to(ROOT)}:{line}: {text!r}"
        for package in ("curate", "probes", "recipes", "cards")
        for file in sorted((ROOT / package).rglob("*.py"))
        if file.parent.name + file.name not in ("runtables.py", "runnames.py")
        for line, text in literals(file)
        # The page of a report is a file of ours as well.
        if text in known and not (text == names.REPORT and "_part" in line_of(file, line))
    ]
    assert named == []


def line_of(file: Path, line: int) -> str:
    return file.read_text(encoding="utf-8").splitlines()[line - 1]


def test_only_stages_make_names_of_parquet_files() -> None:
    made = {
        str(file.relative_to(ROOT))
        for package in ("curate/run", "probes", "recipes", "cards/report")
        for file in sorted((ROOT / package).rglob("*.py"))
        for _, text in literals(file)
        if re.fullmatch(r"[\w/-]+\.parquet|-?\.parquet", text)
        and text not in (".parquet", "FILE.parquet")
    }
    assert made <= OF_ONE_STAGE | {"curate/run/tables.py"}


def test_the_files_of_a_run_are_documented() -> None:
    # What trainings leave is told with `curate validate`.
    pages = ("docs/files.md", "docs/validation.md")
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    for table in TABLES.values():
        assert table.file.rpartition("/")[2] in text
    for numbered in NUMBERED.values():
        assert f"{numbered.folder}/" in text


@pytest.mark.parametrize(
    "name", ["ROWS", "ITEMS", "PASS_RATES", "ITEM_ANSWERS", "ROLLOUT_INDEX", "ITEM_INDEX",
             "SIMILARITY", "GOLD", "LIFT", "TEACHING", "TAGS"],
)  # fmt: skip
def test_what_a_run_wrote_has_the_columns_of_the_list(name: str, run: Path) -> None:
    table = TABLES[name]
    written = pq.read_schema(table.path(run))
    assert [written.field(column).type for column in table.columns] == list(table.columns.values())
    extra = set(written.names) - set(table.columns)
    assert all(column.startswith(("pass_at_", "target_similarity")) for column in extra)


@pytest.mark.parametrize("name", NUMBERED)
def test_its_numbered_tables_too(name: str, run: Path) -> None:
    files = NUMBERED[name].files(run)
    assert files
    for file in files:
        assert pq.read_schema(file).equals(NUMBERED[name].schema)
