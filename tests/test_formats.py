"""`--format`: files that each trainer's own loading code reads, with the rows in their order."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

import curate
from curate.datasets.layouts import INSTRUCTION, Question
from curate.errors import UsageError
from curate.tagged.orders import ORDERS, order_rows
from curate.tagged.trainers import FORMATS
from tests.tag_runs import ROOT, read_jsonl, run_curate
from tests.tagged_files import some_rows, tagged_row, write_run_of, write_tagged_file
from tests.tiny import save_tiny_model
from tests.trainer_packages import loaded_by

TRAINERS = ("trl", "verl", "open-instruct", "prime-rl")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '= ' }}{% endif %}"
)


def _rows() -> list[dict[str, Any]]:
    return [row for row in some_rows() if row["trainability"]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder of twenty tagged rows."""
    monkeypatch.chdir(tmp_path)
    tagged = write_tagged_file(tmp_path / "sums.tagged.jsonl", _rows())
    return write_run_of(tagged, tmp_path / "runs" / "sums", instruction="think .")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), chat_template=CHAT_TEMPLATE)


def _in_order() -> list[dict[str, Any]]:
    rows = _rows()
    return [rows[place] for place in order_rows(rows, "curriculum")]


def _messages(row: dict[str, Any], instruction: str = " think .") -> list[dict[str, str]]:
    return [{"role": "user", "content": row["question"] + instruction}]


def _load(file: Path, cache: Path) -> Dataset:
    """Load as TRL's and open-instruct's users do."""
    kind = "json" if file.suffix == ".jsonl" else "parquet"
    return load_dataset(kind, data_files=str(file), split="train", cache_dir=str(cache))


# --- By each project's own loading code ------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_trl_trains_on_the_file_in_its_order(
    run: Path, model: Path, tmp_path: Path, suffix: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.data_utils import is_conversational

    file = tmp_path / f"train{suffix}"
    curate.order(run, file, format="trl")
    dataset = _load(file, tmp_path / "cache")
    assert is_conversational(dataset[0])
    seen: list[tuple[Any, ...]] = []

    def reward(prompts, completions, answer, item_id, pass_rate, **_):  # type: ignore[no-untyped-def]
        seen.extend(zip(prompts, answer, item_id, pass_rate, strict=True))
        return [float(n % 2) for n in range(len(completions))]

    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            shuffle_dataset=False,
            num_generations=2,
            per_device_train_batch_size=8,
            max_completion_length=2,
            num_train_epochs=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
        ),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    assert seen == [
        (_messages(row), row["answer"], row["item_id"], row["pass_rate"])
        for row in _in_order()
        for _ in range(2)
    ]


def _loaded_by(script: str, package: str, *arguments: object) -> list[dict[str, Any]]:
    """What a project's own code made of a file, in a process that has the project."""
    found: list[dict[str, Any]] = json.loads(loaded_by(script, package, *arguments))
    return found


