"""`curate score` on tiny models: outcomes of checkpoints, continuing, and what it refuses."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curate import confirm, score
from curate.errors import UsageError
from curate.run.tables import OUTCOMES
from probes import tagging
from probes.engines.base import SampleRequest
from probes.engines.transformers import TransformersEngine
from probes.models.checkpoints import open_checkpoint
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy, outline_policy
from tests.killed_runs import run_until_killed
from tests.made.tagged import tagged_additions
from tests.stand_ins.server import StandIn
from tests.tag_runs import (
    Ran,
    assert_same_rollouts,
    curate_command,
    read_rollouts,
    run_curate,
    write_jsonl,
)
from tests.test_checkpoints import save_adapter
from tests.test_server_engine import Answers
from tests.tiny import save_tiny_model

ITEMS, ROLLOUTS = 12, 8


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a finished run of it, and two checkpoints."""
    folder = tmp_path_factory.mktemp("tagged")
    for seed in (5, 6):
        save_tiny_model(folder / f"trained-{seed}", seed=seed)
    return tagged_additions(folder, count=ITEMS)


@pytest.fixture
def run(tagged: Path, tmp_path: Path) -> Path:
    """A run of one's own, with a tagged file of its own."""
    shutil.copytree(tagged / "run", tmp_path / "run")
    out = shutil.copy(tagged / "tagged.jsonl", tmp_path / "tagged.jsonl")
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace(str(tagged / "tagged.jsonl"), str(out)))
    return tmp_path / "run"


def scored(run: Path, *arguments: object) -> Ran:
    return run_curate("score", run, "--rollouts", ROLLOUTS, *arguments)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return found


def drawn_by_hand(policy: Policy, run: Path, seed: int) -> dict[tuple[str, int], list[int]]:
    """Rollouts of a policy at the run's prompts, by item and number."""
    engine = TransformersEngine(policy, seed=2**32 + seed, temperature=1.0, max_tokens=12)
    requests = [
        SampleRequest(row["item_id"], row["prompt_token_ids"], 0, ROLLOUTS)
        for row in rows(run, "items")
    ]
    return {
        (each.item_id, each.sample): each.completion_token_ids for each in engine.sample(requests)
    }


def drawn(folder: Path) -> dict[tuple[str, int], list[int]]:
    return {
        (row["item_id"], row["sample"]): row["completion_token_ids"]
        for row in read_rollouts(folder).to_pylist()
    }


# --- Outcomes -----------------------------------------------------------------------------------


def test_outcomes_are_those_of_the_checkpoints_and_every_command_goes_on(
    tagged: Path, run: Path, tmp_path: Path
) -> None:
    models = [tagged / f"trained-{seed}" for seed in (5, 6)]
    ran = scored(run, "--model", models[0], "--model", models[1], "--seeds", "1,42", "--json")
    assert ran.status == 0, ran.stderr
    assert f"sampling: {ITEMS * ROLLOUTS} rollouts in" in ran.stderr
    summary = json.loads(ran.stdout)
    assert [each["seed"] for each in summary["seeds"]] == [1, 42]
    probed = {row["item_id"]: row for row in rows(run, "pass_rates")}
    for each, model, seed in zip(summary["seeds"], models, (1, 42), strict=True):
        folder = run / "validation/scored" / str(seed)
        policy = load_policy(resolve_model(str(model)))
        assert drawn(folder) == drawn_by_hand(policy, run, seed)
        rollouts = read_rollouts(folder).to_pylist()
        right = Counter(row["item_id"] for row in rollouts if row["reward"] == 1)
        assert right
        table = OUTCOMES.read(folder)
        assert table.schema.equals(OUTCOMES.schema)
        assert table["item_id"].to_pylist() == list(probed)
        for row in table.to_pylist():
            before, c = probed[row["item_id"]], right[row["item_id"]]
            assert row["final_rollouts"] == ROLLOUTS and row["final_correct"] == c
            assert row["final_pass_rate"] == c / ROLLOUTS
            assert row["initial_rollouts"] == before["total_rollouts"]
            assert row["initial_correct"] == before["total_correct_rollouts"]
            assert row["positive_in_training"] is None and row["visits"] is None
            assert row["ever_positive"] == (c > 0 or row["initial_correct"] > 0)
        assert each["judged"] == ITEMS * ROLLOUTS and each["correct"] == sum(right.values())
        facts = json.loads((folder / "run.json").read_text())
        assert facts["state"] == "done" and facts["engine"]["seed"] == 2**32 + seed
        assert facts["score"]["model"] == str(model)
    assert "nothing is known of the training itself" in summary["notes"][-1]

    # What comes after a training of ours.
    ran = run_curate("confirm", run, "--json")
    assert ran.status == 0, ran.stderr
    confirmed = json.loads(ran.stdout)
    assert confirmed["recipe"] == "scored" and confirmed["seeds"] == [1, 42]
    assert any("seeds 1, 42 were trained elsewhere" in note for note in confirmed["notes"])
    strict = confirmed["table1"].pop("positives_in_training_only")
    assert all(kind == {"items": None, "share": None} for kind in strict.values())
    assert confirmed["dynamics"] is None
    outcomes = [rows(run / "validation/scored" / seed, "outcomes") for seed in ("1", "42")]
    tags = [row["confirmed_trainability"] for row in rows(run, "validation/confirmed")]
    assert tags == [expected(seeds) for seeds in zip(*outcomes, strict=True)]
    assert len(set(tags)) > 1
    by_tag = Counter(tags)
    for words in ("confirm", "report", "card"):
        again = run_curate(words, run)
        assert again.status == 0, again.stderr
    chosen = tmp_path / "chosen.jsonl"
    ran = run_curate("filter", run, "--by", "confirmed", "--keep", tags[0], "-o", chosen)
    assert ran.status == 0, ran.stderr
    assert len(chosen.read_text().splitlines()) == by_tag[tags[0]]
    # Twelve items are too few to fit anything, and that is all it has against them.
    assert "learnable and" in run_curate("calibrate", run).last_line


