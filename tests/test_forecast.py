"""`curate forecast` on the tiny model: pilots, checkpoints, resuming, and what it refuses."""

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import curate
from curate.run.folder import lock_folder
from curate.run.tables import ROLLOUTS
from recipes.forecast.by_pilot import mean_lift
from recipes.train.kept_rollouts import KeptRollouts
from tests.made.tagged import recipe_file, run_with_recipe, tagged_additions
from tests.tag_runs import (
    ROOT,
    curate_command,
    read_rollouts,
    run_curate,
)
from tests.tiny import save_tiny_model

RECIPE = """
extends = "pilot"
max_steps = 2
prompts_per_step = 4
num_generations = 8
learning_rate = 1e-2
lora_rank = 4
dynamic_sampling = false
"""
PER_STEP = 4 * 8


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A folder with a model, a finished run, and its tagged file."""
    return tagged_additions(tmp_path_factory.mktemp("tagged"), "--min-rollouts", 64)


@pytest.fixture
def run(tagged, tmp_path, monkeypatch):
    """A run of one's own; the recipe `quick.toml` lies beside it."""
    monkeypatch.chdir(tmp_path)
    return run_with_recipe(tagged, tmp_path, RECIPE)


def pilot(run, *arguments, recipe="./quick.toml"):
    return run_curate("forecast", run, "--lift", "pilot", "--recipe", recipe, *arguments)


