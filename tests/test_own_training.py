"""`curate confirm --training`: outcomes from the logs of a training by another trainer.

verl 0.9.1, verifiers and TRL write their files here themselves. open-instruct's rows are written by
hand, by its schema: pip does not have it.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import calibrate, confirm
from curate.datasets.layouts import Question
from curate.errors import UsageError
from curate.rollout_files.matching import ItemMatcher
from curate.rollout_files.read import open_rollouts
from curate.rollout_files.record import LoggedRollout
from curate.run.tables import FORECAST, OUTCOMES, REWARDS
from tests.made.confirmed import make_world, write_confirmed_run
from tests.made.run import Items, made_run, write_table
from tests.tag_runs import ROOT, additions, run_curate, write_jsonl
from tests.test_formats import CHAT_TEMPLATE
from tests.tiny import save_tiny_model
from tests.trainer_packages import PACKAGES

TAU = 0.1
ROWS = [{"question": f"what is {a} + {a} ?", "answer": str(2 * a)} for a in range(1, 9)]
IDS = [Question((("user", row["question"]),), row["answer"]).item_id for row in ROWS]
# Right ones of eight rollouts at the steps 1 to 4: what becomes of each item of ROWS.
FATES = [
    ([8, 8, 8, 8], "easy"),
    ([0, 1, 4, 6], "learnable"),
    ([0, 0, 1, 2], "learnable"),
    ([1, 0, 0, 1], "unlearnable"),
    ([0, 1, 0, 0], "unlearnable"),
    ([0, 0, 0, 0], "no_positive"),
    ([0, 0, 0, 0], "no_positive"),
]
"""The last item is never rolled out, in the probe 64 times without a correct one."""


def prompt_of(row: Mapping[str, str]) -> str:
    return f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of eight items, one of which the probe finds easy."""
    dataset = write_jsonl(
        tmp_path / "sums.jsonl", [row | {"id": f"q{n}"} for n, row in enumerate(ROWS)]
    )
    items = Items(
        IDS,
        [60, *[0] * 7],
        rollouts=64,
        tags=["easy", *["undetermined"] * 7],
        p_unlearnable=[np.nan, *np.linspace(0.2, 0.8, 7)],
        prompts=[prompt_of(row) for row in ROWS],
    )
    tables: dict[str, dict[str, Any]] = {
        "items": {
            "prompt_token_ids": [[1, 2, n] for n in range(len(ROWS))],
            "answer": [row["answer"] for row in ROWS],
        },
        "rows": {"row": list(range(1, len(ROWS) + 1)), "reason": [None] * len(ROWS)},
    }
    settings = {"dataset": str(dataset), "tau": TAU, "out": str(tmp_path / "none.jsonl")}
    return made_run(tmp_path / "run", items, tables=tables, settings=settings)


def rollouts() -> Iterator[tuple[int, int, bool]]:
    """Step, item and whether it is right, of every rollout."""
    for step in range(1, 5):
        for item, (right, _) in enumerate(FATES):
            for sample in range(8):
                yield step, item, sample < right[step - 1]


def outcomes(run: Path, seed: int = 1) -> dict[str, dict[str, Any]]:
    table = OUTCOMES.read(run / f"validation/own-training/{seed}")
    assert table.schema.equals(OUTCOMES.schema)
    return {row["item_id"]: row for row in table.to_pylist()}


def confirmed(run: Path) -> list[str]:
    table = pq.read_table(run / "validation/confirmed.parquet")
    found: list[str] = table["confirmed_trainability"].to_pylist()
    return found


def assert_as_planted(run: Path) -> None:
    assert confirmed(run) == [*(tag for _, tag in FATES), "no_positive"]


# --- What the programs themselves write ----------------------------------------------------------


def verls_writer() -> Any:
    """`_write_generations` of verl's trainer, without the Ray and vLLM that its module imports."""
    file = PACKAGES / "verl/verl/trainer/ppo/ray_trainer.py"
    if not file.is_file():
        pytest.fail(f"verl is not in {PACKAGES}: `make trainer-packages` puts it there")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (found,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "_write_generations"
    )
    found.decorator_list = []
    names: dict[str, Any] = {"os": os, "json": json}
    exec(compile(ast.Module([found], []), str(file), "exec"), names)
    return names["_write_generations"]