def expected(seeds: Sequence[dict[str, Any]]) -> str:
    """The paper's partition of an item, from its outcomes in the seeds; τ is 0.05."""
    if seeds[0]["initial_pass_rate"] >= 0.05:
        return "easy"
    if not all(seed["ever_positive"] for seed in seeds):
        return "no_positive"
    learned = [seed["final_pass_rate"] >= 0.05 for seed in seeds]
    return "learnable" if all(learned) else "undetermined" if any(learned) else "unlearnable"


def test_a_killed_score_goes_on_as_if_it_had_not_been_killed(
    tagged: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagging, "_SHARD_TOKENS", {"cpu": 4 * ROLLOUTS * 12})
    asked = (run, "--model", tagged / "trained-5", "--rollouts", ROLLOUTS, "--name")
    whole, killed = (run / "validation" / name / "1" for name in ("whole", "killed"))
    assert run_curate("score", *asked, "whole").status == 0
    assert len(list((whole / "rollouts").iterdir())) == 3
    moment = ("probes.stages.sample", "write_parquet", 2)
    run_until_killed(tmp_path, moment, "score", *asked, "killed", command=curate_command)
    assert len(list((killed / "rollouts").glob("*.parquet"))) == 1
    assert not (killed / "outcomes.parquet").exists()
    # It may only go on as it began: another training beside it needs weights of its own.
    one, other = (("--model", tagged / f"trained-{seed}") for seed in (5, 6))
    for words, said in (
        ((*one, "--rollouts", 16), "rollouts: 8 -> 16"),
        ((*one, "--temperature", 0.5), "temperature: 1.0 -> 0.5"),
        ((*one, "--max-tokens", 13), "max_tokens: 12 -> 13"),
        (other, f"model: {one[1]} -> {other[1]}"),
        ((*one, "--seeds", "2"), "has the weights of"),
        ((*other, "--seeds", "2", "--temperature", 0.5), "temperature: 1.0 -> 0.5"),
    ):
        refused = scored(run, "--name", "killed", *words)
        assert refused.status == 2 and said in refused.last_line, refused.stderr
    again = run_curate("score", *asked, "killed")
    assert again.status == 0, again.stderr
    assert_same_rollouts(read_rollouts(killed), read_rollouts(whole))
    assert rows(killed, "outcomes") == rows(whole, "outcomes")
    finished = run_curate("score", *asked, "killed", "--json")
    assert finished.status == 0 and "is scored already" in finished.stderr
    assert json.loads(finished.stdout)["seeds"][0]["rollouts"] == ITEMS * ROLLOUTS


def test_an_adapter_is_drawn_from_on_the_runs_model(
    tagged: Path, run: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tagged / "model", tmp_path / "adapter", scale=0.3)
    refused = scored(run, "--model", adapter, "--executor", "ray")
    assert refused.status == 2 and "merge it" in refused.last_line
    ran = scored(run, "--model", adapter)
    assert ran.status == 0, ran.stderr
    policy = open_checkpoint(str(adapter), resolve_model(str(tagged / "model")))
    folder = run / "validation/scored/1"
    assert drawn(folder) == drawn_by_hand(policy, run, 1)
    base = load_policy(resolve_model(str(tagged / "model")))
    assert drawn(folder) != drawn_by_hand(base, run, 1)
    assert json.loads((folder / "run.json").read_text())["score"]["adapter"] is True


