"""`curate tag` from end to end: what it promises of the tagged file and of the run folder."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import beta
from transformers import AutoTokenizer

from curate import tag as tag_function
from curate.datasets.layouts import INSTRUCTION
from curate.datasets.source import open_source
from curate.errors import UsageError
from curate.run.folder import other_writer
from probes.tag import own_out
from recipes.train.tagged_run import TaggedRun
from tests.tag_runs import (
    ROOT,
    Ran,
    additions,
    assert_same_rollouts,
    curate_command,
    read_jsonl,
    read_rollouts,
    run_curate,
    small_command,
    tag,
    write_jsonl,
)
from tests.tiny import save_tiny_model

TAU = 0.05
ROLLOUTS = 32
TAG_COLUMNS = [
    *("item_id", "trainability", "p_unlearnable"),
    *("forecast_pass_rate", "forecast_low", "forecast_high"),
    *("total_rollouts", "total_correct_rollouts"),
    *("pass_rate", "pass_rate_low", "pass_rate_high", "pass_at_1", "pass_at_8"),
    *("majority_answer", "majority_share", "suspect_gold", "no_positive_kind"),
    *("lift", "lift_low", "lift_high", "teaching"),
    *("gradient_similarity", "gradient_similarity_low", "gradient_similarity_high"),
    *("gradient_reliability", "tag_reason", "confirmed_trainability"),
]
# Row 1 is asked again in row 3, row 5 is blank, and rows 4 and 6 to 8 cannot be used.
ROWS: list[dict[str, Any] | str] = [
    '{"question": "what is 3 + 4 ?",  "answer": "7", "score": NaN, "big": 123456789012345678901}',
    {"question": "what is 1 + 2 ?", "answer": 3, "note": ["ü", None]},
    {"answer": 7, "question": "what is 3 + 4 ?", "copy": True},
    '{"question": "what is',
    "",
    {"question": "what is 2 + 2 ?"},
    {"question": "what is 2 + 3 ?", "answer": "no number"},
    {"question": "what is " + "1 + " * 200 + "?", "answer": "9"},
    {"question": "what is 7 7 7 7 7 ?", "answer": "77777"},
    *additions(7),
]
REJECTED = {4: "not JSON", 6: "no gold answer", 7: "numeric verifier", 8: "exceed the model's"}


@dataclass(frozen=True)
class Tagged:
    """A finished run that tests may look at and copy but not change."""

    dataset: Path
    out: Path
    run: Path
    ran: Ran

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_jsonl(self.out)

    @property
    def items(self) -> dict[str, dict[str, Any]]:
        return {
            item["item_id"]: item for item in pq.read_table(self.run / "items.parquet").to_pylist()
        }


@pytest.fixture(scope="module")
def tagged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tagged:
    folder = tmp_path_factory.mktemp("tag")
    dataset = write_jsonl(folder / "sums.jsonl", ROWS)
    out, run = folder / "sums.tagged.jsonl", folder / "run"
    ran = tag(dataset, "--model", tiny_model, "--out", out, "--run-dir", run)
    assert ran.status == 0, ran.stderr
    return Tagged(dataset, out, run, ran)


@pytest.fixture
def copied(tagged: Tagged, tmp_path: Path) -> Tagged:
    """The finished run in a folder of its own, for a test that goes on from there."""
    shutil.copytree(tagged.run, tmp_path / "run")
    dataset = Path(shutil.copy(tagged.dataset, tmp_path / "sums.jsonl"))
    return Tagged(dataset, tmp_path / "out.jsonl", tmp_path / "run", tagged.ran)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- The tagged file -------------------------------------------------------------------------


def test_it_is_said_whose_tagged_file_is_written_anew(
    tagged: Tagged, copied: Tagged, tiny_model: Path
) -> None:
    command = (copied.dataset, "--model", tiny_model, "--out", tagged.out, "--run-dir")
    ran = tag(*command, copied.run)
    assert ran.status == 0, ran.stderr
    assert "is the tagged file of" not in ran.stderr
    other = tagged.run.parent / "two"
    ran = tag(tagged.dataset, *command[1:], other, "--limit", "1", "--dry-run")
    assert f"note: {tagged.out} is the tagged file of {tagged.run} and will be this" in ran.stderr
    # The file is what counts: where it is gone, nothing is lost.
    assert other_writer(tagged.out.with_name("gone.jsonl"), other) is None
    assert other_writer(tagged.out, tagged.run) is None


def test_without_out_no_other_runs_tagged_file_is_written_over(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(run: str, out: str) -> None:
        folder = small / "runs" / run
        folder.mkdir(parents=True)
        (small / out).touch()
        (folder / "config.toml").write_text(f"out = '{out}'\n", encoding="utf-8")
        manifest = {"stages": {"write": {"state": "done"}}}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    source = open_source(write_jsonl(small / "sums.jsonl", ROWS))
    own = Path("runs", "sums-mine")
    assert own_out("", source, own) == "sums.tagged.jsonl"
    write("first", "sums.tagged.jsonl")
    assert own_out("", source, own) == "sums-mine.tagged.jsonl"
    assert "so this run's is sums-mine.tagged.jsonl" in capsys.readouterr().err
    assert own_out("", source, Path("elsewhere", "try")) == "sums-try.tagged.jsonl"
    write("sums-mine", "sums-mine.tagged.jsonl")
    assert own_out("", source, own) == "sums-mine.tagged.jsonl"  # It goes on with its own.
    assert own_out("", source, Path("runs", "first")) == "sums.tagged.jsonl"
    assert own_out("mine.jsonl", source, own) == "mine.jsonl"
    with pytest.raises(UsageError, match="name this run's with --out"):
        own_out("", source, Path("elsewhere", "mine"))


def test_every_row_and_column_is_kept_in_order_and_tags_follow(tagged: Tagged) -> None:
    lines = tagged.out.read_text(encoding="utf-8").splitlines()
    sources = [row if isinstance(row, str) else json.dumps(row) for row in ROWS if row != ""]
    assert len(lines) == len(sources)
    for source, line in zip(sources, lines, strict=True):
        row = json.loads(line)
        if source.endswith("}"):
            # The row's own text goes through unchanged: NaN, huge integers and odd spacing too.
            assert line.startswith(source[:-1])
            assert list(row) == [*json.loads(source), *TAG_COLUMNS]
        else:
            assert list(row) == TAG_COLUMNS


def test_rejected_rows_stay_with_nulls_and_their_reason(tagged: Tagged) -> None:
    rejects = read_jsonl(tagged.run / "rejects.jsonl")
    assert [entry["row"] for entry in rejects] == list(REJECTED)
    by_number = dict(
        zip([n for n, row in enumerate(ROWS, 1) if row != ""], tagged.rows, strict=True)
    )
    for entry in rejects:
        assert set(entry) == {"row", "reason", "raw"}
        assert REJECTED[entry["row"]] in entry["reason"]
        source = ROWS[entry["row"] - 1]
        assert entry["raw"] == (source if isinstance(source, str) else json.dumps(source))
        row = by_number[entry["row"]]
        assert row["tag_reason"] == f"rejected: {entry['reason']}"
        assert all(row[name] is None for name in TAG_COLUMNS if name != "tag_reason")
    assert "rejected 4 of 15 rows" in tagged.ran.stderr


def test_duplicates_are_probed_once_and_tagged_in_every_row(tagged: Tagged) -> None:
    first, again = tagged.rows[0], tagged.rows[2]
    assert {n: first[n] for n in TAG_COLUMNS} == {n: again[n] for n in TAG_COLUMNS}
    counts = Counter(read_rollouts(tagged.run)["item_id"].to_pylist())
    assert counts == dict.fromkeys(tagged.items, ROLLOUTS)
    assert len(tagged.items) == 10


def test_counts_rates_and_intervals_follow_from_the_rollouts(tagged: Tagged) -> None:
    rollouts = read_rollouts(tagged.run).to_pylist()
    for row in tagged.rows:
        if row["item_id"] is None:
            continue
        rewards = [r["reward"] for r in rollouts if r["item_id"] == row["item_id"]]
        judged = [reward for reward in rewards if reward is not None]
        n, c = len(judged), sum(judged)
        assert (row["total_rollouts"], row["total_correct_rollouts"]) == (n, c)
        assert row["pass_rate"] == c / n
        for k in (1, 8):
            exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
            assert row[f"pass_at_{k}"] == pytest.approx(float(exact), abs=1e-15)
        low = beta.ppf(0.025, c, n - c + 1) if c else 0
        assert row["pass_rate_low"] == pytest.approx(low, abs=1e-9)
        assert row["pass_rate_high"] == pytest.approx(beta.ppf(0.975, c + 1, n - c), abs=1e-9)


def test_rewards_follow_from_the_completions(tagged: Tagged) -> None:
    outcomes: Counter[str] = Counter()
    tokenizer = AutoTokenizer.from_pretrained(tagged_model(tagged))
    for rollout in read_rollouts(tagged.run).to_pylist():
        answer = tagged.items[rollout["item_id"]]["answer"]
        ids, completion = rollout["completion_token_ids"], rollout["completion"]
        assert completion == tokenizer.decode(ids, skip_special_tokens=True)
        numbers = [word for word in completion.split() if word.isdigit()]
        if rollout["finish_reason"] == "length":
            # Cut: wrong, whatever stands in it.
            assert len(ids) == 12 and tokenizer.eos_token_id not in ids
            expected = (0, "truncated", None)
        elif not numbers:
            expected = (0, "no_answer", None)
        else:
            is_right = numbers[-1] == answer
            expected = (int(is_right), "correct" if is_right else "wrong", numbers[-1])
        assert (rollout["reward"], rollout["verdict"], rollout["answer_found"]) == expected
        assert (ids[-1] == tokenizer.eos_token_id) == (rollout["finish_reason"] == "stop")
        outcomes[expected[1]] += 1
    assert set(outcomes) == {"truncated", "no_answer", "wrong", "correct"}


def tagged_model(tagged: Tagged) -> str:
    return str(tomllib.loads((tagged.run / "config.toml").read_text())["model"])


def test_tags_follow_from_the_evidence(tagged: Tagged) -> None:
    seen = set()
    rates = {
        each["item_id"]: each
        for each in pq.read_table(tagged.run / "pass_rates.parquet").to_pylist()
    }
    for row in tagged.rows:
        if row["item_id"] is None:
            continue
        assert row["confirmed_trainability"] is None
        if row["pass_rate"] >= TAU:
            expected = {"easy"}
        elif row["total_correct_rollouts"] == 0:
            expected = {"no_positive"}
        else:
            p = row["p_unlearnable"]
            expected = {"learnable" if p <= 0.1 else "unlearnable" if p >= 0.9 else "undetermined"}
        assert row["trainability"] in expected
        rate = rates[row["item_id"]]
        drawn = rate["total_rollouts"] + rate["unjudged_rollouts"]
        is_cut = not row["total_correct_rollouts"] and 2 * rate["truncated_rollouts"] > drawn
        assert (row["p_unlearnable"] is None) == (is_cut or row["trainability"] == "easy")
        forecast = [row[name] for name in ("forecast_low", "forecast_pass_rate", "forecast_high")]
        if is_cut:
            assert forecast == [None] * 3 and "nothing is forecast" in row["tag_reason"]
        else:
            assert 0 <= forecast[0] < forecast[1] < forecast[2] <= 1
        assert (row["lift"] is None) == (row["total_correct_rollouts"] == 0)
        if row["lift"] is not None:
            assert row["lift_low"] < row["lift"] < row["lift_high"]
        assert row["tag_reason"] and "\n" not in row["tag_reason"]
        seen |= expected
    assert {"easy", "no_positive", "undetermined"} <= seen


# --- The run folder --------------------------------------------------------------------------

_COLUMNS = {
    "items.parquet": ["item_id", "row", "prompt", "prompt_token_ids", "answer"],
    "rollouts/00000.parquet": [
        *("item_id", "sample", "completion", "completion_token_ids"),
        *("finish_reason", "reward", "verdict", "answer_found", "log_probability"),
    ],
    "rounds/000.parquet": ["item_id", "rollouts"],
    "pass_rates.parquet": [
        *("item_id", "total_rollouts", "total_correct_rollouts", "pass_rate"),
        *("pass_rate_low", "pass_rate_high", "pass_at_1", "pass_at_8"),
    ],
    "gradients/index.parquet": ["item_id", "feature_row", "rollouts_used", "mean_squared_norm"],
    "similarity.parquet": [
        *("item_id", "gradient_similarity", "gradient_similarity_low", "gradient_similarity_high"),
        *("gradient_reliability", "similarity_easy", "similarity_hard", "nearest"),
    ],
    "lift.parquet": [
        *("item_id", "lift", "lift_low", "lift_high", "standard_error", "from_others"),
    ],
    "gold.parquet": ["item_id", "gold_probability", "standard_error"],
    "answers.parquet": [
        *("item_id", "majority_answer", "majority_share", "suspect_gold", "no_positive_kind"),
    ],
    "teaching.parquet": [
        *("item_id", "teaching", "teachers", "teachers_by", "helps", "helps_by", "hurts"),
        "hurts_by",
    ],
    "tags.parquet": [
        *("item_id", "trainability", "p_unlearnable"),
        *("forecast_pass_rate", "forecast_low", "forecast_high", "tag_reason"),
    ],
}


@pytest.mark.parametrize("name", _COLUMNS)
def test_the_run_folder_has_the_columns_of_the_contract(tagged: Tagged, name: str) -> None:
    columns = pq.read_table(tagged.run / name).column_names
    assert [column for column in columns if column in _COLUMNS[name]] == _COLUMNS[name]


def test_nothing_half_written_stays_in_the_run_folder(tagged: Tagged) -> None:
    files = {str(path.relative_to(tagged.run)) for path in tagged.run.rglob("*") if path.is_file()}
    assert files == {
        *("config.toml", "manifest.json", "rejects.jsonl", "rows.parquet", ".lock", "lift.json"),
        *("gradients/features.npy", "gradients/rollouts.npy", "gradients/rollouts.parquet"),
        *_COLUMNS,
    }


def test_the_manifest_says_what_ran(tagged: Tagged, tiny_model: Path) -> None:
    manifest = json.loads((tagged.run / "manifest.json").read_text())
    assert manifest["versions"]["curate"] == "0.1.0"
    assert {"python", "torch", "transformers"} <= set(manifest["versions"])
    assert manifest["model"]["id"] == str(tiny_model)
    assert manifest["model"]["revision"] is None
    assert len(manifest["model"]["weight_hash"]) == len(manifest["dataset"]["fingerprint"]) == 64
    assert manifest["seeds"] == {"sampling": 0, "adapter": 42}
    forecast = manifest["forecast"]
    assert (forecast["source"], forecast["horizon"]) == ("gradients", 1.0)
    assert set(forecast["constants"]) == {"drift", "gain", "spread"}
    stages = [
        *("items", "sample", "verify", "plan", "pass_rates"),
        *("gradients", "answers", "similarity", "lift", "gold", "tags", "write"),
    ]
    assert list(manifest["stages"]) == stages
    assert all(manifest["stages"][stage]["state"] == "done" for stage in stages)
    assert all(manifest["stages"][stage]["seconds"] >= 0 for stage in stages)
    counts = manifest["counts"]
    assert (counts["rows"], counts["rows_rejected"], counts["items"]) == (15, 4, 10)
    assert counts["rollouts_drawn"] == 10 * ROLLOUTS
    assert sum(counts["tags"].values()) == 10


def test_an_items_feature_is_the_mean_over_its_correct_rollouts(tagged: Tagged) -> None:
    _check_features(tagged.run)


def test_a_completion_drawn_twice_counts_twice(small: Path, tiny_model: Path) -> None:
    Path("rewards.py").write_text("def judge(completion, answer):\n    return 1\n")
    ran = tag(
        *(write_jsonl(small / "one.jsonl", additions(1)), "--model", tiny_model),
        *("--verifier", "rewards:judge", "--max-tokens", "2", "--min-rollouts", "200"),
    )
    assert ran.status == 0, ran.stderr
    run = small / "runs/one-tiny-llama"
    weights = pq.read_table(run / "gradients/rollouts.parquet")["weight"].to_pylist()
    assert len(weights) > 1 and max(weights) > 1
    _check_features(run)


def _check_features(run: Path) -> None:
    folder = run / "gradients"
    features = np.load(folder / "features.npy")
    of_draw = pq.read_table(folder / "rollouts.parquet").filter(pc.field("reward") == 1)
    draws = np.load(folder / "rollouts.npy").astype(np.float64)[: of_draw.num_rows]
    index = pq.read_table(folder / "index.parquet").to_pylist()
    right = Counter(
        rollout["item_id"] for rollout in read_rollouts(run).to_pylist() if rollout["reward"]
    )
    # 16 is --gradient-rollouts.
    assert {e["item_id"]: e["rollouts_used"] for e in index} == {
        item_id: min(count, 16) for item_id, count in right.items()
    }
    assert features.shape == (len(index), 256) and features.dtype == np.float32
    for entry in index:
        own = np.array(of_draw["item_id"].to_pylist()) == entry["item_id"]
        weights = of_draw["weight"].to_numpy()[own]
        mean = np.average(draws[own], axis=0, weights=weights)
        np.testing.assert_allclose(features[entry["feature_row"]], mean, rtol=1e-4, atol=1e-7)
        squares = np.average((draws[own] ** 2).sum(axis=1), weights=weights)
        assert entry["mean_squared_norm"] == pytest.approx(squares, rel=1e-5)


def test_the_file_repeats_what_the_run_folder_says(tagged: Tagged) -> None:
    tables = ("pass_rates", "answers", "similarity", "lift", "teaching", "tags")
    by_table = [
        {row["item_id"]: row for row in pq.read_table(tagged.run / f"{name}.parquet").to_pylist()}
        for name in tables
    ]
    for row in tagged.rows:
        if row["item_id"] is not None:
            together = {k: v for table in by_table for k, v in table[row["item_id"]].items()}
            kept = [name for name in TAG_COLUMNS if name != "confirmed_trainability"]
            assert {name: row[name] for name in kept} == {name: together[name] for name in kept}


# --- Prompts ---------------------------------------------------------------------------------


def test_plain_prompts_are_rendered_and_tokenized_once(tagged: Tagged) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tagged_model(tagged))
    for item in tagged.items.values():
        source = ROWS[item["row"] - 1]
        row = json.loads(source) if isinstance(source, str) else source
        assert item["prompt"] == row["question"] + "\n"
        assert item["prompt_token_ids"] == tokenizer(item["prompt"])["input_ids"]
        assert item["answer"] == str(row["answer"])


def test_a_chat_template_renders_and_only_plain_text_gets_the_instruction(small: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    model = save_tiny_model(small / "chat", chat_template=template)
    plain = write_jsonl(small / "plain.jsonl", [{"prompt": "what is 3 ?", "answer": "3"}])
    turns = [{"role": "system", "content": "0"}, {"role": "user", "content": "what is 3 ?"}]
    talk = write_jsonl(small / "talk.jsonl", [{"prompt": turns, "answer": "3"}])
    few = ("--model", model, "--min-rollouts", "1", "--instruction", "auto")
    prompts = {}
    for dataset in (plain, talk):
        assert tag(dataset, *few, "--run-dir", dataset.stem).status == 0
        (prompts[dataset.stem],) = pq.read_table(f"{dataset.stem}/items.parquet")[
            "prompt"
        ].to_pylist()
    assert prompts == {
        "plain": f"<user>what is 3 ? {INSTRUCTION}<assistant>",
        "talk": "<system>0<user>what is 3 ?<assistant>",
    }


def test_without_a_template_the_prompt_ends_as_it_is_told(small: Path, tiny_model: Path) -> None:
    sums = write_jsonl(small / "sums.jsonl", additions(4))
    target = write_jsonl(small / "target.jsonl", additions(6)[4:])
    ran = tag(
        *(sums, "--model", tiny_model, "--min-rollouts", "1", "--target", target),
        *("--prompt-end", " =", "--run-dir", "ended"),
    )
    assert ran.status == 0, ran.stderr
    for folder, questions in (("ended", additions(4)), ("ended/target", additions(6)[4:])):
        items = pq.read_table(f"{folder}/items.parquet").to_pylist()
        assert [item["prompt"] for item in items] == [q["question"] + " =" for q in questions]
    # What a training is evaluated on is rendered as what it trains on.
    held_out = write_jsonl(small / "held_out.jsonl", additions(4)[:2])
    found = TaggedRun(Path("ended")).read_prompts(str(held_out), small / "held")
    ended = {item["item_id"]: item for item in pq.read_table("ended/items.parquet").to_pylist()}
    for item in found:
        assert list(item.prompt_token_ids) == ended[item.item_id]["prompt_token_ids"]
    assert len(found) == 2


def test_a_run_that_does_not_name_its_prompt_end_had_a_line_end(
    copied: Tagged, tiny_model: Path
) -> None:
    config = copied.run / "config.toml"
    lines = config.read_text().splitlines(keepends=True)
    older = [line for line in lines if not line.startswith("prompt_end")]
    assert len(older) == len(lines) - 1
    config.write_text("".join(older))
    same = (copied.dataset, "--model", tiny_model)
    assert r"changed: prompt_end: '\n' -> ''." in _refused(copied, *same, "--prompt-end", "")
    ran = tag(*same, "--run-dir", copied.run, "--out", copied.out)
    assert ran.status == 0, ran.stderr
    assert tomllib.loads(config.read_text())["prompt_end"] == "\n"


# --- Repeating, continuing, refusing ---------------------------------------------------------


def test_the_saved_config_repeats_the_run(tagged: Tagged, tmp_path: Path) -> None:
    again = tmp_path / "again"
    ran = run_curate(
        *("tag", "--config", tagged.run / "config.toml"),
        *("--run-dir", again, "--out", tmp_path / "out.jsonl"),
    )
    assert ran.status == 0, ran.stderr
    assert_same_rollouts(read_rollouts(again), read_rollouts(tagged.run))
    for name in ("items", "pass_rates", "similarity", "tags"):
        first, second = (pq.read_table(run / f"{name}.parquet") for run in (tagged.run, again))
        assert second.equals(first), name
    assert (tmp_path / "out.jsonl").read_bytes() == tagged.out.read_bytes()


def test_another_seed_gives_other_rollouts(
    tagged: Tagged, tiny_model: Path, tmp_path: Path
) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [ROWS[0]])
    runs = {}
    for seed in (0, 1):
        runs[seed] = tmp_path / f"seed-{seed}"
        ran = tag(
            *(one, "--model", tiny_model, "--seed", seed, "--run-dir", runs[seed]),
            *("--out", tmp_path / f"{seed}.jsonl"),
        )
        assert ran.status == 0, ran.stderr
    completions = {seed: read_rollouts(run)["completion"].to_pylist() for seed, run in runs.items()}
    assert completions[0] != completions[1]
    # An item's rollouts are its own: what else is in the dataset makes no difference.
    (item_id,) = set(read_rollouts(runs[0])["item_id"].to_pylist())
    whole = read_rollouts(tagged.run).to_pylist()
    assert completions[0] == [r["completion"] for r in whole if r["item_id"] == item_id]


def test_the_temperature_reaches_the_sampling(small: Path, tiny_model: Path) -> None:
    dataset = write_jsonl(small / "one.jsonl", additions(1))
    assert tag(dataset, "--model", tiny_model, "--temperature", "0.001").status == 0
    rollouts = read_rollouts(small / "runs/one-tiny-llama")
    assert len(set(rollouts["completion"].to_pylist())) == 1


def test_a_finished_run_is_not_sampled_again(
    tagged: Tagged, copied: Tagged, tiny_model: Path
) -> None:
    def states() -> dict[str, tuple[int, int]]:
        files = [path for path in copied.run.rglob("*.[pn][ap]*") if path.is_file()]
        return {str(f): (f.stat().st_ino, f.stat().st_mtime_ns) for f in files}

    before = states()
    assert len(before) == 15
    ran = tag(copied.dataset, "--model", tiny_model, "--run-dir", copied.run, "--out", copied.out)
    assert ran.status == 0, ran.stderr
    assert states() == before
    assert "loading" not in ran.stderr  # nor is the model
    said = f"{copied.run} is finished already; the tagged file is written again"
    assert ran.stderr.splitlines()[0] == said
    assert copied.out.read_bytes() == tagged.out.read_bytes()


def test_a_moved_dataset_and_model_are_the_same_run(copied: Tagged, tiny_model: Path) -> None:
    dataset = copied.dataset.rename(copied.dataset.with_name("moved.jsonl"))
    model = shutil.copytree(tiny_model, copied.run.parent / "moved-model")
    ran = tag(dataset, "--model", model, "--run-dir", copied.run, "--out", copied.out)
    assert ran.status == 0, ran.stderr
    assert tomllib.loads((copied.run / "config.toml").read_text())["dataset"] == str(dataset)


def _refused(copied: Tagged, *arguments: object) -> str:
    before = (copied.run / "manifest.json").read_bytes()
    ran = tag(*arguments, "--run-dir", copied.run, "--out", copied.out)
    assert ran.status == 2
    assert ran.stderr.startswith("curate: ") and ran.stderr.count("\n") == 1, ran.stderr
    assert (copied.run / "manifest.json").read_bytes() == before
    assert not copied.out.exists()
    return ran.stderr


def test_another_setting_on_a_run_folder_is_refused(copied: Tagged, tiny_model: Path) -> None:
    line = _refused(
        *(copied, copied.dataset, "--model", tiny_model),
        *("--seed", "7", "--tau", "0.5", "--k", "1", "2"),
    )
    assert "seed: 0 -> 7" in line
    assert "tau: 0.05 -> 0.5" in line
    assert "k: [1, 8] -> [1, 2]" in line
    assert "--run-dir" in line  # says what to do
    assert "verifier" not in line and "out" not in line  # and only what changed


def test_a_changed_dataset_is_refused(copied: Tagged, tiny_model: Path) -> None:
    with copied.dataset.open("a") as file:
        file.write('{"question": "what is 9 ?", "answer": 9}\n')
    other = Path(shutil.copy(copied.dataset, copied.dataset.with_name("other.jsonl")))
    line = _refused(copied, other, "--model", tiny_model)
    assert f"sums.jsonl' -> '{other}'" in line
    assert "fingerprint" not in line  # a hash says nothing to a person
    # The same name with other contents: only the hash can tell.
    config = copied.run / "config.toml"
    config.write_text(
        config.read_text().replace(tomllib.loads(config.read_text())["dataset"], str(other))
    )
    assert "dataset fingerprint: " in _refused(copied, other, "--model", tiny_model)


def test_another_model_is_refused(copied: Tagged, tiny_model: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    line = _refused(copied, copied.dataset, "--model", other)
    assert f"model: '{tiny_model}' -> '{other}'" in line


def test_a_corrected_command_starts_afresh_where_nothing_was_done(
    small: Path, tiny_model: Path
) -> None:
    dataset = write_jsonl(small / "one.jsonl", additions(1))
    assert tag(dataset, "--model", tiny_model, "--verifier", "choice").status == 2
    write_jsonl(dataset, additions(2))
    ran = tag(dataset, "--model", tiny_model, "--min-rollouts", "2")
    assert ran.status == 0, ran.stderr
    assert len(read_jsonl(small / "one.tagged.jsonl")) == 2


def test_what_a_kill_left_half_written_is_removed(copied: Tagged, tiny_model: Path) -> None:
    left = [copied.run / ".manifest.json.abc123.tmp", copied.run / "rollouts" / ".0.parquet.1.tmp"]
    for path in left:
        path.write_text("half")
    tag(copied.dataset, "--model", tiny_model, "--run-dir", copied.run, "--out", copied.out)
    assert not any(path.exists() for path in left)


def test_a_second_process_on_a_run_folder_is_refused(copied: Tagged, tiny_model: Path) -> None:
    hold = (
        "import fcntl, os, sys, time\n"
        "lock = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "os.truncate(lock, 0); os.write(lock, str(os.getpid()).encode())\n"
        "print('held', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, copied.run / ".lock"], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        line = _refused(copied, copied.dataset, "--model", tiny_model)
        holder.kill()
    assert f"{copied.run} is in use by process {holder.pid}" in line
    ran = tag(copied.dataset, "--model", tiny_model, "--run-dir", copied.run, "--out", copied.out)
    assert ran.status == 0


@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_continues(
    interruption: signal.Signals, small: Path, tiny_model: Path
) -> None:
    dataset = write_jsonl(small / "sums.jsonl", additions(8))
    # A small batch, so that sampling takes seconds.
    command = (dataset, "--model", tiny_model, "--min-rollouts", "100", "--batch-tokens", "400")
    with subprocess.Popen(
        small_command(*command), stderr=subprocess.PIPE, text=True, cwd=small, env=_environment()
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("engine"):
                break
        manifest = small / "runs/sums-tiny-llama/manifest.json"
        ends = time.monotonic() + 600
        while json.loads(manifest.read_text())["stages"].get("sample", {}).get("state") is None:
            assert process.poll() is None and time.monotonic() < ends
            time.sleep(0.01)
        process.send_signal(interruption)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert rest.splitlines()[-1] == (
        "curate: interrupted; no rollouts were kept yet, the same command begins with them"
    )
    assert "Traceback" not in rest
    assert not list((small / "runs").rglob("*.tmp"))
    assert json.loads(manifest.read_text())["stages"]["sample"]["state"] == "started"
    if interruption == signal.SIGINT:
        ran = tag(*command)
        assert ran.status == 0, ran.stderr
        counts = Counter(read_rollouts(small / "runs/sums-tiny-llama")["item_id"].to_pylist())
        assert set(counts.values()) == {100} and len(counts) == 8


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}


# --- Formats and ways to call ----------------------------------------------------------------


def test_json_is_all_that_stands_on_standard_output(
    copied: Tagged, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ran = tag(
        *(copied.dataset, "--model", tiny_model, "--run-dir", copied.run),
        *("--out", copied.out, "--json"),
    )
    summary = json.loads(ran.stdout)
    assert capfd.readouterr().out == ""  # from below Python either
    assert (summary["rows"], summary["rows_rejected"], summary["items"]) == (15, 4, 10)
    assert summary["rollouts"] == 10 * ROLLOUTS
    assert sum(entry["items"] for entry in summary["tags"].values()) == 10
    assert summary["tagged_file"] == str(copied.out)


def test_the_summary_tells_a_newcomer_what_was_found(tagged: Tagged) -> None:
    out = tagged.ran.stdout
    for word in ("easy", "learnable", "unlearnable", "no_positive", "undetermined"):
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [word]]
        assert len(line.split()) > 4  # the count, the share and what the tag means
    assert "rows: 15 (11 probed, 4 rejected)" in out
    assert str(tagged.out) in out and str(tagged.run) in out


def test_prompts_that_the_verifier_accepts_as_answers_are_warned_of(
    small: Path, tiny_model: Path
) -> None:
    sums = [{"question": f"what is {n} + 2 ?", "answer": str(n + 2)} for n in range(1, 5)]
    dataset = write_jsonl(small / "a.jsonl", [*sums, {"question": "what is 7 ?", "answer": "7"}])
    ran = tag(dataset, "--model", tiny_model, "--run-dir", "run", "--min-rollouts", "1")
    assert "the prompt itself as an answer for 1 of 5 items, first in row 5" in ran.stderr
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["echoes"] == {"prompts_checked": 5, "accepted": 1}
    write_jsonl(dataset, sums)
    ran = tag(dataset, "--model", tiny_model, "--run-dir", "other", "--min-rollouts", "1")
    assert "accepts the prompt itself" not in ran.stderr


def test_others_at_work_are_warned_of_once_and_only_where_it_matters(
    small: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = write_jsonl(small / "sums.jsonl", additions(2))
    command = (sums, "--model", tiny_model, "--min-rollouts", "1", "--run-dir")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(time, "process_time", lambda: 6.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.6, 0.0, 0.0))
    monkeypatch.setattr("probes.models.load.choose_device", lambda: torch.device("cpu"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (line,) = [
        line for line in tag(*command, "busy").stderr.splitlines() if "other processes" in line
    ]
    assert line.startswith("warning: other processes wanted 1.5 of 2 cores in the last minute")
    assert "OMP_NUM_THREADS=1 curate tag" in line
    assert "other processes" not in tag(*command, "busy").stderr  # all is done
    monkeypatch.setattr(os, "getloadavg", lambda: (1.1, 0.0, 0.0))
    assert "other processes" not in tag(*command, "calm").stderr
    monkeypatch.setattr(os, "getloadavg", lambda: (1.6, 0.0, 0.0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "other processes" not in tag(*command, "told").stderr


def test_many_cut_completions_are_warned_of(tagged: Tagged, small: Path, tiny_model: Path) -> None:
    reasons = Counter(read_rollouts(tagged.run)["finish_reason"].to_pylist())
    share = reasons["length"] / reasons.total()
    assert share > 0.2
    warnings = [line for line in tagged.ran.stderr.splitlines() if line.startswith("warning")]
    (line,) = [line for line in warnings if "cut" in line]
    assert f"{share:.0%} of the completions were cut at --max-tokens 12" in line


def test_jsonl_gives_parquet_where_out_says_so(
    tagged: Tagged, copied: Tagged, tiny_model: Path
) -> None:
    out = copied.out.with_suffix(".parquet")
    ran = tag(copied.dataset, "--model", tiny_model, "--run-dir", copied.run, "--out", out)
    assert ran.status == 0, ran.stderr
    table = pq.read_table(out)
    assert table.column_names[-len(TAG_COLUMNS) :] == TAG_COLUMNS
    assert table.schema.field("p_unlearnable").type == pa.float64()
    assert table["item_id"].to_pylist() == [row["item_id"] for row in tagged.rows]


def test_the_function_returns_the_same_table(
    tagged: Tagged, copied: Tagged, tiny_model: Path
) -> None:
    table = tag_function(
        copied.dataset,
        tiny_model,
        out=copied.out,
        run_dir=copied.run,
        verifier="numeric",
        verifier_workers=1,
        instruction="",
        tau=TAU,
        max_tokens=12,
        gradient_dim=256,
        min_rollouts=ROLLOUTS,
        max_rollouts=ROLLOUTS,
    )
    assert isinstance(table.arrow, pa.Table)
    names = ["question", *TAG_COLUMNS]
    assert table.select(names).to_pylist() == [
        {name: row.get(name) for name in names} for row in tagged.rows
    ]
    assert table.schema.field("confirmed_trainability").type == pa.string()


def test_parquet_gives_parquet_and_repeats_columns_and_types(small: Path, tiny_model: Path) -> None:
    source = pa.table(
        {
            "problem": ["what is 1 + 2 ?", None, "what is 3 ?"],
            "answer": pa.array([3, 4, 3], pa.int32()),
            "extra": pa.array([1, None, 3], pa.uint8()),
        }
    )
    pq.write_table(source, "data.parquet")
    ran = tag("data.parquet", "--model", tiny_model, "--min-rollouts", "4")
    assert ran.status == 0, ran.stderr
    table = pq.read_table("data.tagged.parquet")
    assert table.select(source.column_names).equals(source)
    assert table.column_names == [*source.column_names, *TAG_COLUMNS]
    assert table["total_rollouts"].to_pylist() == [4, None, 4]
    # pass@8 of 4 rollouts is unknown, not 0.
    assert table["pass_at_8"].to_pylist() == [None, None, None]


def test_csv_gives_csv_and_one_item_is_enough(small: Path, tiny_model: Path) -> None:
    Path("data.csv").write_text('question,answer,note\n"what is 1 + 2 ?",3,"a, b"\n')
    ran = tag("data.csv", "--model", tiny_model, "--min-rollouts", "4")
    assert ran.status == 0, ran.stderr
    with Path("data.tagged.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["question", "answer", "note", *TAG_COLUMNS]
    assert (row["question"], row["note"], row["total_rollouts"]) == ("what is 1 + 2 ?", "a, b", "4")
    assert row["pass_at_8"] == row["confirmed_trainability"] == ""
    table = tag_function("data.csv", tiny_model, **_settings_of(small / "runs/data-tiny-llama"))
    assert table["total_rollouts"].to_pylist() == [4]
    assert table["pass_at_8"].to_pylist() == [None]


def _settings_of(run: Path) -> dict[str, Any]:
    config = tomllib.loads((run / "config.toml").read_text())
    return {name: value for name, value in config.items() if name not in ("dataset", "model")}


def test_limit_probes_the_first_rows_and_keeps_the_others(small: Path, tiny_model: Path) -> None:
    dataset = write_jsonl(small / "sums.jsonl", additions(5))
    ran = tag(dataset, "--model", tiny_model, "--limit", "2", "--min-rollouts", "4")
    assert ran.status == 0, ran.stderr
    rows = read_jsonl(small / "sums.tagged.jsonl")
    assert [row["question"] for row in rows] == [row["question"] for row in additions(5)]
    assert [row["total_rollouts"] for row in rows] == [4, 4, None, None, None]
    assert {row["tag_reason"] for row in rows[2:]} == {"not probed: beyond --limit 2"}
    assert (small / "runs/sums-tiny-llama/rejects.jsonl").read_text() == ""
    assert "rows: 5 (2 probed, 0 rejected, 3 beyond --limit)" in ran.stdout


# --- Hard cases ------------------------------------------------------------------------------


def test_no_positive_rollout_anywhere(small: Path, tiny_model: Path) -> None:
    rows = [{"question": f"what is {i} ?", "answer": "77777"} for i in range(3)]
    # Room for most rollouts to end: of what is mostly cut nothing is forecast.
    ran = tag(write_jsonl(small / "hard.jsonl", rows), "--model", tiny_model, "--max-tokens", 40)
    assert ran.status == 0, ran.stderr
    for row in read_jsonl(small / "hard.tagged.jsonl"):
        assert row["trainability"] == "no_positive"
        assert (row["total_rollouts"], row["total_correct_rollouts"]) == (ROLLOUTS, 0)
        assert row["gradient_similarity"] is row["lift"] is row["teaching"] is None
        # Nothing was ever right and nobody can teach: the forecast has no doubt.
        assert row["p_unlearnable"] > 0.99 and row["forecast_high"] < 0.1
    run = small / "runs/hard-tiny-llama"
    assert np.load(run / "gradients/features.npy").shape == (0, 256)
    assert pq.read_table(run / "gradients/index.parquet").num_rows == 0
    assert pq.read_table(run / "similarity.parquet").num_rows == 3


def test_what_a_users_verifier_cannot_judge_is_null_and_never_wrong(
    small: Path, tiny_model: Path
) -> None:
    Path("rewards.py").write_text(
        "def judge(completion, answer):\n"
        "    if completion == answer:\n"
        "        return True\n"
        "    raise LookupError('no idea')\n"
    )
    rows = [{"question": "what is 3 ?", "answer": "77777"}]
    ran = tag(
        *(write_jsonl(small / "one.jsonl", rows), "--model", tiny_model),
        *("--verifier", "rewards:judge", "--max-tokens", "240", "--min-rollouts", "8"),
    )
    assert ran.status == 0, ran.stderr
    rollouts = read_rollouts(small / "runs/one-tiny-llama")
    assert set(rollouts["finish_reason"].to_pylist()) == {"stop"}
    assert rollouts["reward"].null_count == 8
    assert set(rollouts["verdict"].to_pylist()) == {"error"}
    (row,) = read_jsonl(small / "one.tagged.jsonl")
    assert (row["total_rollouts"], row["total_correct_rollouts"]) == (0, 0)
    assert row["pass_rate"] is row["pass_rate_low"] is row["pass_at_1"] is None
    assert row["trainability"] == "undetermined"
    assert "8 not judged" in ran.stdout


def test_a_tag_column_in_a_later_row_is_refused_before_sampling(
    small: Path, tiny_model: Path
) -> None:
    rows = [*additions(2), {"question": "what is 3 ?", "answer": "3", "pass_rate": 0.5}]
    dataset = write_jsonl(small / "sums.jsonl", rows)
    ran = tag(dataset, "--model", tiny_model)
    assert ran.status == 2
    assert "pass_rate" in ran.last_line and "--replace-columns" in ran.last_line
    assert not (small / "runs/sums-tiny-llama/rollouts").exists()
    ran = tag(dataset, "--model", tiny_model, "--replace-columns", "--min-rollouts", "2")
    assert ran.status == 0, ran.stderr
    assert [row["total_rollouts"] for row in read_jsonl(small / "sums.tagged.jsonl")] == [2, 2, 2]


def test_gradient_targets_are_named_and_wrong_names_refused_before_sampling(
    small: Path, tiny_model: Path
) -> None:
    dataset = write_jsonl(small / "sums.jsonl", additions(1))
    ran = tag(dataset, "--model", tiny_model, "--gradient-targets", "q_proj", "nope")
    assert ran.status == 2
    assert "'nope'" in ran.last_line and "k_proj" in ran.last_line
    assert not (small / "runs/sums-tiny-llama/rollouts").exists()
    for targets in (["auto"], ["q_proj", "o_proj"]):
        ran = tag(
            *(dataset, "--model", tiny_model, "--run-dir", targets[-1], "--min-rollouts", "2"),
            *("--gradient-targets", *targets),
        )
        assert ran.status == 0, ran.stderr


def test_options_override_the_config_file(small: Path, tiny_model: Path) -> None:
    dataset = write_jsonl(small / "sums.jsonl", additions(1))
    Path("mine.toml").write_text('verifier = "numeric"\nmin_rollouts = 3\nmax_tokens = 5\nk = 2\n')
    ran = run_curate(
        *("tag", dataset, "--model", tiny_model, "--config", "mine.toml", "--min-rollouts", "2"),
        *("--max-rollouts", "2"),
    )
    assert ran.status == 0, ran.stderr
    config = tomllib.loads((small / "runs/sums-tiny-llama/config.toml").read_text())
    assert (config["min_rollouts"], config["max_tokens"], config["k"]) == (2, 5, [2])
    (row,) = read_jsonl(small / "sums.tagged.jsonl")
    assert "pass_at_2" in row and "pass_at_1" not in row


def test_a_reader_that_goes_away_is_no_error(small: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        curate_command("tag", "--help"),
        stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=_environment(),
    )  # fmt: skip
    os.close(write)
    assert (ran.returncode, ran.stderr) == (1, "")
