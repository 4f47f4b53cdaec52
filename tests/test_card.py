"""`curate card`: what the card says, that nothing in it is taken for markup, and how it merges."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard, DatasetCardData
from markdown_it import MarkdownIt

from cards.card.card import dataset_card
from cards.card.facts import read_run_facts
from cards.card.markdown import code_span, plain_text
from cards.card.merging import END, merge_card
from cards.card.metadata import size_category
from curate.errors import UsageError
from tests.made.published import FORECAST, write_published_run
from tests.tag_runs import run_curate

HUB_MODEL: dict[str, Any] = {
    "weight_hash": "b" * 64,
    "dtype": "bfloat16",
    "id": "org/model@main",
    "name": "model",
    "revision": "c" * 40,
}
SUMMARY: dict[str, Any] = {
    "run_dir": "/home/somebody/runs/x",
    "recipe": "baseline-small",
    "seeds": [1, 37, 42],
    "hard_items": 4,
    "confirmed": {"easy": 3, "learnable": 2, "unlearnable": 1, "no_positive": 1, "undetermined": 0},
    "auroc": 0.8125,
    "auroc_low": 0.5,
    "auroc_high": 0.97,
    "auroc_pass_rate": 0.75,
    "auroc_semantic": None,
    "expected_calibration_error": None,
    "expected_calibration_error_low": None,
    "expected_calibration_error_high": None,
    "too_few": "Too few items for a claim: 1 unlearnable and 2 learnable ones.",
    "agreement": {"unlearnable": 1, "learnable": 2, "left_out": 0},
    "confusion": {
        tag: {"learnable": 2, "unlearnable": 0} if tag == "learnable" else {"learnable": 0}
        for tag in ("easy", "learnable", "unlearnable", "no_positive", "undetermined")
    },
    "notes": ["not filled in: no such file: /home/somebody/tagged.jsonl"],
}


def card_of(run: Path, card: str = "", **options: Any) -> str:
    return dataset_card(read_run_facts(run), card, **options)


# --- Metadata ------------------------------------------------------------------------------------


def test_the_hub_s_own_classes_read_the_metadata(tmp_path: Path) -> None:
    run = write_published_run(
        tmp_path,
        settings={"model": "org/model@main", "dataset": "org/data"},
        manifest={
            "model": HUB_MODEL,
            "dataset": {
                "fingerprint": "f",
                "id": "org/data",
                "name": "data",
                "format": "hub",
                "prompt_field": "q",
                "answer_field": "a",
            },
        },
    )
    ran = run_curate(
        "card", run, "-o", tmp_path / "README.md", "--language", "en", "--language", "no",
        "--license", "apache-2.0", "--json",
    )  # fmt: skip
    assert ran.status == 0, ran.stderr
    card = DatasetCard.load(tmp_path / "README.md")
    assert isinstance(card.data, DatasetCardData)
    splits = ("easy", "learnable", "no_positive", "undetermined")
    assert card.data.to_dict() == {
        "language": ["en", "no"],
        "license": "apache-2.0",
        "tags": ["rlvr", "reinforcement-learning", "grpo", "trainability", "curate"],
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "source_datasets": ["org/data"],
        "base_model": ["org/model"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": tag, "path": f"data/{tag}-*.parquet"} for tag in splits],
            }
        ],
    }
    assert json.loads(ran.stdout) == card.data.to_dict()
    assert card.text.startswith("\n# `org/data`, tagged by trainability\n")


def test_what_is_not_on_the_hub_is_not_linked_and_folders_are_not_told(tmp_path: Path) -> None:
    run = write_published_run(tmp_path)
    (run / "validation").mkdir()
    (run / "validation/summary.json").write_text(json.dumps(SUMMARY))
    card = card_of(run)
    data = DatasetCard(card).data.to_dict()
    assert "base_model" not in data and "source_datasets" not in data
    assert "license" not in data and "language" not in data
    assert "somebody" not in card and str(tmp_path) not in card
    assert "`tiny`, local files, without a revision" in card


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        *((0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K")),
        *((10**6, "1M<n<10M"), (10**12, "n>1T")),
    ],
)
def test_sizes_have_the_hub_s_names(rows: int, name: str) -> None:
    assert size_category(rows) == name


# --- What it says --------------------------------------------------------------------------------


def test_the_numbers_are_the_run_s(tmp_path: Path) -> None:
    card = card_of(write_published_run(tmp_path), repo="me/set")
    for said in (
        "| `easy` | 3 | 42.9% | 4 | right in at least 10% of rollouts already: "
        "pass rate at least 0.1 |",
        "| `unlearnable` | 0 | 0.0% | 0 |",
        "There is no item tagged `unlearnable`",
        "1 rows of the original are in no split: 1 could not be used, 0 were not probed.",
        "weights SHA-256 `" + "a" * 64 + "`",
        "- Rollouts: 32 an item",
        "- Verifier: `math`",
        "- Seeds: sampling 7, adapter 42",
        "- Versions: curate 0.1.0, torch 2.13.0",
        "- Instruction added to the prompt: `Think.`",
        "224 rollouts, 62 of them correct, 4.5% cut at the token limit, 4 that could not be",
        "| `easy` | 0.5 (3) | 0.8 (3) | not measured | 1.5 (3) | 0.3 (3) | 0.5 (3) |",
        "| `undetermined` | 0.0312 (1) | 0.2 (1) | 0.3 (1) | 0.5 (1) | not measured |",
        "- Forecast: the pass rate after a GRPO training 2 times as long as it takes to solve most "
        "easy items, from what was counted and the lift by the gradients of its rollouts "
        "(constants of its model: drift 0.3, gain 1.5, spread 1)",
        "`p_unlearnable`, the probability to stay below 0.1, is at most 0.1 or at least 0.9",
        "| `forecast_pass_rate`, `forecast_low`, `forecast_high` |",
        "| `lift`, `lift_low`, `lift_high` |",
        "| `teaching` |",
        "The predictions are **not confirmed**",
        'learnable = load_dataset("me/set", split="learnable")',
        "2605.16787",
    ):
        assert said in card, said
    assert card == card_of(tmp_path / "run", repo="me/set")


def test_a_run_of_an_earlier_version_has_a_card_without_a_forecast(tmp_path: Path) -> None:
    run = write_published_run(tmp_path, manifest={"forecast": None})
    (run / "lift.parquet").unlink()
    card = card_of(run)
    assert "- Forecast: tagged by an earlier version of curate: no forecast\n" in card
    assert "| `easy` | 0.5 (3) | not measured | not measured | not measured | 0.3 (3) |" in card
    assert "`forecast_low`" not in card and "`teaching`" not in card
    assert "geometry of gradients" in card


def test_a_damaged_forecast_is_one_line(tmp_path: Path) -> None:
    run = write_published_run(
        tmp_path, manifest={"forecast": {"source": "gradients", "horizon": 1.0}}
    )
    ran = run_curate("card", run, "-o", tmp_path / "README.md")
    assert ran.status == 1 and "manifest.json is damaged" in ran.last_line


def test_a_confirmation_is_told_with_its_bounds(tmp_path: Path) -> None:
    run = write_published_run(tmp_path)
    (run / "validation").mkdir()
    (run / "validation/summary.json").write_text(json.dumps(SUMMARY))
    card = card_of(run)
    for said in (
        "recipe `baseline-small`, seeds 1, 37, 42",
        "AUROC 0.81 (95 % interval 0.50 to 0.97)",
        "the pass rate alone: 0.75; similarity of the prompts: not measured",
        "Calibration error: not measured",
        "**Too few items for a claim: 1 unlearnable and 2 learnable ones.**",
        "- Predicted `learnable`, and what became of them: 2 learnable.",
        "- Note: not filled in: no such file: tagged.jsonl",
    ):
        assert said in card, said
    assert "not confirmed" not in card
    (run / "validation/summary.json").write_text("{")
    ran = run_curate("card", run, "-o", tmp_path / "README.md")
    assert ran.status == 1 and "writes it anew" in ran.last_line


def test_figures_of_the_run_are_shown(tmp_path: Path) -> None:
    run = write_published_run(tmp_path)
    (run / "figures").mkdir()
    for name in ("pass_rates.svg", "a](x).png", "notes.txt"):
        (run / "figures" / name).write_bytes(b"x")
    card = card_of(run)
    assert card.count("](figures/") == 1
    assert "![pass rates](figures/pass_rates.svg)" in card


# --- Untrusted names -----------------------------------------------------------------------------

HOSTILE = (
    "`x` ``` <script>alert(1)</script> [a](javascript:b) ![c](d) | # e\n---\n"
    f"{END}\n\u202emirrored\u2066 *f* &lt; https://evil.example @somebody"
)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    manifest = {
        "dataset": {
            "fingerprint": "d",
            "id": "x",
            "name": HOSTILE,
            "format": "jsonl",
            "prompt_field": HOSTILE,
            "answer_field": HOSTILE,
        },
        "model": HUB_MODEL | {"name": HOSTILE, "revision": None},
        "forecast": FORECAST | {"source": HOSTILE},
    }
    settings = {"instruction": HOSTILE, "verifier": HOSTILE.replace("/", "")}
    run = write_published_run(tmp_path, settings=settings, manifest=manifest)
    card = card_of(run)
    html = MarkdownIt("commonmark").enable("table").render(DatasetCard(card).text)
    for markup in ("<script", "<a href", "<img", "<em>f"):
        assert markup not in html.replace('<a href="https://arxiv', ""), markup
    assert "\u202e" not in card and "\u2066" not in card
    assert len(html.split("<h2>")) == 2 and html.count("<h1>") == 1
    # The marker inside a name is none: the section is replaced as a whole, again and again.
    assert card_of(run, card) == card


def test_hostile_metadata_stays_yaml(tmp_path: Path) -> None:
    hostile = "x: [y]\n---\n# z"
    run = write_published_run(
        tmp_path, settings={"model": f"{hostile}@main"}, manifest={"model": HUB_MODEL}
    )
    card = card_of(run, language=["no", hostile], license="no")
    data = DatasetCard(card).data.to_dict()
    assert data["language"] == ["no", hostile] and data["license"] == "no"
    assert data["base_model"] == [hostile]


@pytest.mark.parametrize("text", ["plain", "`", "a``b", " x ", "``", "a\nb", "|", "\\"])
def test_a_code_span_shows_its_text(text: str) -> None:
    html = MarkdownIt("commonmark").render(f"before {code_span(text)} after")
    shown = text.replace("\n", " ")
    assert html == f"<p>before <code>{shown}</code> after</p>\n"


def test_plain_text_shows_its_text() -> None:
    text = "p_unlearnable of *it* [x](y) <b> & `c` https://d.example www.e.example: 25.3 % !"
    html = MarkdownIt("commonmark").render(plain_text(text))
    assert (
        html == f"<p>{text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}</p>\n"
    )


# --- Merging -------------------------------------------------------------------------------------

THEIRS = """---
license: mit   # a comment
tags: [math]
configs:
  - config_name: raw      # theirs
    data_files: raw.csv
