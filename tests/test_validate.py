"""`curate validate` on the tiny model: outcomes, resuming, two processes, and what it refuses."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from curate.errors import UsageError
from curate.run.folder import lock_folder
from recipes.recipe import Recipe
from recipes.train import job as training_job
from recipes.train import vllm
from recipes.train.job import read_facts
from recipes.train.tagged_run import TaggedRun
from recipes.validate import validate as validation
from recipes.validate.command import Validate
from tests.made.tagged import recipe_file, run_with_recipe, tagged_additions
from tests.tag_runs import (
    ROOT,
    additions,
    curate_command,
    read_rollouts,
    run_curate,
    write_jsonl,
)
from tests.tiny import save_tiny_model

RECIPE = """
extends = "baseline"
max_steps = 4
prompts_per_step = 4
updates_per_step = 2
learning_rate = 1e-3
max_completion_length = 12
evaluation_temperature = 1.0
max_sampling_rounds = 3
save_every = 2
"""


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A folder with a model, a finished run, its tagged file, and a recipe."""
    return tagged_additions(tmp_path_factory.mktemp("tagged"))


@pytest.fixture
def run(tagged, tmp_path, monkeypatch):
    """A run of one's own; the recipe `quick.toml` lies beside it."""
    monkeypatch.chdir(tmp_path)
    return run_with_recipe(tagged, tmp_path, RECIPE)


def validate(run, *arguments, recipe="./quick.toml", seeds="1"):
    return run_curate("validate", run, "--recipe", recipe, "--seeds", seeds, *arguments)


def rows(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def rollouts(folder):
    return read_rollouts(folder).to_pylist()


# --- Outcomes -----------------------------------------------------------------------------------


def test_outcomes_are_those_of_the_rollouts_on_disk(run):
    ran = validate(run, "--json")
    assert ran.status == 0, ran.stderr
    folder = run / "validation" / "quick" / "1"
    assert json.loads(ran.stdout) == [str(folder / "outcomes.parquet")]
    outcomes = rows(folder, "outcomes")
    assert [row["item_id"] for row in outcomes] == [row["item_id"] for row in rows(run, "items")]

    final = Counter(row["item_id"] for row in rollouts(folder))
    right = Counter(row["item_id"] for row in rollouts(folder) if row["reward"] == 1)
    at_first = Counter(row["item_id"] for row in rollouts(run))
    right_at_first = Counter(row["item_id"] for row in rollouts(run) if row["reward"] == 1)
    rewards = rows(folder, "rewards")
    visits = Counter(row["item_id"] for row in rewards)
    positive = {row["item_id"] for row in rewards if row["mean_reward"] > 0}
    for row in outcomes:
        item = row["item_id"]
        assert row["final_rollouts"] == final[item] == 32
        assert row["final_pass_rate"] == right[item] / 32 == row["final_correct"] / 32
        assert row["initial_pass_rate"] == right_at_first[item] / at_first[item]
        assert row["visits"] == visits[item]
        assert row["positive_in_training"] == (item in positive)
        assert row["ever_positive"] == (item in positive or right_at_first[item] > 0)
    assert 0 < len(positive) < len(outcomes)

    facts = json.loads((folder / "run.json").read_text())
    counts = facts["counts"]
    assert facts["state"] == "done" and facts["seed"] == 1
    assert facts["sampling"]["engine"] == "transformers"
    assert counts["groups"] == len(rewards) and counts["rollouts"] == 8 * len(rewards)
    assert counts["kept"] + counts["unfilled"] == 4 * 4
    assert sum(row["trained"] for row in rewards) == counts["kept"]
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "kl" in line] == [1, 2, 3, 4]
    # Weights are dropped unless asked for.
    assert not list(folder.glob("**/*.safetensors"))


def test_sft_of_a_model_that_one_gpu_does_not_hold_is_refused(tagged, monkeypatch):
    run = TaggedRun(tagged / "run")
    job = validation._Job(run, Recipe(name="sft", method="sft"), 1, Validate(tagged / "run"))
    job.check()
    monkeypatch.setattr(validation, "is_spread", lambda *_: True)
    with pytest.raises(UsageError, match="sft is not spread over several"):
        job.check()


