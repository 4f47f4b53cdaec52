"""`curate tag --rollouts`: rollouts that exist in the place of sampling.

The rows of open-instruct, NeMo Gym and open-r1 are written by hand, by their schemas: pip has none
of the three.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.rollout_files.read import open_rollouts
from curate.run.folder import read_manifest
from tests.tag_runs import Ran, additions, run_curate, tag, write_jsonl


@pytest.fixture(scope="module")
def drawn(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that sampled 32 rollouts of each of 12 items."""
    folder = tmp_path_factory.mktemp("drawn")
    dataset = write_jsonl(folder / "sums.jsonl", additions(12))
    more = ("--max-rollouts", 32, "--out", folder / "o.jsonl", "--run-dir", folder / "run")
    ran = tag(dataset, "--model", tiny_model, "--min-rollouts", 32, *more)
    assert ran.status == 0, ran.stderr
    return folder / "run"


def read(run: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run / name).to_pylist()
    return rows


def logged(drawn: Path) -> list[dict[str, Any]]:
    """The rollouts of the run, with all that a log can tell of them."""
    items = {row["item_id"]: row for row in read(drawn, "items.parquet")}
    files = sorted((drawn / "rollouts").glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    return [row | {"item": items[row["item_id"]]} for row in rows]


def take(drawn: Path, tiny_model: Path, folder: Path, log: Path, *more: object) -> Ran:
    return tag(
        *(drawn.parent / "sums.jsonl", "--model", tiny_model, "--rollouts", log),
        *("--out", folder / "out.jsonl", "--run-dir", folder / "run", *more),
    )


def test_logged_tokens_give_the_run_that_drew_them(
    drawn: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """As open-instruct writes them: token ids, here of rollouts that a run of ours drew."""
    rows = [
        {
            "step": 1,
            "prompt_tokens": row["item"]["prompt_token_ids"],
            "response_tokens": row["completion_token_ids"],
            "reward": 10.0 * row["reward"],
            "finish_reason": row["finish_reason"],
        }
        for row in logged(drawn)
    ]
    log = write_jsonl(tmp_path / "r_rollouts_000000.jsonl", rows)
    ran = take(drawn, tiny_model, tmp_path, log, "--rollouts-by", "the tiny model at T = 1")
    assert ran.status == 0, ran.stderr
    assert "(open-instruct): 384, at most 32 of an item; 0 items have none" in ran.stderr
    run = tmp_path / "run"
    assert read(run, "pass_rates.parquet") == read(drawn, "pass_rates.parquet")
    for name in ("rollouts", "features"):
        ours, theirs = (np.load(each / f"gradients/{name}.npy") for each in (run, drawn))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert read(run, "similarity.parquet")[0]["item_id"]
    manifest = read_manifest(run)["rollouts"]
    assert (manifest["matched_by"], manifest["encoded"]) == ({"token ids": 384}, 0)
    ran = run_curate("card", run)
    assert ran.status == 0, ran.stderr
    card = (run / "README.md").read_text()
    assert "384 taken from files (open-instruct), at most 32 an item; drawn by the tiny" in card
    assert "rewards as logged, correct from 1 on" in card
    # Continued, nothing is taken again, and another file is another run.
    again = take(drawn, tiny_model, tmp_path, log, "--rollouts-by", "the tiny model at T = 1")
    assert again.status == 0 and "is finished already" in again.stderr
    other = take(drawn, tiny_model, tmp_path, tmp_path / "other.jsonl")
    assert other.status == 2 and "rollouts:" in other.stderr
    ran = run_curate("report", run)
    assert ran.status == 0, ran.stderr


def test_text_is_encoded_judged_anew_and_turns_count(
    drawn: Path, tiny_model: Path, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {
            "prompt": row["item"]["prompt"],
            "completion": row["completion"],
            "reward": 0.0,  # Not what decides.
            "finish_reason": row["finish_reason"],
        }
        for row in logged(drawn)
    ]
    # A transcript of two turns, of an item that is then known by one rollout more.
    asked = {"role": "user", "content": logged(drawn)[0]["item"]["prompt"].strip()}
    turns = [{"role": "assistant", "content": "1"}, {"role": "user", "content": "?"}]
    turns.append({"role": "assistant", "content": logged(drawn)[0]["item"]["answer"]})
    rows.append({"prompt": [asked], "completion": turns, "reward": 1.0, "finish_reason": None})
    rows.append({"prompt": "of nobody", "completion": "x", "reward": 1.0, "finish_reason": None})
    # Prompts that are text in some rows and messages in others are no table: JSON Lines.
    log = write_jsonl(tmp_path / "log.jsonl", rows)
    ran = take(drawn, tiny_model, tmp_path, log, "--rollout-rewards", "judged")
    assert ran.status == 0, ran.stderr
    found, before = read(tmp_path / "run", "pass_rates.parquet"), read(drawn, "pass_rates.parquet")
    assert [row["total_rollouts"] for row in found] == [33, *[32] * 11]
    assert found[0]["total_correct_rollouts"] == before[0]["total_correct_rollouts"] + 1
    for ours, theirs in zip(found[1:], before[1:], strict=True):
        for name in ("total_correct_rollouts", "pass_rate", "pass_rate_low", "pass_rate_high"):
            assert ours[name] == pytest.approx(theirs[name])
    manifest = read_manifest(tmp_path / "run")["rollouts"]
    assert (manifest["several_turns"], manifest["unmatched"]) == (1, 1)
    assert manifest["without_tokens"] == 0
    assert "1 are of several turns: they count, and their gradients are not" in ran.stdout
    assert manifest["encoded"] == 384
    indexed = read(tmp_path / "run", "gradients/rollouts.parquet")
    assert indexed and all(row["completion_tokens"] for row in indexed)
    card = run_curate("card", tmp_path / "run")
    assert card.status == 0, card.stderr
    text = (tmp_path / "run/README.md").read_text()
    assert "which policy drew them, and how, is not known" in text


def test_a_file_of_rollouts_is_its_own_dataset(
    drawn: Path, tiny_model: Path, tmp_path: Path
) -> None:
    questions = {row["item_id"]: question for row, question in zip(
        read(drawn, "items.parquet"), additions(12), strict=True)}  # fmt: skip
    rows = [
        questions[row["item_id"]] | {"completion": row["completion"], "reward": row["reward"]}
        for row in logged(drawn)
    ]
    log = write_jsonl(tmp_path / "log.jsonl", rows)
    ran = tag(
        *(log, "--model", tiny_model, "--rollouts", log, "--column", "prompt=question"),
        *("--out", tmp_path / "out.jsonl", "--run-dir", tmp_path / "run"),
    )
    assert ran.status == 0, ran.stderr
    found, before = read(tmp_path / "run", "pass_rates.parquet"), read(drawn, "pass_rates.parquet")
    name = "total_correct_rollouts"
    assert [row[name] for row in found] == [row[name] for row in before]
    assert read_manifest(tmp_path / "run")["rollouts"]["matched_by"] == {"prompt": 384}


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([{"prompt": "x", "completion": "1", "reward": 1.0}], (), "of an item of this dataset"),
        ([{"prompt": None, "completion": "1", "reward": 0.5}], (), "the highest reward is 0.5"),
        ([{"prompt": None, "completion": "1", "reward": None}], (), "no rollout has a reward"),
        ([{"prompt": None, "reward": 1.0, "rollouts": 8}], (), "means of several rollouts"),
        ([{"prompt": None, "reward": 1.0}], ("--shard", "1/2"), "leave out --shard"),
        ([{"prompt": None, "reward": 1.0}], ("--dry-run",), "--rollouts samples none"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_refused(
    drawn: Path, tiny_model: Path, tmp_path: Path, rows: Any, more: Any, said: str
) -> None:
    prompt = logged(drawn)[0]["item"]["prompt"]
    log = write_jsonl(
        tmp_path / "log.jsonl", [row | {"prompt": row["prompt"] or prompt} for row in rows]
    )
    ran = take(drawn, tiny_model, tmp_path, log, *more)
    assert ran.status == 2 and said in ran.stderr, ran.stderr


# --- By their schemas ----------------------------------------------------------------------------


def test_nemo_gyms_rollouts_are_read(tmp_path: Path) -> None:
    message = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "4"}],
    }
    row = {
        "responses_create_params": {"input": [{"role": "user", "content": "2+2?"}]},
        "response": {"output": [{"type": "reasoning"}, message], "status": "completed"},
        "reward": 1.0,
        "expected_answer": "4",
    }
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    agent = row | {"response": {"output": [call, message], "status": "incomplete"}, "reward": 0.0}
    files = open_rollouts(write_jsonl(tmp_path / "rollouts.jsonl", [row, agent]))
    first, second = files.rollouts()
    assert files.format == "NeMo Gym"
    assert (first.completion, first.reward, first.answer, first.turns) == ("4", 1.0, "4", 1)
    assert first.prompt == [{"role": "user", "content": "2+2?"}]
    parts = [{"type": "input_text", "text": "2+"}, {"type": "input_text", "text": "2?"}]
    for content, said in ((parts, "2+2?"), ([{"type": "input_image"}], [{"type": "input_image"}])):
        told = row | {"responses_create_params": {"input": [{"role": "user", "content": content}]}}
        (found,) = open_rollouts(write_jsonl(tmp_path / "parts.jsonl", [told])).rollouts()
        assert found.prompt == [{"role": "user", "content": said}]
    assert (second.turns, second.finish_reason) == (2, "length")


def test_open_r1s_generations_are_read(tmp_path: Path) -> None:
    row = {
        **{"problem": "2+2?", "answer": "4", "generations": ["4", "5"], "pass_rate_72b": 0.5},
        **{"correctness_math_verify": [True, False], "finish_reasons": ["stop", "length"]},
    }
    file = tmp_path / "r1.parquet"
    pq.write_table(pa.Table.from_pylist([row]), file)
    found = list(open_rollouts(file).rollouts())
    assert [each.reward for each in found] == [1.0, 0.0]
    assert [each.finish_reason for each in found] == ["stop", "length"]
    two = write_jsonl(tmp_path / "two.jsonl", [row | {"correctness_llama": [True, True]}])
    named = open_rollouts(two, {"reward": "correctness_llama"}).rollouts()
    assert [each.reward for each in named] == [1.0, 1.0]