# about the name
pretty_name: "A set"
---

# A set

Its text, with trailing space   \nand a table:

| a |
|---|
"""


def test_a_merged_card_keeps_every_other_byte(tmp_path: Path) -> None:
    run = write_published_run(tmp_path)
    (tmp_path / "theirs.md").write_text(THEIRS)
    for _ in range(2):
        out = tmp_path / "README.md"
        merge = out if out.exists() else tmp_path / "theirs.md"
        ran = run_curate("card", run, "-o", out, "--merge", merge)
        assert ran.status == 0, ran.stderr
        card = out.read_text()
        data = DatasetCard(card).data.to_dict()
        assert [each["config_name"] for each in data["configs"]] == ["raw", "trainability"]
        assert data["tags"][0] == "math" and "curate" in data["tags"]
        assert "license: mit   # a comment\n" in card
        assert '# about the name\npretty_name: "A set"\n' in card
        assert card.count("curate: begin") == 1
        assert f"\n---\n{THEIRS.split(chr(10) + '---' + chr(10))[1]}" in card
    assert card == card_of(run, card, name="x")


def test_only_the_section_changes_the_second_time(tmp_path: Path) -> None:
    run = write_published_run(tmp_path)
    first = card_of(run)
    edited = first.replace("# `train`", "Mine before\n\n# `train`") + "\nMine after\n"
    (run / "validation").mkdir()
    (run / "validation/summary.json").write_text(json.dumps(SUMMARY))
    second = card_of(run, edited)
    assert second.partition("<!-- curate")[0] == edited.partition("<!-- curate")[0]
    assert second.rpartition(END)[2] == "\n\nMine after\n"
    assert "not confirmed" in first and "not confirmed" not in second


def test_line_ends_are_the_card_s() -> None:
    card = "---\r\nlicense: mit\r\n---\r\n# A\r\n\r\ntext\r\n"
    merged = merge_card(card, {"tags": ["a"], "license": "mit"}, "one\ntwo", "x")
    assert merged.startswith(
        "---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\n# A\r\n\r\ntext\r\n\r\n<!--"
    )
    assert "\n" not in merged.replace("\r\n", "")
    assert merge_card(merged, {"tags": ["a"]}, "one\ntwo", "x") == merged


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", " ", "\n"])
def test_metadata_without_a_last_line_end_is_kept(line_end: str, last: str) -> None:
    card = f"---\nlicense: mit\npretty_name: A\n---{last}".replace("\n", line_end)
    merged = merge_card(card, {"tags": ["a"]}, "text", "x")
    assert DatasetCard(merged).data.to_dict() == {
        "license": "mit",
        "pretty_name": "A",
        "tags": ["a"],
    }
    assert merged.count("---" + line_end) == 2
    assert merge_card(merged, {"tags": ["a"]}, "text", "x") == merged


def test_a_card_without_metadata_gets_some() -> None:
    merged = merge_card("# A\n", {"license": "mit"}, "text", "x")
    assert merged.startswith("---\nlicense: mit\n---\n# A\n\n<!-- curate: begin")


@pytest.mark.parametrize(
    "block",
    ["a: 1", "a: 1\nb: 2", "b: 2\n# end", "# only a comment", "", "b: |\n  text\n\n", "b: 2\n"],
)
def test_keys_are_set_and_others_stay(block: str) -> None:
    card = f"---\n{block}\n---\ntext\n"
    merged = merge_card(card, {"b": [3], "c": "x"}, "s", "x")
    front = merged.split("\n---\n")[0].removeprefix("---\n")
    old = yaml.safe_load(block) or {}
    assert yaml.safe_load(front) == old | {"b": [3], "c": "x"}
    assert all(line in front for line in block.splitlines() if line.startswith(("a", "#")))


@pytest.mark.parametrize(
    ("card", "word"),
    [
        ("---\na: [\n---\n", "no YAML, line"),
        ("---\n- a\n---\n", "no mapping"),
        ("---\n{a: 1}\n---\n", "in braces"),
        (f"{END}\n", "do not pair"),
        ("<!-- curate: begin -->\n", "do not pair"),
        (f"{END}\n<!-- curate: begin -->\n", "do not pair"),
        ("---\nconfigs: x\n---\n", "`configs`"),
        ("---\nconfigs: [{config_name: trainability, data_files: x}]\n---\n", "'trainability'"),
    ],
)
def test_a_card_that_cannot_be_merged_with_is_refused(tmp_path: Path, card: str, word: str) -> None:
    run = write_published_run(tmp_path)
    theirs = tmp_path / "theirs.md"
    theirs.write_text(card)
    ran = run_curate("card", run, "-o", theirs, "--merge", theirs)
    assert ran.status == 2 and word in ran.last_line, ran.stderr
    assert str(theirs) in ran.last_line and theirs.read_text() == card


def test_a_dataset_info_of_the_card_is_not_taken_for_the_tags(tmp_path: Path) -> None:
    card = "---\ndataset_info:\n  splits: [{name: train, num_examples: 3}]\n---\n"
    data = DatasetCard(card_of(write_published_run(tmp_path), card)).data.to_dict()
    assert data["configs"][0]["config_name"] == "trainability"


def test_a_file_that_is_no_card_of_ours_is_not_replaced(tmp_path: Path) -> None:
    run, readme = write_published_run(tmp_path), tmp_path / "README.md"
    readme.write_text("# A project\n")
    ran = run_curate("card", run, "-o", readme)
    assert ran.status == 2 and f"--merge {readme}" in ran.last_line
    assert readme.read_text() == "# A project\n"
    assert run_curate("card", run, "-o", readme, "--merge", readme).status == 0
    first = readme.read_text()
    assert run_curate("card", run, "-o", readme).status == 0  # Now it is one of ours.
    assert readme.read_text() == first and "# A project\n" in first


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    run = write_published_run(tmp_path)
    for arguments, word in (
        ([tmp_path / "absent"], "no manifest.json"),
        ([run, "--merge", tmp_path / "absent.md"], "absent.md"),
        ([run, "-o", tmp_path], "cannot write"),
    ):
        ran = run_curate("card", *arguments)
        assert ran.status == 2 and word in ran.last_line, ran.stderr
    with pytest.raises(UsageError, match="not finished"):
        stages = {"stages": {"tags": {"state": "started"}}}
        read_run_facts(write_published_run(tmp_path / "other", manifest=stages))


def test_without_a_place_it_lies_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_published_run(tmp_path / "made")
    own = tmp_path / "README.md"
    own.write_text("Of the folder one stands in.")
    monkeypatch.chdir(tmp_path)
    ran = run_curate("card", run)
    assert ran.status == 0 and ran.stdout == f"card: {run / 'README.md'}\n"
    assert (run / "README.md").read_text().startswith("---\n")
    assert own.read_text() == "Of the folder one stands in."
