"""What a notebook has of the library: docs/notebook.md, shown tables, and the tables of a run.

The code of the page is run once, on the tiny model, and the other tests look at what it left.
"""

import contextlib
import json
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

import curate
from curate import Run
from curate.datasets.layouts import Layout
from curate.errors import RunError, UsageError
from curate.notebook import COLORS, tag_bar, tag_counts
from curate.tagged.table import TaggedTable
from curate.tags import Trainability
from tests.made.run import Items, made_run, write_quality
from tests.tag_runs import ROOT, additions, read_jsonl, read_rollouts, write_jsonl
from tests.tiny import save_tiny_model
from tests.tour import code_blocks

PAGE = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
MODEL = '"Qwen/Qwen2.5-0.5B-Instruct"'
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# What makes the page's commands small enough for a test, put in beside the model's name.
SMALL_PROBE = {
    **{"verifier": "numeric", "verifier_workers": 1, "instruction": "", "tau": 0.05},
    **{"max_tokens": 12, "gradient_dim": 256, "max_rollouts": 64},
}
SMALL_TRAINING = {
    **{"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4},
    **{"report_to": [], "use_cpu": True, "bf16": False, "save_strategy": "no"},
}


def on_the_tiny_model(block: str, model: Path) -> str:
    """A block of the page with another model, and with settings that a test has time for."""
    block = block.replace(f"{MODEL}, min", f"{str(model)!r}, **{SMALL_PROBE!r}, min")
    block = block.replace("max_steps=200", f"max_steps=2, **{SMALL_TRAINING!r}")
    return block.replace(MODEL, repr(str(model)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the page's blocks leave, run in a folder of their own."""
    folder = tmp_path_factory.mktemp("notebook")
    model = save_tiny_model(folder / "tiny-llama", chat_template=TEMPLATE)
    unusable = {"question": "", "answer": "1"}
    write_jsonl(folder / "train.jsonl", [*additions(12), unusable])
    names: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for block in code_blocks(PAGE):
            exec(compile(on_the_tiny_model(block, model), "docs/notebook.md", "exec"), names)
        yield names
    finally:
        os.chdir(before)


# --- The page --------------------------------------------------------------------------------


def test_the_page_runs_from_tagging_to_training(page: dict[str, Any]) -> None:
    assert len(page["items"]) == 12 and len(page["rows"]) == 13
    assert len(page["rollouts"]) == len(page["joined"]) == 12 * 64
    assert page["by_tag"].to_numpy().sum() == 12 * 64
    right = page["right"]
    assert (
        len(right) and (right["answer_found"] if "answer_found" in right else right["answer"]).all()
    )
    assert page["kept"]["rows"] == 13 and 0 < page["kept"]["kept"] < 13
    assert len(read_jsonl(Path("train.ordered.jsonl"))) == page["kept"]["kept"]
    assert page["trainer"].state.global_step == 2
    assert len(pd.read_parquet("tagged.parquet")) == 13


def test_the_page_is_found_and_its_picture_is_there() -> None:
    assert "(docs/notebook.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", PAGE):
        assert (ROOT / "docs" / name).stat().st_size > 10_000


# --- The table -------------------------------------------------------------------------------


def test_the_table_can_do_what_its_arrow_table_can(page: dict[str, Any]) -> None:
    table = page["tagged"]
    arrow = table.arrow
    assert type(arrow) is pa.Table
    assert table.column_names == arrow.column_names and table.num_rows == len(table) == 13
    assert table.schema == arrow.schema and table.to_pylist() == arrow.to_pylist()
    assert table["pass_rate"].equals(arrow["pass_rate"])
    assert table == arrow and table == TaggedTable(arrow, table.run_dir, table.layout)
    assert table != arrow.slice(1)
    assert {"to_pandas", "arrow", "run_dir"} <= set(dir(table))
    with pytest.raises(AttributeError, match="to_panda"):
        table.to_panda()
    assert pickle.loads(pickle.dumps(table)) == table


def test_other_libraries_take_it_for_an_arrow_table(page: dict[str, Any]) -> None:
    table = page["tagged"]
    assert pa.table(table).equals(table.arrow)
    assert pa.schema(table).equals(table.arrow.schema)
    pd.testing.assert_frame_equal(pd.DataFrame.from_arrow(table), table.to_pandas())


class Shown(HTMLParser):
    """The elements, the attributes and the text of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: dict[str, list[str | None]] = {}
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells:
            self.cells[-1] += data


def assert_harmless(shown: Shown) -> None:
    """No script, no request, nothing that a notebook's style would not survive."""
    known = {"div", "p", "b", "span", "svg", "rect", "title"}
    known |= {"table", "thead", "tbody", "tr", "th", "td"}
    assert set(shown.elements) <= known
    names = {"class", "style", "role", "aria-label", "aria-hidden", "viewbox"}
    names |= {"preserveaspectratio", "width", "height", "x", "y", "rx", "fill"}
    assert set(shown.attributes) <= names
    assert not any("url" in (style or "") for style in shown.attributes["style"])


def test_it_shows_the_tags_and_the_first_rows(page: dict[str, Any]) -> None:
    table = page["tagged"]
    shown = Shown(table._repr_html_())
    assert_harmless(shown)
    counts = Counter(table["trainability"].to_pylist())
    assert shown.text.startswith("13 rows, 1 of them without a tag: rejected, or not probed")
    for tag in Trainability:
        assert f"{tag} {counts[tag]} ({100 * counts[tag] / 12:.1f} %)" in shown.text
    assert shown.elements["tr"] == 1 + 10 and "… 3 more" in shown.text
    row = table.to_pylist()[3]
    low, high = row["forecast_low"], row["forecast_high"]
    assert shown.cells[18:24] == [
        "4",
        row["question"],
        row["trainability"],
        f"{row['pass_rate']:.3g} ({row['total_correct_rollouts']} of 64)",
        f"{row['forecast_pass_rate']:.2f} ({low:.2f} to {high:.2f})",
        row["tag_reason"] if len(row["tag_reason"]) <= 200 else row["tag_reason"][:200] + "…",
    ]
    assert repr(table).startswith("TaggedTable of 13 rows, run ")
    assert f"undetermined {counts['undetermined']}" in repr(table)


EVIDENCE = {
    **{"trainability": "easy", "pass_rate": 0.5, "total_rollouts": 32},
    **{"total_correct_rollouts": 16, "forecast_pass_rate": 0.6},
    **{"forecast_low": 0.5, "forecast_high": 0.7, "tag_reason": "why"},
}
BAD = '</td><script>alert(1)</script><img src=x onerror="a()">&amp; $x$ \u202egpj\x1b[31m\x00'


def _table(*rows: dict[str, Any]) -> TaggedTable:
    return TaggedTable(pa.Table.from_pylist(list(rows)), Path("run"), Layout("", "q", "a"))


def test_what_others_wrote_is_text_and_nothing_else() -> None:
    html = _table({"q": BAD, "a": "1", **EVIDENCE, "tag_reason": BAD})._repr_html_()
    shown = Shown(html)
    assert_harmless(shown)
    seen = BAD.replace("\u202e", "⟨U+202E⟩").replace("\x1b", "⟨U+001B⟩").replace("\x00", "⟨U+0000⟩")
    assert shown.cells[1] == shown.cells[5] == seen
    # Notebooks typeset what stands between dollars, unless a class says not to.
    assert shown.attributes["class"] == ["tex2jax_ignore mathjax_ignore"]
    assert html.encode("utf-8")


def test_a_prompt_is_its_last_message_and_a_long_one_is_cut() -> None:
    prompt = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "two\n  lines"},
    ]
    shown = Shown(_table({"q": prompt, "a": "1", **EVIDENCE})._repr_html_())
    assert shown.cells[1] == "two lines"
    shown = Shown(_table({"q": "x" * 100_000, "a": "1", **EVIDENCE})._repr_html_())
    assert shown.cells[1] == "x" * 200 + "…"
    nothing = dict.fromkeys(EVIDENCE) | {"tag_reason": "rejected: empty prompt"}
    rows = [{"q": "what", "a": "1", **EVIDENCE}, {"q": "", "a": None, **nothing}]
    assert Shown(_table(*rows)._repr_html_()).cells[6:] == [
        *("2", "–", "–", "–", "–", "rejected: empty prompt")
    ]