def test_verl_reads_the_file_in_its_order(run: Path, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    curate.order(run, file, format="verl")
    found = _loaded_by("verl_loading.py", "verl", file, model, tmp_path / "cache")
    for index, (row, expected) in enumerate(zip(found, _in_order(), strict=True)):
        assert row["raw_prompt"] == _messages(expected)
        assert row["reward_model"] == {"style": "rule", "ground_truth": expected["answer"]}
        assert row["data_source"] == "org/sums"
        assert row["index"] == row["extra_info"]["index"] == index
        assert row["trainability"] == expected["trainability"]


def test_verifiers_reads_the_file_in_its_order(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    curate.order(run, file, format="prime-rl")
    found = _loaded_by("verifiers_loading.py", "verifiers", file)
    for row, expected in zip(found, _in_order(), strict=True):
        assert row["prompt"] == _messages(expected)[0]["content"]
        assert row["answer"] == expected["answer"]
        assert json.loads(row["info"])["pass_rate"] == expected["pass_rate"]


# --- By the schemas that were read from them -------------------------------------------------


def test_verls_schema(run: Path, tmp_path: Path) -> None:
    """What its documentation of a dataset asks for, and its reward managers take from a row."""
    file = tmp_path / "train.parquet"
    curate.order(run, file, format="verl")
    dataset = _load(file, tmp_path / "cache")
    for index, (row, expected) in enumerate(zip(dataset, _in_order(), strict=True)):
        assert isinstance(row["data_source"], str) and isinstance(row["ability"], str)
        assert row["prompt"] == _messages(expected)
        assert row["reward_model"] == {"style": "rule", "ground_truth": expected["answer"]}
        assert row["extra_info"] == {"index": index, "split": "train"}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_open_instructs_schema(run: Path, tmp_path: Path, suffix: str) -> None:
    """What `rlvr_tokenize_v3` and the choice of a verifier take from a row."""
    file = tmp_path / f"train{suffix}"
    curate.order(run, file, format="open-instruct")
    for row, expected in zip(_load(file, tmp_path / "cache"), _in_order(), strict=True):
        assert row["messages"] == _messages(expected)
        assert row["ground_truth"] == expected["answer"]
        assert row["dataset"] == "math"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_prime_rls_schema(run: Path, tmp_path: Path, suffix: str) -> None:
    """What environments' datasets hold: messages, an answer, and details as a JSON object."""
    file = tmp_path / f"train{suffix}"
    curate.order(run, file, format="prime-rl")
    for row, expected in zip(_load(file, tmp_path / "cache"), _in_order(), strict=True):
        assert row["prompt"] == _messages(expected)
        assert row["answer"] == expected["answer"]
        assert json.loads(row["info"])["trainability"] == expected["trainability"]


# --- What every format promises --------------------------------------------------------------


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_curate_columns_and_all_others_travel_along(
    run: Path, tmp_path: Path, trainer: str
) -> None:
    file = tmp_path / "train.parquet"
    curate.filter(run, file, format=trainer, keep=["easy", "undetermined"])
    expected = [row for row in _rows() if row["trainability"] in ("easy", "undetermined")]
    found = pq.read_table(file)
    assert "original_answer" not in found.column_names
    assert found.select(list(expected[0])).to_pylist() == expected


@pytest.mark.parametrize("of", [".jsonl", ".parquet"])
def test_a_column_that_is_set_anew_is_kept_beside(tmp_path: Path, of: str) -> None:
    row = tagged_row(1, "easy")
    row["prompt"] = row.pop("question")
    row["answer"] = "1 + 1 is 2 #### 2"
    file = write_tagged_file(tmp_path / f"t{of}", [row])
    for out in (tmp_path / "o.jsonl", tmp_path / "o.parquet"):
        curate.filter(file, out, format="trl", instruction="auto")
        found = read_jsonl(out) if out.suffix == ".jsonl" else pq.read_table(out).to_pylist()
        assert found[0]["answer"] == "2"
        assert found[0]["original_answer"] == "1 + 1 is 2 #### 2"
        assert found[0]["prompt"] == [{"role": "user", "content": f"what is 1 + 1 ? {INSTRUCTION}"}]
        assert found[0]["original_prompt"] == "what is 1 + 1 ?"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_columns_that_trl_has_of_its_own_are_set_aside(
    tmp_path: Path, model: Path, suffix: str
) -> None:
    rows = [
        {**row, "completions": ["x"], "prompts": "p", "original_prompts": "older"}
        for row in _rows()
    ]
    tagged = write_tagged_file(tmp_path / f"a{suffix}", rows)
    out = tmp_path / f"out{suffix}"
    found = curate.order(tagged, out, by="curriculum", format="trl")
    names = {"completions": "original_completions", "prompts": "original_original_prompts"}
    for name, other in names.items():
        assert any(repr(name) in note and repr(other) in note for note in found["notes"])
    written = _load(out, tmp_path / "cache").to_list()
    assert not {"completions", "prompts"} & set(written[0])
    assert all(row["original_completions"] == ["x"] for row in written)
    assert {row["original_prompts"] for row in written} == {"older"}
    assert {row["original_original_prompts"] for row in written} == {"p"}
    assert [row["answer"] for row in written] == [row["answer"] for row in _in_order()]
    # Other trainers have no such columns.
    plain = tmp_path / "plain.jsonl"
    curate.order(tagged, plain, by="curriculum", format="open-instruct")
    assert "completions" in read_jsonl(plain)[0]


def test_a_prompt_with_tools_is_refused_by_number(tmp_path: Path) -> None:
    question = Question((("user", "1 + 1 ?"),), "2", calls='{"tools": [{"name": "add"}]}')
    row = tagged_row(1, "easy", item_id=question.item_id)
    row |= {"question": "1 + 1 ?", "answer": "2", "tools": [{"name": "add"}]}
    tagged = write_tagged_file(tmp_path / "a.jsonl", [row])
    with pytest.raises(UsageError, match="row 1: its prompt has tools"):
        curate.order(tagged, tmp_path / "b.jsonl", by="curriculum", format="trl")


def test_a_verl_dataset_keeps_what_describes_its_rows(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1 + 1 ?"}]
    question = Question((("system", "be brief"), ("user", "1 + 1 ?")), "2")
    tools = {"tools_kwargs": {"calculator": {"digits": 3}}, "index": 41}
    row = {
        "prompt": prompt,
        "reward_model": {"style": "model", "ground_truth": "2", "more": 1},
        "data_source": "mine",
        "ability": "counting",
        "extra_info": tools,
        "item_id": question.item_id,
        "trainability": "easy",
    }
    file = write_tagged_file(tmp_path / "t.parquet", [row])
    curate.filter(file, tmp_path / "o.parquet", format="verl")
    assert pq.read_table(tmp_path / "o.parquet").to_pylist() == [row]
    # Another trainer finds its own columns beside them.
    curate.filter(file, tmp_path / "o.jsonl", format="open-instruct")
    assert read_jsonl(tmp_path / "o.jsonl") == [
        row | {"messages": prompt, "ground_truth": "2", "dataset": "math"}
    ]


def test_plain_formats_change_nothing(run: Path, tmp_path: Path) -> None:
    tagged = tmp_path / "sums.tagged.jsonl"
    curate.filter(run, tmp_path / "copy", format="jsonl")
    assert (tmp_path / "copy").read_text() == tagged.read_text()
    curate.filter(run, tmp_path / "copy.parquet", format="parquet")
    assert pq.read_table(tmp_path / "copy.parquet").to_pylist() == _rows()
    assert pq.read_schema(tmp_path / "copy.parquet").field("pass_rate").type == pa.float64()


def test_where_no_run_is_known_a_note_tells_what_that_means(tmp_path: Path) -> None:
    file = write_tagged_file(tmp_path / "t.jsonl", _rows())
    ran = run_curate("filter", file, "--format", "trl", "-o", tmp_path / "o.jsonl", "--json")
    assert "note: no run in ./runs wrote this file" in ran.stderr
    assert json.loads(ran.stdout)["notes"]
    assert read_jsonl(tmp_path / "o.jsonl")[0]["prompt"] == _messages(_rows()[0], "")


def test_the_run_of_a_file_is_found_beside_it(run: Path, tmp_path: Path) -> None:
    curate.filter(run, tmp_path / "a.jsonl", format="trl")
    summary = curate.filter("sums.tagged.jsonl", tmp_path / "b.jsonl", format="trl")
    assert summary["notes"] == []
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_run_of_chosen_rows_gives_the_instruction(
    run: Path, tmp_path: Path, suffix: str
) -> None:
    chosen, out = tmp_path / f"chosen{suffix}", tmp_path / "o.jsonl"
    curate.filter(run, chosen, keep="learnable")
    found = curate.order(chosen, out, by="curriculum", format="trl")
    assert found["notes"] == [
        "runs/sums tagged these rows, so prompts end with its instruction 'think .': nothing to do"
    ]
    assert all(row["prompt"] == _messages(row) for row in read_jsonl(out))
    # A second run of the same rows with the same prompts changes nothing; one with others does.
    shutil.copytree(run, "runs/again")
    (note,) = curate.order(chosen, out, by="curriculum", format="trl")["notes"]
    assert "its instruction 'think .'" in note
    write_run_of(tmp_path / "sums.tagged.jsonl", Path("runs/again"), instruction="other")
    (note,) = curate.order(chosen, out, by="curriculum", format="trl")["notes"]
    assert "no run in ./runs" in note and "--instruction" in note
    assert all(row["prompt"] == _messages(row, "") for row in read_jsonl(out))


def test_rows_that_cannot_be_trained_on_are_refused_by_number(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    whole = write_tagged_file(tmp_path / "a.jsonl", some_rows())
    with pytest.raises(UsageError, match="row 8 has no item to train on: rejected: empty prompt"):
        curate.order(whole, out, format="trl")
    with pytest.raises(UsageError, match="go on from the rows that are left: ") as refused:
        curate.order(whole, out, format="trl")
    command = shlex.split(str(refused.value).rpartition(": ")[2])
    assert run_curate(*command[1:]).status == 0
    curate.order(tmp_path / "o.chosen.jsonl", tmp_path / "p.jsonl", format="trl")
    assert len(read_jsonl(tmp_path / "p.jsonl")) == 20
    other = write_tagged_file(tmp_path / "b.jsonl", [tagged_row(1, "easy", answer="3")])
    with pytest.raises(UsageError, match="row 1: what 'question' and 'answer' hold is not what"):
        curate.filter(other, out, format="trl")
    twice = tmp_path / "c.jsonl"
    curate.filter(whole, twice, format="trl", instruction="think .")
    with pytest.raises(UsageError, match="written for a trainer once, by the last command"):
        curate.filter(twice, out, format="trl")
    assert not out.exists()


@pytest.mark.parametrize(
    ("trainer", "name", "said"),
    [
        ("verl", "o.jsonl", "verl files end in .parquet, not in .jsonl"),
        ("trl", "o.csv", "trl files end in .jsonl or .parquet"),
        ("jsonl", "o.parquet", "jsonl files end in .jsonl"),
        ("very", "o.parquet", "no format is named 'very'"),
        ("", "o.txt", "the suffix must be one of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_a_name_that_does_not_fit_the_format_is_refused(
    run: Path, tmp_path: Path, trainer: str, name: str, said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        curate.filter(run, tmp_path / name, format=trainer)
    assert said in str(refused.value)


@pytest.mark.parametrize("command", ["filter", "order"])
def test_help_names_every_format(command: str) -> None:
    page = run_curate(command, "--help").stdout
    assert all(name in page for name in FORMATS)


def test_the_page_names_every_format_and_every_order() -> None:
    page = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    for trainer in FORMATS:
        assert f"`--format {trainer}`" in page
    for name in ORDERS:
        assert f"| `{name}` |" in page


def test_the_pages_lines_for_trl_and_verl_judge_as_the_probe_did() -> None:
    page = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    blocks = [each.partition("```")[0] for each in page.split("```python\n")[1:]]
    trl = blocks[0].partition("with pool:")[0]
    names: dict[str, Any] = {}
    exec(compile(trl, "docs/use.md", "exec"), names)
    completions = [[{"content": text}] for text in ("\\boxed{2}", "\\boxed{3}")]
    with names["pool"]:
        assert names["reward"](completions, ["2", "2"], item_id=["a", "b"]) == [1, 0]
    exec(compile(blocks[1], "docs/use.md", "exec"), names)
    assert names["compute_score"]("any", "\\boxed{2}", "2", {"index": 0}) == 1.0