def test_verls_rollouts_are_read(run: Path, tmp_path: Path) -> None:
    write = verls_writer()
    for step in range(1, 5):
        of_step = [each for each in rollouts() if each[0] == step]
        write(
            # As it decodes them: without special tokens.
            [f"user\n{ROWS[item]['question']}\nassistant\n" for _, item, _ in of_step],
            ["so it is" for _ in of_step],
            [ROWS[item]["answer"] for _, item, _ in of_step],
            [1.0 if right else -1.0 for _, _, right in of_step],
            {"acc": [right for _, _, right in of_step]},
            str(tmp_path / "dump"),
            step,
        )
    assert open_rollouts(tmp_path / "dump").format == "verl"
    summary = confirm(run, training=[tmp_path / "dump"])
    assert_as_planted(run)
    log = json.loads((run / "validation/own-training/1/run.json").read_text())["log"]
    assert log["matched_by"] == {"prompt": 4 * 7 * 8} and log["unmatched"] == 0
    assert (log["first_step"], log["last_step"], log["files"]) == (1, 4, 4)
    assert summary["recipe"] == "own-training" and summary["seeds"] == [1]
    assert any("was trained elsewhere (verl, steps 1 to 4)" in note for note in summary["notes"])


def test_verifiers_episodes_are_read(run: Path, tmp_path: Path) -> None:
    folder = PACKAGES / "verifiers"
    if not folder.is_dir():
        pytest.fail(f"verifiers is not in {PACKAGES}: `make trainer-packages` puts it there")
    told = [
        {
            **ROWS[item],
            # By token ids, since its words are those of no item.
            "question": "translated",
            "info": "{}",
            "completion": "so it is",
            "reward": 2.0 * right,
            "step": step - 1,
            "prompt_token_ids": [1, 2, item],
            "completion_token_ids": [7, 8],
        }
        for step, item, right in rollouts()
    ]
    # One whose scoring did not run, and one of an item that is known by what travels along.
    told += [told[0] | {"reward": None, "step": 3}]
    told += [
        told[0]
        | {"info": json.dumps({"item_id": IDS[7]}), "prompt_token_ids": [9, 9], "reward": 0.0}
    ]
    (tmp_path / "run1").mkdir()
    ran = subprocess.run(
        [sys.executable, ROOT / "tests/verifiers_writing.py", tmp_path / "run1"],
        env=os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"},
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    confirm(run, training=[tmp_path / "run1"])
    assert_as_planted(run)
    log = json.loads((run / "validation/own-training/1/run.json").read_text())["log"]
    assert log["matched_by"] == {"token ids": 4 * 7 * 8 + 1, "item_id": 1}
    assert (log["format"], log["not_judged"], log["first_step"]) == ("verifiers", 1, 0)
    # Steps that count from 0 are shifted, since the curves begin at step 1.
    assert REWARDS.read(run / "validation/own-training/1")["step"].to_pylist()[0] == 1
    first = next(open_rollouts(tmp_path / "run1").rollouts())
    assert (first.prompt_token_ids, first.completion_token_ids) == ([1, 2, 0], [7, 8])
    # prime-rl writes traces alone, a folder a step.
    for line in (tmp_path / "run1/traces.jsonl").read_text().splitlines():
        episode = json.loads(line)
        file = tmp_path / f"prime/step_{episode['run']['work']['step']}/train_rollouts.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(json.dumps(episode["traces"][0]) + "\n")
    found = open_rollouts(tmp_path / "prime")
    assert found.format == "prime-rl"
    assert list(found.rollouts()) == sorted(
        open_rollouts(tmp_path / "run1").rollouts(), key=lambda each: each.step or 0
    )


def test_trls_completions_are_read(tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    model = save_tiny_model(tmp_path / "model", chat_template=CHAT_TEMPLATE)
    rows = additions(2)
    asked = [[{"role": "user", "content": row["question"]}] for row in rows]
    seen: list[list[float]] = []

    def correct(completions, **_):  # type: ignore[no-untyped-def]
        seen.append([float(n % 2) for n in range(len(completions))])
        return seen[-1]

    def style(completions, **_):  # type: ignore[no-untyped-def]
        return [0.25] * len(completions)

    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        reward_funcs=[correct, style],
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            log_completions=True,
            num_completions_to_print=0,
            logging_steps=1,
            max_steps=2,
            num_generations=2,
            per_device_train_batch_size=4,
            max_completion_length=2,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": each} for each in asked]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    with pytest.raises(UsageError, match=r"2 rewards \(correct, style\): say which"):
        list(open_rollouts(tmp_path / "out/completions").rollouts())
    log = open_rollouts(tmp_path / "out/completions", {"reward": "correct"})
    found = list(log.rollouts())
    assert log.format == "TRL"
    assert [each.reward for each in found] == [one for batch in seen for one in batch]
    assert [each.step for each in found] == [1] * 4 + [2] * 4
    assert {str(each.prompt) for each in found} == set(map(str, asked))
    assert all(isinstance(each.completion, str) for each in found)
    # The same batch under another step is one that was logged twice.
    again = pq.read_table(tmp_path / "out/completions/completions_00002.parquet")
    place = again.schema.get_field_index("step")
    again = again.set_column(place, "step", pa.array([3] * 4))
    pq.write_table(again, tmp_path / "out/completions/completions_00003.parquet")
    assert list(log.rollouts()) == found
    assert list(open_rollouts(log.path, {"reward": "correct"}).rollouts()) == found


# --- Formats by their schemas, and tables --------------------------------------------------------


def test_open_instructs_rollouts_are_read(run: Path, tmp_path: Path) -> None:
    rows = [
        {
            **{"step": step, "sample_idx": 0, "prompt_idx": 0, "prompt_tokens": [1, 2, item]},
            **{"response_tokens": [4], "reward": 10.0 * right, "advantage": 0.0},
            **{"finish_reason": "length" if item == 1 else "stop", "dataset": "math"},
            "ground_truth": [5],
        }
        for step, item, right in rollouts()
    ]
    (tmp_path / "log").mkdir()
    write_jsonl(tmp_path / "log/r_rollouts_000000.jsonl", rows)
    write_jsonl(tmp_path / "log/r_metadata.jsonl", [{"run_name": "r", "model_name": "m"}])
    confirm(run, training=[tmp_path / "log"])
    assert_as_planted(run)
    rewards = REWARDS.read(run / "validation/own-training/1")
    assert rewards.schema.equals(REWARDS.schema)
    cut = {row["item_id"]: row["truncated_fraction"] for row in rewards.to_pylist()}
    assert cut[IDS[1]] == 1 and cut[IDS[2]] == 0


def a_table(tmp_path: Path, name: str = "log.jsonl", **columns: str) -> Path:
    """A row an item and step, with the mean of eight rollouts."""
    rows = []
    for step in range(1, 5):
        for item, (right, _) in enumerate(FATES):
            row = {"item_id": IDS[item], "step": step, "reward": right[step - 1] / 8, "rollouts": 8}
            rows.append({columns.get(key, key): value for key, value in row.items()})
    return write_jsonl(tmp_path / name, rows)


def test_windows_counts_and_curves(run: Path, tmp_path: Path) -> None:
    log = a_table(tmp_path)
    summary = confirm(run, training=[log], final_rollouts=8)
    found = outcomes(run)
    assert found[IDS[1]] == {
        **{"item_id": IDS[1], "initial_pass_rate": 0.0, "initial_rollouts": 64},
        **{"initial_correct": 0, "final_pass_rate": 0.75, "final_rollouts": 8, "final_correct": 6},
        **{"positive_in_training": True, "ever_positive": True, "visits": 4},
    }
    never = found[IDS[7]]
    assert never["final_pass_rate"] is None and never["visits"] == never["final_rollouts"] == 0
    assert not never["ever_positive"]
    (dynamics,) = summary["dynamics"]
    curve = next(each for each in dynamics["groups"] if each["group"] == "easy")
    assert curve["mean_reward"] == [1, 1, 1, 1] and dynamics["last_step"] == [1, 2, 3, 4]
    assert "1 of 7 hard items were not trained on in every seed" in " ".join(summary["notes"])
    # Of the last three quarters, the newest 20: whole groups, so 24.
    confirm(run, training=[log], final_part=0.75, final_rollouts=20)
    assert outcomes(run)[IDS[1]]["final_correct"] == 1 + 4 + 6
    # Before the last quarter, the first 16, in the place of the probe.
    confirm(run, training=[log], final_part=0.25, initial_rollouts=16)
    found = outcomes(run)
    assert [found[IDS[n]]["initial_correct"] for n in range(5)] == [16, 1, 0, 1, 1]
    assert [found[IDS[n]]["initial_rollouts"] for n in (0, 7)] == [16, 0]


def test_columns_and_items_go_by_other_names(run: Path, tmp_path: Path) -> None:
    log = a_table(tmp_path, item_id="uid", step="t", reward="accuracy", rollouts="n")
    names = ["item_id=uid", "step=t", "reward=accuracy", "rollouts=n"]
    confirm(run, training=[log], column=names)
    assert_as_planted(run)
    # By the dataset's own ids, a list of means an item.
    own = {f"q{n}": [each / 8 for each in right] for n, (right, _) in enumerate(FATES)}
    (tmp_path / "acc.json").write_text(json.dumps(own | {"other": [1.0]}, indent=1))
    with pytest.raises(UsageError, match="mean rewards: say of how many"):
        confirm(run, training=[tmp_path / "acc.json"], id_column="id")
    summary = confirm(run, training=[tmp_path / "acc.json"], id_column="id", rollouts_per_reward=8)
    assert_as_planted(run)
    assert any("8 rollouts are of no item of this run, such as item 'other'" in note
               for note in summary["notes"])  # fmt: skip


def test_seeds_are_united_and_disagree(run: Path, tmp_path: Path) -> None:
    first = a_table(tmp_path, "one.jsonl")
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    other = [row | {"reward": 0.0} if row["item_id"] == IDS[2] else row for row in rows]
    second = write_jsonl(tmp_path / "two.jsonl", other)
    summary = confirm(run, training=[first, second], seeds=[42, 7])
    assert summary["seeds"] == [7, 42]
    # Learned in one seed; in the other it never had a positive, and the union counts.
    assert confirmed(run)[:4] == ["easy", "learnable", "no_positive", "unlearnable"]
    # A third seed joins those that were read in the same way, and in no other.
    confirm(run, training=[first], seeds=[1])
    assert json.loads((run / "validation/summary.json").read_text())["seeds"] == [1, 7, 42]
    with pytest.raises(UsageError, match=r"other settings \(final_rollouts 32\)"):
        confirm(run, training=[first], seeds=[1], final_rollouts=8)


def test_calibrate_learns_from_a_training_elsewhere(tmp_path: Path) -> None:
    world = make_world()
    run = write_confirmed_run(tmp_path / "run", world)
    (run / "validation/confirmed.parquet").unlink()
    items = pq.read_table(run / "items.parquet").to_pydict()
    items["answer"] = [""] * len(items["item_id"])
    items["prompt_token_ids"] = [[n] for n in range(len(items["item_id"]))]
    pq.write_table(pa.table(items), run / "items.parquet")
    nothing = np.full(len(items["item_id"]), np.nan)
    tags = {"trainability": ["undetermined"] * len(nothing), "p_unlearnable": nothing}
    tags |= dict.fromkeys(FORECAST, nothing)
    rows = {"row": items["row"], "item_id": items["item_id"], "reason": [""] * len(nothing)}
    write_table(run / "rows.parquet", rows)
    write_table(run / "tags.parquet", {"item_id": items["item_id"], **tags})
    final = dict(zip(world.item_ids, np.where(world.is_unlearnable, 0.0, 0.5), strict=True))
    log = [
        {"item_id": item_id, "step": step, "reward": rate, "rollouts": 8}
        for item_id, rate in final.items()
        for step in (1, 2)
    ]
    confirm(run, training=[write_jsonl(tmp_path / "log.jsonl", log)])
    facts = calibrate(run)["runs"][0]
    assert (facts["learnable"], facts["unlearnable"]) == (60, 60)
    assert facts["validation_recipe"] == "own-training"


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([{"item_id": "x", "step": 1, "reward": 1.0}], {}, "the first is item 'x'"),
        ([{"item_id": IDS[0], "reward": 1.0}], {}, "have no step: name its column"),
        ([{"item_id": IDS[0], "step": 1, "score": 1.0}], {}, "no column 'reward'"),
        ([{"item_id": IDS[0], "step": 1, "reward": None}], {}, "a reward that is a number"),
        ([{"item_id": IDS[0], "step": 1, "reward": 0.5}], {}, "the highest reward is 0.5"),
        ([{"item_id": IDS[0], "step": 1, "reward": 3, "rollouts": 8}], {}, "shares of correct"),
        ([{"item_id": IDS[0], "step": 1, "reward": 1}], {"column": ["rewad=x"]}, "did you mean"),
        ([{"item_id": IDS[0], "step": 1, "reward": 1}], {"seeds": [1, 2]}, "--seeds names 2"),
        ([{"item_id": IDS[0], "step": 1, "reward": 1}], {"recipe": "a/b"}, "a plain name"),
        ([{"item_id": IDS[0], "step": 1, "reward": 1}], {"id_column": "no"}, "no column 'no'"),
    ],
)  # fmt: skip
def test_what_tells_nothing_is_refused(
    run: Path, tmp_path: Path, rows: Sequence[Mapping[str, Any]], more: Any, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        confirm(run, training=[write_jsonl(tmp_path / "log.jsonl", rows)], **more)
    assert not (run / "validation/summary.json").exists()


def test_a_training_of_validate_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    folder = run / "validation/baseline/1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"state": "done"}')
    log = a_table(tmp_path)
    with pytest.raises(UsageError, match="is of `curate validate`"):
        confirm(run, training=[log], recipe="baseline")


def test_graded_rewards_count_as_wrong_and_are_told(run: Path, tmp_path: Path) -> None:
    rows = [
        {"item_id": IDS[n], "step": step, "reward": reward}
        for n in range(7)
        for step in (1, 2)
        for reward in (0.2, 1.0)
    ]
    rows.append({"item_id": IDS[0], "step": 2, "reward": "nothing"})
    ran = run_curate("confirm", run, "--training", write_jsonl(tmp_path / "log.jsonl", rows))
    assert ran.status == 0, ran.stderr
    assert "note: seed 1: 14 rewards above 0 and below 1 count as wrong" in ran.stdout
    assert outcomes(run)[IDS[0]]["final_pass_rate"] == 0.5


# --- Whose a rollout is --------------------------------------------------------------------------


def matcher(*rows: tuple[str, str]) -> ItemMatcher:
    """Of items with these questions and answers."""
    return ItemMatcher(
        [f"i{n}" for n in range(len(rows))],
        [f"<s>[INST] {question} [/INST]" for question, _ in rows],
        [[n] for n in range(len(rows))],
        [answer for _, answer in rows],
        {n: question for n, (question, _) in enumerate(rows)},
    )


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("[INST] 1+1=? [/INST]", 0),
        ("system\n\nBe brief.user\n\n1+1=?assistant\n\n", 0),
        # Not within a number, and a few-shot example is not the question.
        ("user\n21+1=?\nassistant", 1),
        ("Q: 1+1=? A: 2\nQ: 21+1=?", 1),
        ([{"role": "system", "content": "x"}, {"role": "user", "content": "21+1=? Think."}], 1),
        ("user\n31+1=?\nassistant", None),
        ([{"role": "user", "content": [{"type": "image"}]}], None),
    ],
)
def test_a_prompt_finds_its_item(prompt: Any, found: int | None) -> None:
    assert matcher(("1+1=?", "2"), ("21+1=?", "22")).find(LoggedRollout(prompt=prompt)) == found


def test_items_with_one_prompt_are_told_apart_by_their_answers() -> None:
    same = matcher(("1+1=?", "2"), ("1+1=?", "10"))
    assert same.find(LoggedRollout(prompt="[INST] 1+1=? [/INST]", answer="10")) == 1
    assert same.find(LoggedRollout(prompt="[INST] 1+1=? [/INST]")) is None
    assert same.unmatched == 1 and "1+1=?" in same.example