def test_without_a_tagged_row_the_bar_is_empty() -> None:
    shown = Shown(tag_bar(tag_counts([None])))
    assert "easy 0 (0.0 %)" in shown.text and shown.elements["title"] == 0


def test_the_colors_are_those_of_the_report() -> None:
    css = (ROOT / "cards/report/page/report.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"--(\w+): light-dark\((#\w+),", css))
    assert {tag: light[tag] for tag in Trainability} == COLORS
    bar = Shown(tag_bar({"easy": 1, "learnable": 0, "unlearnable": 3, "no_positive": 0,
                         "undetermined": 4}))  # fmt: skip
    assert bar.attributes["fill"][:3] == [COLORS[each] for each in ("easy", "unlearnable",
                                                                   "undetermined")]  # fmt: skip
    assert bar.attributes["x"] == ["0.00", "125.00", "500.00"]


# --- The run ---------------------------------------------------------------------------------


def test_the_items_have_what_the_tagged_file_says_of_them(page: dict[str, Any]) -> None:
    table, items = page["tagged"], page["run"].items()
    said = {row["item_id"]: row for row in table.to_pylist() if row["item_id"]}
    names = [name for name in table.column_names if name not in ("question", "answer")]
    assert any(name.startswith("pass_at_") for name in names)
    found = {row["item_id"]: row for row in items.to_pylist()}
    assert list(found) == list(said)
    for item_id, row in said.items():
        assert {name: found[item_id][name] for name in names} == {n: row[n] for n in names}
        assert found[item_id]["answer"] == row["answer"]
        assert row["question"] in found[item_id]["prompt"]
    # Beside them what only the run knows, each under one name.
    assert len(set(items.column_names)) == len(items.column_names)
    assert {"gold_probability", "gold_standard_error", "lift_standard_error", "teachers",
            "similarity_standard_error", "similarity_nearest", "truncated_rollouts",
            "final_pass_rate", "reasoning_quality"} <= set(items.column_names)  # fmt: skip


def test_rollouts_and_rows_are_those_of_the_folder(page: dict[str, Any]) -> None:
    run = page["run"]
    by = [("item_id", "ascending"), ("sample", "ascending")]
    assert run.rollouts().sort_by(by).equals(read_rollouts(run.path))
    assert run.rollouts("reward", "item_id").column_names == ["reward", "item_id"]
    rows = run.rows().to_pylist()
    assert [row["row"] for row in rows] == list(range(1, 14))
    assert [row["item_id"] for row in rows] == page["tagged"]["item_id"].to_pylist()
    assert rows[-1]["reason"] == "empty prompt"


def test_a_mistake_with_a_run_names_what_was_meant(page: dict[str, Any]) -> None:
    run = page["run"]
    with pytest.raises(UsageError, match="no column 'completions'; did you mean 'completion'"):
        run.rollouts("completions")
    with pytest.raises(UsageError, match=r"Run\.open\('runs/x'\) opens a run"):
        Run("runs/x")  # type: ignore[arg-type]
    shown = repr(run)
    assert shown.startswith(f"Run({str(run.path)!r}, 12 items: ") and len(shown.splitlines()) == 1
    assert all(f"{tag}: {count}" in shown for tag, count in Counter(run.tags()).items())


def test_a_run_is_opened_by_its_folder_or_its_tagged_file(page: dict[str, Any]) -> None:
    run = page["run"]
    with contextlib.chdir(run.path.parent.parent):
        for path in (str(run.path), run.path, "train.tagged.jsonl", Path("train.tagged.jsonl")):
            assert Run.open(path).ids == run.ids
        with pytest.raises(UsageError, match=r"no run in ./runs wrote train.jsonl"):
            Run.open("train.jsonl")
        with pytest.raises(UsageError, match="nowhere is no run folder"):
            Run.open("nowhere")


def test_a_run_shows_what_was_probed_and_by_which_model(page: dict[str, Any]) -> None:
    run = page["run"]
    shown = Shown(run._repr_html_())
    assert_harmless(shown)
    facts = dict(zip(shown.cells[::2], shown.cells[1::2], strict=True))
    assert facts["dataset"] == "train.jsonl"
    assert facts["model"].endswith("tiny-llama") and facts["items"] == "12"
    counts = Counter(run.tags())
    for tag in Trainability:
        assert f"{tag} {counts[tag]} ({100 * counts[tag] / 12:.1f} %)" in shown.text


def _made(folder: Path, **more: Any) -> Path:
    items = Items(["a", "b"], [0, 8], tags=["no_positive", "easy"], lift=[float("nan"), 1.0])
    tables = {"items": {"answer": ["1", "2"]}, "similarity": {"similarity_easy": [0.1, 0.2],
              "similarity_hard": [0.1, 0.2], "nearest": [["b"], ["a"]]},
              "pass_rates": {"mean_completion_tokens": [1.0, 2.0]}}  # fmt: skip
    return made_run(folder / "run", items, tables=tables, **more)


def test_what_a_run_does_not_know_is_null(tmp_path: Path) -> None:
    path = _made(tmp_path)
    items = Run.open(path).items()
    for name in ("teaching", "gold_probability", "confirmed_trainability", "reasoning_quality"):
        assert items[name].to_pylist() == [None, None]
    assert items["lift"].to_pylist() == [None, 1.0]
    assert items["lift"].type == items["teaching"].type == pa.float64()
    write_quality(path, {"b": 3.5})
    items = Run.open(path).items()
    assert items["reasoning_quality"].to_pylist() == [None, 3.5]
    assert items["reasoning_quality_n"].to_pylist() == [0, 4]
    assert items["total_correct_rollouts"].to_pylist() == [0, 8]


def test_a_dry_run_is_another_function_and_the_message_names_it() -> None:
    with pytest.raises(UsageError, match=r"probes\.dry_run\.dry_run\(curate\.config\.TagConfig\("):
        curate.tag("sums.jsonl", "model", dry_run=True)
    with pytest.raises(UsageError, match=r"(?!.*dry_run)"):
        curate.tag("none.jsonl", "model", dry_run=False)


def test_a_run_of_a_version_without_forecasts_opens_too(tmp_path: Path) -> None:
    path = _made(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["forecast"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "lift.parquet").unlink()
    items = Run.open(path).items()
    assert items["lift"].to_pylist() == items["forecast_pass_rate"].to_pylist() == [None, None]
    assert "no_positive 1 (50.0 %)" in Run.open(path)._repr_html_()


def test_a_damaged_run_is_told(tmp_path: Path) -> None:
    path = _made(tmp_path)
    (path / "pass_rates.parquet").unlink()
    with pytest.raises(RunError, match=r"pass_rates\.parquet is missing or damaged"):
        Run.open(path).items()