def rows(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def facts(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def by_number(run):
    """The run's rollouts by item and number."""
    return {(row["item_id"], row["sample"]): row for row in read_rollouts(run).to_pylist()}


def log_probability(model, prompt, completion):
    """Of one rollout alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    table = torch.log_softmax(logits.double(), dim=-1)[len(prompt) - 1 : -1]
    return float(table[torch.arange(len(completion)), torch.tensor(completion)].sum())


# --- Pilots -------------------------------------------------------------------------------------


def test_the_lift_is_that_of_the_trained_policy(run, tagged):
    out = tagged / "tagged.jsonl"
    before = out.stat().st_mtime_ns
    ran = pilot(run, "--keep", "--horizon", 2, "--json")
    assert ran.status == 0, ran.stderr
    folder = run / "pilot" / "quick" / "1"
    said = json.loads(ran.stdout)
    assert said["run_dir"] == str(run) and said["tagged_file"] == str(out)
    assert said["lift"] == json.loads((run / "lift.json").read_text())
    assert said["lift"]["source"] == "pilot" and said["lift"]["seeds"] == [1]
    assert out.stat().st_mtime_ns > before
    forecast = json.loads((run / "manifest.json").read_text())["forecast"]
    assert (forecast["source"], forecast["horizon"]) == ("pilot", 2)

    initial = AutoModelForCausalLM.from_pretrained(tagged / "model")
    base = AutoModelForCausalLM.from_pretrained(tagged / "model")
    trained = PeftModel.from_pretrained(base, folder / "policy")
    items = {row["item_id"]: row for row in rows(run, "items")}
    used = {(row["item_id"], row["sample"]) for row in rows(folder, "trained")}
    ratios: dict[str, list[float]] = {}
    counts: dict[str, Counter[int]] = {}
    for (item_id, number), row in by_number(run).items():
        counts.setdefault(item_id, Counter())[row["reward"]] += 1
        if row["reward"] == 1 and (item_id, number) not in used:
            prompt, completion = items[item_id]["prompt_token_ids"], row["completion_token_ids"]
            after, at_first = (
                log_probability(model, prompt, completion) for model in (trained, initial)
            )
            ratios.setdefault(item_id, []).append(after - at_first)
    lift = rows(run, "lift")
    assert [row["item_id"] for row in lift] == list(items)
    assert 5 < len(ratios) < len(items)
    for row in lift:
        if row["item_id"] not in ratios:
            assert row["lift"] is None and row["standard_error"] is None
            continue
        c, n = counts[row["item_id"]][1], 64
        p = (c + 0.5) / (n + 1)
        after = p * np.exp(ratios[row["item_id"]]).mean()
        logit = np.log(after / (1 - after)) - np.log(p / (1 - p))
        assert row["lift"] == pytest.approx(logit, abs=1e-3) and row["standard_error"] > 0
    assert np.std([row["lift"] for row in lift if row["lift"] is not None]) > 0.1


def test_the_first_step_trains_on_kept_rollouts_and_scoring_leaves_them_out(run):
    ran = pilot(run)
    assert ran.status == 0, ran.stderr
    folder = run / "pilot" / "quick" / "1"
    found = facts(folder)
    assert found["state"] == "done" and found["first_step"] == "kept rollouts"
    counts = found["counts"]
    assert counts["rollouts"] == 2 * PER_STEP
    assert counts["kept_rollouts"] == counts["sampled_rollouts"] == PER_STEP
    assert counts["tokens"] == counts["kept_tokens"] + counts["sampled_tokens"]
    assert found["seconds"]["training"] > 0
    assert not list(folder.glob("**/*.safetensors")) and not (folder / "checkpoints").exists()

    kept = by_number(run)
    trained = rows(folder, "trained")
    rewards = {row["item_id"]: row for row in rows(folder, "rewards") if row["step"] == 1}
    numbers: dict[str, list[int]] = {}
    for row in trained:
        numbers.setdefault(row["item_id"], []).append(row["sample"])
    assert set(numbers) == {item for item, row in rewards.items() if row["trained"]}
    assert 0 < len(trained) == counts["trained_on_kept"] < PER_STEP
    for item_id, some in numbers.items():
        assert len(set(some)) == 8
        mean = sum(kept[item_id, number]["reward"] for number in some) / 8
        assert mean == rewards[item_id]["mean_reward"]

    correct = Counter(item for (item, _), row in kept.items() if row["reward"] == 1)
    for row in trained:
        correct[row["item_id"]] -= kept[row["item_id"], row["sample"]]["reward"]
    scored: Counter[str] = Counter()
    for row in rows(folder, "log_probabilities"):
        scored[row["item_id"]] += row["weight"]
    assert scored == +correct


def test_the_first_step_is_sampled_where_the_probe_drew_otherwise(run):
    ran = pilot(run, recipe=recipe_file("cool", temperature=0.9, max_steps=1))
    assert ran.status == 0, ran.stderr
    assert (
        "its first step is sampled: the probe's rollouts are drawn at temperature 1, not 0.9"
        in (ran.stderr)
    )
    folder = run / "pilot" / "cool" / "1"
    counts = facts(folder)["counts"]
    assert counts["sampled_rollouts"] == counts["rollouts"] == PER_STEP
    assert rows(folder, "trained") == []
    ran = pilot(run, recipe=recipe_file("long", max_completion_length=13, max_steps=1))
    assert "are cut at 12 tokens, not at 13" in ran.stderr
    ran = pilot(run, recipe=recipe_file("short", max_completion_length=8, max_steps=1))
    assert ran.status == 0, ran.stderr
    folder = run / "pilot" / "short" / "1"
    counts = facts(folder)["counts"]
    assert counts["sampled_rollouts"] == 0 and counts["tokens"] <= 8 * PER_STEP
    kept = by_number(run)
    lengths = [len(each["completion_token_ids"]) for each in kept.values()]
    assert max(lengths) == 12
    # A correct rollout that is cut is wrong, as it would be if it had been sampled.
    rewards = {row["item_id"]: row for row in rows(folder, "rewards")}
    for row in rows(folder, "trained"):
        rewards[row["item_id"]]["mean_reward"] -= (
            kept[row["item_id"], row["sample"]]["reward"]
            * (len(kept[row["item_id"], row["sample"]]["completion_token_ids"]) <= 8)
            / 8
        )
    assert all(row["mean_reward"] == pytest.approx(0) for row in rewards.values())


def test_seeds_are_run_once_each_and_joined(run):
    assert pilot(run).status == 0
    one = rows(run, "lift")
    written = (run / "pilot" / "quick" / "1" / "run.json").stat().st_mtime_ns
    facts_of = curate.forecast(run, "pilot", recipe="./quick.toml", seeds=(1, 2))["lift"]
    assert facts_of["seeds"] == [1, 2]
    assert facts_of["sampled_rollouts"] == 2 * PER_STEP
    assert (run / "pilot" / "quick" / "1" / "run.json").stat().st_mtime_ns == written
    both = rows(run, "lift")
    known = [(a, b) for a, b in zip(one, both, strict=True) if a["lift"] and b["lift"]]
    assert len(known) > 5 and all(a["lift"] != b["lift"] for a, b in known)
    # How far seeds differ is seen only now.
    assert np.mean([b["standard_error"] > a["standard_error"] for a, b in known]) > 0.5


def test_a_killed_pilot_ends_as_if_it_had_not_been_killed(run):
    whole, killed = (run / "pilot" / name / "1" for name in ("whole", "killed"))
    assert pilot(run, recipe=recipe_file("whole", max_steps=3)).status == 0
    lift = rows(run, "lift")
    (run / "lift.parquet").unlink()
    recipe = recipe_file("killed", max_steps=3)
    command = curate_command("forecast", run, "--lift", "pilot", "--recipe", recipe)
    quiet = subprocess.DEVNULL
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment) as running:
        deadline = time.monotonic() + 120
        while not list(killed.glob("checkpoints/*/curate.json")):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        running.kill()
    assert facts(killed)["state"] == "started" and not (run / "lift.parquet").exists()
    again = pilot(run, recipe=recipe)
    assert again.status == 0, again.stderr
    for name in ("rewards", "trained", "log_probabilities"):
        assert rows(killed, name) == rows(whole, name)
    assert rows(run, "lift") == lift


# --- Checkpoints --------------------------------------------------------------------------------


def lifts(run):
    return {row["item_id"]: row["lift"] for row in rows(run, "lift")}


def test_a_checkpoint_is_a_model_folder_or_an_adapter(run, tagged):
    ran = run_curate("forecast", run, "--lift", tagged / "model", "--json")
    assert ran.status == 0, ran.stderr
    said = json.loads(ran.stdout)["lift"]
    assert said["source"] == "checkpoint" and said["scored_rollouts"] > 10
    # The policy that drew the rollouts moved nothing.
    still = [lift for lift in lifts(run).values() if lift is not None]
    assert len(still) > 5 and still == pytest.approx([0] * len(still), abs=1e-6)

    assert pilot(run, "--keep").status == 0
    by_pilot, folder = lifts(run), run / "pilot" / "quick" / "1"
    assert run_curate("forecast", run, "--lift", folder / "policy").status == 0
    by_adapter = lifts(run)
    trained = {row["item_id"] for row in rows(folder, "trained")}
    others = [item for item, lift in by_pilot.items() if item not in trained and lift is not None]
    assert len(others) > 5
    assert {item: by_adapter[item] for item in others} == pytest.approx(
        {item: by_pilot[item] for item in others}, abs=1e-4
    )
    base = AutoModelForCausalLM.from_pretrained(tagged / "model")
    merged = PeftModel.from_pretrained(base, folder / "policy").merge_and_unload()
    shutil.copytree(tagged / "model", "merged")
    merged.float().save_pretrained("merged")
    assert run_curate("forecast", run, "--lift", "merged").status == 0
    assert {item: lift for item, lift in lifts(run).items() if lift is not None} == pytest.approx(
        {item: lift for item, lift in by_adapter.items() if lift is not None}, abs=1e-3
    )


# --- What it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--lift", "pilot", "--recipe", "sft-small"], "its method is sft, not grpo"),
        (["--lift", "pilot", "--recipe", "mid-trained"], "recipe mid-trained needs --model"),
        (["--lift", "pilot", "--recipe", "pilo"], "did you mean pilot?"),
        (["--lift", "pilot", "--recipe", "./other.toml"], "it begins with another model"),
        (["--lift", "pilot", "--recipe", "./more.toml"], "it trains on extra_items"),
        (["--lift", "pilot", "--horizon", "0"], "--horizon is 0; it must be a number above 0"),
        (["--lift", "pilot", "--seeds", "1,x"], "it must be whole numbers"),
        (["--lift", "./gone"], "./gone"),
        ([], "--lift"),
    ],
)
def test_what_is_wrong_is_one_line(run, arguments, reason):
    recipe_file("other", model="somewhere")
    recipe_file("more", extra_items="items.jsonl")
    before = (run / "lift.parquet").read_bytes()
    ran = run_curate("forecast", run, *arguments)
    assert ran.status == 2
    assert reason in ran.last_line and len(ran.stderr.splitlines()) == 1
    assert not (run / "pilot").exists() and (run / "lift.parquet").read_bytes() == before


def test_weights_that_are_gone_are_not_kept(run):
    assert pilot(run).status == 0
    ran = pilot(run, "--keep")
    assert ran.status == 2 and "its weights are gone; remove it to run it again" in ran.last_line


def test_another_recipe_of_the_same_name_is_refused(run):
    assert pilot(run).status == 0
    Path("quick.toml").write_text(RECIPE.replace("1e-2", "1e-3"), encoding="utf-8")
    ran = pilot(run)
    assert ran.status == 2 and "learning_rate: 0.01 -> 0.001" in ran.last_line


def test_another_model_an_unfinished_run_and_a_seed_in_work_are_refused(run):
    other = save_tiny_model(run.parent / "other", seed=5)
    ran = pilot(run, "--model", other)
    assert ran.status == 2 and "give that one with --model" in ran.last_line
    lock = lock_folder(run / "pilot" / "quick" / "1", "")
    try:
        ran = pilot(run)
    finally:
        os.close(lock)
    assert ran.status == 2 and "choose another seed" in ran.last_line
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["tags"]["state"] = "started"
    (run / "manifest.json").write_text(json.dumps(manifest))
    ran = pilot(run)
    assert ran.status == 2 and "has no tags yet" in ran.last_line


# --- Its parts ----------------------------------------------------------------------------------


def keep_rollouts(run: Path, counts: dict[str, int]) -> Path:
    """A run folder with rollouts whose tokens tell their numbers, in files of three."""
    lines = [(item, number) for item, count in counts.items() for number in range(count)]
    (run / "rollouts").mkdir(parents=True)
    for first in range(0, len(lines), 3):
        columns = dict.fromkeys(ROLLOUTS.schema.names, [None] * len(lines[first : first + 3]))
        columns |= {
            "item_id": [item for item, _ in lines[first : first + 3]],
            "sample": [number for _, number in lines[first : first + 3]],
            "completion_token_ids": [[n] * (n + 1) for _, n in lines[first : first + 3]],
            "finish_reason": ["stop"] * len(lines[first : first + 3]),
        }
        table = pa.table(columns, ROLLOUTS.schema)
        pq.write_table(table, run / "rollouts" / f"{first // 3:05d}.parquet")
    return run


def test_kept_groups_share_no_rollout_and_are_the_same_again(tmp_path):
    run = keep_rollouts(tmp_path / "run", {"a": 12, "b": 4, "c": 7})
    kept = KeptRollouts(run, 3, first=8, seed=1, max_tokens=5)
    epochs = [
        kept.take({3 * epoch + i: item for i, item in enumerate("abc")}, 4) for epoch in (0, 1)
    ]
    assert sorted(epochs[0]) == [0, 1, 2] and sorted(epochs[1]) == [3]
    first, second = ([each.sample for each in epochs[i][3 * i]] for i in (0, 1))
    assert sorted(first + second) == list(range(8))
    for rollout in epochs[0][0]:
        assert rollout.item_id == "a"
        assert rollout.completion_token_ids == [rollout.sample] * min(rollout.sample + 1, 5)
        assert rollout.finish_reason == ("length" if rollout.sample >= 5 else "stop")
    # Asked for alone, by another process, or with another seed.
    assert KeptRollouts(run, 3, first=8, seed=1, max_tokens=5).take({0: "a"}, 4) == {
        0: epochs[0][0]
    }
    others = [
        KeptRollouts(run, 3, first=8, seed=seed, max_tokens=5).take({0: "a"}, 4)
        for seed in range(9)
    ]
    chosen = {tuple(each.sample for each in found[0]) for found in others}
    assert len(chosen) > 5
    assert kept.take({0: "unknown"}, 1) == {}


def test_the_error_of_seeds_covers_what_another_seed_would_say():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    for seeds in (2, 3, 5):
        rollouts = rng.normal(scale=0.2, size=4000)  # What all seeds share.
        lifts = truth + rollouts + rng.normal(scale=0.3, size=(seeds, 4000))
        found = mean_lift(lifts, np.full(lifts.shape, 0.2))
        covered = np.abs(found.lift - truth) < 1.96 * found.standard_error
        assert 0.93 < covered.mean() < 0.97


def test_seeds_that_do_not_know_an_item_say_nothing_of_it():
    nan = np.nan
    lifts, errors = (
        np.array([[1, nan, nan], [2, 3, nan]]),
        np.array([[0.5, nan, nan], [0.3, 1, nan]]),
    )
    found = mean_lift(lifts, errors)
    np.testing.assert_array_equal(found.lift, [1.5, 3, nan])
    # One degree of freedom, which says 1/2; as the pooled variance does.
    np.testing.assert_allclose(
        found.standard_error, [np.sqrt(0.4**2 + 0.5 / 2), np.sqrt(1 + 0.5 * 4 / 4), nan]
    )
    alone = mean_lift(lifts[:1], errors[:1])
    np.testing.assert_array_equal(alone.lift, [1, nan, nan])
    np.testing.assert_array_equal(alone.standard_error, [0.5, nan, nan])


def test_gradients_take_the_place_of_another_lift(run):
    """And the horizon that was asked for before stays."""
    by_gradients = lifts(run)
    assert pilot(run, "--horizon", 2).status == 0
    assert lifts(run) != by_gradients
    ran = run_curate("forecast", run, "--lift", "gradients", "--json")
    assert ran.status == 0, ran.stderr
    assert json.loads(ran.stdout)["lift"]["source"] == "gradients"
    assert lifts(run) == by_gradients
    forecast = json.loads((run / "manifest.json").read_text())["forecast"]
    assert (forecast["source"], forecast["horizon"]) == ("gradients", 2)