def test_what_draws_is_noted_before_the_first_step_and_kept_from_a_checkpoint_on(run, monkeypatch):
    monkeypatch.setattr(vllm, "_obstacle", lambda *_: "")
    begun = []

    def killed(training):
        begun.append((training.generation, read_facts(training.folder.parent)["generation"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(training_job, "train_grpo", killed)

    def begin(*, fits):
        monkeypatch.setattr(vllm, "_fits", lambda *_: fits)
        with pytest.raises(KeyboardInterrupt):
            validation.validate_run(Validate(run, seeds=[1, 2]), [Recipe(name="auto")])
        return begun[-1]

    assert begin(fits=False) == ("transformers", "transformers")
    # Nothing is trained yet.
    assert begin(fits=True) == ("vllm", "vllm")
    newest = run / "validation" / "auto" / "1" / "checkpoints" / "checkpoint-1"
    newest.mkdir(parents=True)
    (newest / "curate.json").write_text("{}", encoding="utf-8")
    assert begin(fits=False) == ("vllm", "vllm")


def test_final_rollouts_are_drawn_by_the_runs_engine(tagged, monkeypatch):
    run = TaggedRun(tagged / "run")
    run.config = run.config.replace(engine="vllm", top_p=0.5, top_k=3, min_p=0.1)
    recipe = Recipe(name="test", evaluation_temperature=0.7)

    def final(processes=1, engine="vllm", base_url=()):
        state = SimpleNamespace(num_processes=processes)
        monkeypatch.setattr(validation, "process_state", lambda: state)
        run.config = run.config.replace(engine=engine, base_url=base_url)
        return validation._Job(run, recipe, 42, Validate(tagged / "run"))._final_config()

    config = final()
    assert (config.engine, config.seed, config.temperature) == ("vllm", 2**32 + 42, 0.7)
    # The policy itself, as ever.
    assert (config.top_p, config.top_k, config.min_p) == (1, 0, 0)
    assert config.max_tokens == run.config.max_tokens
    # Servers have the model before training; processes of a training are no place for vLLM.
    assert final(processes=2).engine == "transformers"
    assert final(engine="server", base_url=("http://localhost:1/v1",)).engine == "auto"


def test_the_final_rollouts_are_those_of_the_trained_policy(run):
    recipe = recipe_file("hot", learning_rate=1e-2, max_steps=8)
    assert validate(run, "--keep", "policy", recipe=recipe).status == 0
    policy = run / "validation" / "hot" / "1" / "policy"
    trained = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    model = tomllib.loads((run / "config.toml").read_text())["model"]
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    moved = [n for n in before if not torch.allclose(before[n].float(), trained[n].float())]
    assert len(moved) > len(before) // 2


def test_an_adapter_is_merged_and_every_checkpoint_can_be_probed(run):
    recipe = recipe_file("adapter", lora_rank=4, learning_rate=1e-2)
    ran = validate(run, "--keep", "all", recipe=recipe)
    assert ran.status == 0, ran.stderr
    folder = run / "validation" / "adapter" / "1"
    assert {path.name for path in folder.glob("policy*")} == {"policy", "policy-2"}
    settings = ("--config", run / "config.toml", "--run-dir", "probe", "--out", "probe.jsonl")
    ran = run_curate("tag", "--model", folder / "policy-2", *settings)
    assert ran.status == 0, ran.stderr
    assert [row["item_id"] for row in rows(run.parent / "probe", "items")] == [
        row["item_id"] for row in rows(run, "items")
    ]


def test_sft_trains_on_correct_rollouts_of_the_probe(run):
    recipe = recipe_file("copy", method="sft", max_steps=60, prompts_per_step=4,
                         updates_per_step=1, learning_rate=1e-2)  # fmt: skip
    ran = validate(run, recipe=recipe)
    assert ran.status == 0, ran.stderr
    folder = run / "validation" / "copy" / "1"
    right = [row for row in rollouts(run) if row["reward"] == 1]
    facts = json.loads((folder / "run.json").read_text())
    assert facts["counts"]["demonstrations"] == len(right)
    assert rows(folder, "rewards") == []
    outcomes = rows(folder, "outcomes")
    assert sum(row["visits"] for row in outcomes) == 0
    # What it was shown it says: the pass rate of the shown items rises.
    shown = [row for row in outcomes if row["initial_correct"] > 0]
    gain = [row["final_pass_rate"] - row["initial_pass_rate"] for row in shown]
    assert sum(gain) / len(gain) > 0.1


def test_a_run_that_is_killed_while_it_drops_its_weights_is_done(run, monkeypatch):
    recipe = recipe_file("copy", method="sft", max_steps=2, updates_per_step=1)
    folder = run / "validation" / "copy" / "1"
    # An earlier version was killed there before it was done.
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "model.safetensors").write_bytes(b"")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(validation, "shutil", SimpleNamespace(rmtree=killed))
        assert validate(run, recipe=recipe).status == 130
    assert read_facts(folder)["state"] == "done" and len(rows(folder, "outcomes")) == 20
    monkeypatch.setattr(validation, "train_sft", killed)
    assert validate(run, recipe=recipe).status == 0


def test_held_out_items_are_evaluated_on_the_way(run):
    questions = additions(24)
    write_jsonl(run.parent / "held_out.jsonl", questions[18:])
    recipe = recipe_file("curve", evaluate_every=2, held_out_rollouts=4)
    ran = validate(run, "--held-out", "held_out.jsonl", recipe=recipe)
    assert ran.status == 0, ran.stderr
    folder = run / "validation" / "curve" / "1"
    found = rows(folder, "held_out")
    trained_on = {row["item_id"] for row in rows(run, "items")}
    assert len(found) == 3 * 4  # steps 0, 2 and 4, and two of the six are trained on
    assert not trained_on & {row["item_id"] for row in found}
    spent = {row["step"]: row["rollouts"] for row in found}
    assert list(spent) == [0, 2, 4] and spent[0] == 0 < spent[2] < spent[4]
    assert spent[4] == json.loads((folder / "run.json").read_text())["counts"]["rollouts"]
    assert {row["total_rollouts"] for row in found} == {4}


def test_extra_items_are_trained_on_beside_the_run(run):
    write_jsonl(run.parent / "extra.jsonl", [{"question": "what is 9 + 9 ?", "answer": "7"}])
    recipe = recipe_file("more", extra_items="--extra-items", items=["no_positive"])
    assert validate(run, recipe=recipe).last_line.endswith("recipe more needs --extra-items")
    ran = validate(run, "--extra-items", "extra.jsonl", recipe=recipe)
    assert ran.status == 0, ran.stderr
    known = {row["item_id"] for row in rows(run, "items")}
    visited = {row["item_id"] for row in rows(run / "validation" / "more" / "1", "rewards")}
    assert len(visited - known) == 1
    tags = {row["item_id"]: row["trainability"] for row in rows(run, "tags")}
    assert {tags[item] for item in visited & known} == {"no_positive"}


# --- Resuming and several processes ------------------------------------------------------------


def test_a_killed_run_ends_as_if_it_had_not_been_killed(run):
    whole, killed = (run / "validation" / name / "1" for name in ("whole", "killed"))
    assert validate(run, recipe=recipe_file("whole", max_steps=6)).status == 0
    recipe = recipe_file("killed", max_steps=6)
    with process(curate_command("validate", run, "--recipe", recipe, "--seeds", 1)) as running:
        deadline = time.monotonic() + 600
        while not list(killed.glob("checkpoints/*/curate.json")):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        running.kill()
    assert not (killed / "outcomes.parquet").exists()
    again = validate(run, recipe=recipe)
    assert again.status == 0, again.stderr
    assert rows(killed, "rewards") == rows(whole, "rewards")
    assert rows(killed, "outcomes") == rows(whole, "outcomes")
    assert rollouts(killed) == rollouts(whole)


@contextlib.contextmanager
def process(command):
    """A command in a process of its own, from the current folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment) as running:
        yield running


def test_two_processes_decide_the_same(run):
    """Under `accelerate launch`: one stream of prompts, one log, one policy."""
    recipe = recipe_file("two", replay_positives=1, oversample=2)
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            # Without mpirun this is the launcher of several processes, on GPUs or not.
            *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
            *(ROOT / "tests" / "two_processes.py", run, recipe),
        ],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={
            **os.environ,
            **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        },
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    folder = run / "validation" / "two" / "1"
    facts = json.loads((folder / "run.json").read_text())
    assert facts["state"] == "done" and facts["processes"] == 2
    counts, rewards = facts["counts"], rows(folder, "rewards")
    assert counts["groups"] == counts["place"] == len(rewards)
    said = [json.loads((run / f"said-{process}.json").read_text()) for process in (0, 1)]
    assert said[0] == said[1]
    assert said[0]["groups"] == len(rewards)


# --- What it refuses ----------------------------------------------------------------------------


def test_a_run_is_found_by_its_tagged_file(tagged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tagged / "run", tmp_path / "runs" / "one")
    ran = validate(tagged / "tagged.jsonl", recipe="no-such-recipe")
    assert ran.status == 2 and "no recipe is named" in ran.last_line
    (tmp_path / "quick.toml").write_text(RECIPE, encoding="utf-8")
    ran = validate(tagged / "tagged.jsonl", recipe=recipe_file("none", items=["unlearnable"]))
    assert ran.status == 2 and "this run has none" in ran.last_line
    shutil.copytree(tagged / "run", tmp_path / "runs" / "two")
    ran = validate(tagged / "tagged.jsonl")
    assert ran.status == 2 and "written by several runs" in ran.last_line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "no such run folder or tagged file: nowhere"),
        (["run", "--recipe", "baselin"], "did you mean baseline?"),
        (["run", "--recipe", "./missing.toml"], "is no file"),
        (["run", "--recipe", "mid-trained"], "recipe mid-trained needs --model"),
        (["run", "--seeds", "1,two"], "it must be whole numbers"),
        (["run", "--recipe", "./quick.toml", "--held-out", "gone.jsonl"], "gone.jsonl"),
        ([], "no run given"),
    ],
)
def test_what_is_wrong_is_one_line(run, arguments, reason):
    ran = run_curate("validate", *arguments)
    assert ran.status == 2
    assert reason in ran.last_line and len(ran.stderr.splitlines()) == 1
    assert not (run / "validation").exists()


def test_what_training_needs_is_named_where_it_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    ran = validate(run)
    assert ran.status == 2
    assert ran.last_line == (
        "curate: training needs trl: pip install 'rl-curate[train]' installs it"
    )


def test_another_recipe_of_the_same_name_is_refused(run):
    assert validate(run, recipe=recipe_file("same", max_steps=1)).status == 0
    ran = validate(run, recipe=recipe_file("same", max_steps=2))
    assert ran.status == 2 and "max_steps: 1 -> 2" in ran.last_line


def test_another_model_is_refused(run):
    other = save_tiny_model(run.parent / "other", seed=5)
    ran = validate(run, "--model", other)
    assert ran.status == 2 and "is not the one that run probed" in ran.last_line.replace(
        str(run), "run"
    )


def test_an_unfinished_run_is_refused(run):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["tags"]["state"] = "started"
    (run / "manifest.json").write_text(json.dumps(manifest))
    ran = validate(run)
    assert ran.status == 2 and "has no tags yet" in ran.last_line


def test_a_seed_in_work_is_left_alone(run):
    folder = run / "validation" / "quick" / "1"
    lock = lock_folder(folder, "")
    try:
        ran = validate(run)
    finally:
        os.close(lock)
    assert ran.status == 2 and "choose another seed" in ran.last_line