def test_a_checkpoint_without_tokenizer_has_the_runs(
    tagged: Path, run: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(tagged / "trained-5", tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    assert scored(run, "--model", bare).status == 0
    assert scored(run, "--model", tagged / "trained-5", "--name", "with").status == 0
    assert rows(run / "validation/scored/1", "outcomes") == rows(
        run / "validation/with/1", "outcomes"
    )


def test_servers_get_the_runs_prompts(tagged: Path, run: Path) -> None:
    model = tagged / "trained-5"
    answers = Answers(outline_policy(resolve_model(str(model))))
    answers.model = "served"
    server = StandIn(answers)
    server.start()
    try:
        asked = ("--engine", "server", "--base-url", server.url, "--served-model", "served")
        ran = scored(run, "--model", model, *asked)
    finally:
        server.stop()
    assert ran.status == 0, ran.stderr
    prompts = {tuple(row["prompt_token_ids"]) for row in rows(run, "items")}
    asked_for = Counter()
    for body in server.posted:
        if isinstance(body["prompt"], list) and body["max_tokens"] == 12:
            asked_for[tuple(body["prompt"])] += body["n"]
    assert asked_for == dict.fromkeys(prompts, ROLLOUTS)
    outcomes = rows(run / "validation/scored/1", "outcomes")
    assert {row["final_rollouts"] for row in outcomes} == {ROLLOUTS}


def test_without_the_runs_model_the_prompts_tell_the_tokenizer(
    tagged: Path, run: Path, tmp_path: Path
) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(tagged / "model"), str(tmp_path / "gone")))
    refused = scored(run, "--model", other_words(tagged, tmp_path))
    assert refused.status == 2 and "encodes the run's prompts as other tokens" in refused.last_line
    adapter = save_adapter(tagged / "model", tmp_path / "adapter")
    refused = scored(run, "--model", adapter)
    assert refused.status == 2 and "is an adapter" in refused.last_line
    assert scored(run, "--model", adapter, "--base", tagged / "model").status == 0
    ran = scored(run, "--model", tagged / "trained-5", "--name", "alone")
    assert ran.status == 0, ran.stderr


def other_words(tagged: Path, tmp_path: Path) -> Path:
    """A checkpoint in whose vocabulary two digits have changed places."""
    folder = shutil.copytree(tagged / "trained-5", tmp_path / "other-words")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    words["3"], words["4"] = words["4"], words["3"]
    file.write_text(json.dumps(tokenizer))
    return folder


# --- What it says and refuses --------------------------------------------------------------------


def test_what_makes_before_and_after_differ_is_said(tagged: Path, run: Path) -> None:
    ran = scored(run, "--model", tagged / "model", "--temperature", 0.7)
    assert ran.status == 0, ran.stderr
    assert "is the model that the run probed: these are outcomes of no training" in ran.stdout
    assert "final rollouts have temperature 0.7, the probe's 1" in ran.stdout
    assert "next: curate confirm" in ran.stdout
    confirmed = run_curate("confirm", run)
    assert "seed 1 was trained elsewhere and scored from checkpoints" in confirmed.stdout


def test_what_cannot_be_scored_is_one_line_and_costs_nothing(
    tagged: Path, run: Path, tmp_path: Path
) -> None:
    one, two = (tagged / f"trained-{seed}" for seed in (5, 6))
    copy = shutil.copytree(one, tmp_path / "copy")
    for asked, said in (
        (("--model", tmp_path / "nowhere"), "no such model"),
        (("--model", one, "--seeds", "1,2"), "--seeds names 2 seeds and --model 1 checkpoints"),
        (("--model", one, "--model", copy), f"--model {one} has the weights of {copy}"),
        (("--model", one, "--name", "a/b"), "it must be a plain name"),
        (("--model", one, "--max-tokens", 255), "do not fit into the 256 tokens of"),
        (("--model", one, "--vllm", "x"), "it must be NAME=VALUE"),
        (("--model", one, "--model", two, "--engine", "server"), "one --model at a time"),
        (("--model", one, "--engine", "server"), "--engine server needs --base-url"),
        (("--model", other_words(tagged, tmp_path)), "token '3' is 7 in it, not 6"),
    ):
        ran = scored(run, *asked)
        assert ran.status == 2 and said in ran.last_line, ran.stderr
        assert len(ran.stderr.splitlines()) == 1
    assert not (run / "validation").exists()
    assert "curate compare" in scored(run, "--model", tmp_path / "other-words").last_line


def test_outcomes_of_another_command_keep_their_name(tagged: Path, run: Path) -> None:
    folder = run / "validation/baseline/1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"state": "done", "recipe": "baseline", "seed": 1}')
    with pytest.raises(UsageError, match="is no outcome of `curate score`"):
        score(run, tagged / "trained-5", name="baseline", seeds=[2])
    score(run, tagged / "trained-5", rollouts=1)
    log = write_jsonl(run.parent / "log.jsonl", [{"item_id": "x", "step": 1, "reward": 1.0}])
    with pytest.raises(UsageError, match="is of `curate score`: give this one another name"):
        confirm(run, "scored", training=[log])
