"""`curate confirm` on a tagged run of the tiny model, with outcomes that the tests write."""

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from curate import confirm as confirm_function
from curate.errors import UsageError
from curate.run.tables import HELD_OUT, OUTCOMES, REWARDS
from curate.tagged.fill import set_columns
from probes.models.load import Policy
from recipes.confirm.embedding import embed_prompts, semantic_similarity
from tests.tag_runs import Ran, additions, run_curate, tag, write_jsonl

TAU = 0.05
SEEDS = (1, 37, 42)
# What the seeds make of the hard items, in turn: final rates, positive in training, tag.
FATES: list[tuple[tuple[float, ...], tuple[bool, ...], str]] = [
    ((0.0, 0.03125, 0.0), (True, True, True), "unlearnable"),
    ((0.5, 0.25, 1.0), (True, True, True), "learnable"),
    ((0.0, 0.25, 0.0), (True, True, True), "undetermined"),
]


@dataclass(frozen=True)
class Run:
    folder: Path
    out: Path

    @property
    def validation(self) -> Path:
        return self.folder / "validation"

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.validation / "summary.json").read_text())
        return found

    def table(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(self.folder / f"{name}.parquet").to_pylist()
        return rows

    def confirm(self, *arguments: object) -> Ran:
        return run_curate("confirm", self.folder, *arguments)


@pytest.fixture(scope="module")
def tagged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that tests copy; two of its rows are one item, one is rejected."""
    folder = tmp_path_factory.mktemp("tagged")
    rows: list[dict[str, str] | str] = [*additions(20), additions(1)[0], '{"question": "what']
    rows.append('{"question": "what is 9 ?",  "answer": "9", "x": 1e5}')
    dataset = write_jsonl(folder / "sums.jsonl", rows)
    out, run = folder / "sums.tagged.jsonl", folder / "run"
    ran = tag(dataset, "--model", tiny_model, "--out", out, "--run-dir", run)
    assert ran.status == 0, ran.stderr
    return Run(run, out)


@pytest.fixture
def run(tagged: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run in a folder of its own, validated with three seeds; its tagged file is beside it."""
    shutil.copytree(tagged.folder, tmp_path / "run")
    shutil.copy(tagged.out, tmp_path / "sums.tagged.jsonl")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(tagged.out), str(tmp_path / tagged.out.name)))
    copied = Run(tmp_path / "run", tmp_path / "sums.tagged.jsonl")
    write_outcomes(copied)
    return copied


def fates(run: Run) -> dict[str, tuple[tuple[float, ...], tuple[bool, ...], str]]:
    """What becomes of each item: final rates, positive in training, and the tag that follows."""
    found, hard = {}, 0
    for row in run.table("pass_rates"):
        item_id, correct = row["item_id"], row["total_correct_rollouts"]
        if correct / row["total_rollouts"] >= TAU:
            found[item_id] = ((1.0,) * 3, (True,) * 3, "easy")
        elif correct == 0:
            # Two seeds see a correct rollout and one does not: the union.
            found[item_id] = ((0.0,) * 3, (True, False, True), "no_positive")
        else:
            found[item_id] = FATES[hard % 3]
            hard += 1
    assert {fate[-1] for fate in found.values()} == {
        *("easy", "no_positive", "unlearnable", "learnable", "undetermined")
    }
    return found


def write_outcomes(run: Run, recipe: str = "baseline-small", **changes: object) -> None:
    """Write what three finished seeds leave; `changes` replace values in every row."""
    rates, by_item = run.table("pass_rates"), fates(run)
    for place, seed in enumerate(SEEDS):
        rows = []
        # Not in the order of the run: items are found by their id.
        for row in reversed(rates):
            final, in_training, _ = by_item[row["item_id"]]
            n, c = row["total_rollouts"], row["total_correct_rollouts"]
            rows.append(
                {
                    "item_id": row["item_id"],
                    "initial_pass_rate": row["pass_rate"],
                    "initial_rollouts": n,
                    "initial_correct": c,
                    "final_pass_rate": final[place],
                    "final_rollouts": 32,
                    "final_correct": round(32 * final[place]),
                    "positive_in_training": in_training[place],
                    "ever_positive": in_training[place] or c > 0,
                    "visits": 2,
                }
                | changes
            )
        write_seed(run, recipe, seed, pa.Table.from_pylist(rows, OUTCOMES.schema))


def rewards_of(outcomes: pa.Table) -> pa.Table:
    """Two steps in which every item has a group of 8, rewarded as before and after training."""
    rows = [
        {
            "step": step, "item_id": row["item_id"], "rollouts": 8, "mean_reward": row[rate],
            "truncated_fraction": 0.0, "clipped_fraction": 0.01 * step, "trained": True,
        }
        for step, rate in ((1, "initial_pass_rate"), (2, "final_pass_rate"))
        for row in outcomes.to_pylist()
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, REWARDS.schema)


def write_seed(run: Run, recipe: str, seed: int, table: pa.Table, state: str = "done") -> Path:
    folder = run.validation / recipe / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "outcomes.parquet")
    pq.write_table(rewards_of(table), folder / "rewards.parquet")
    (folder.parent / "recipe.toml").write_text('hypothesis = "it helps"\n')
    facts: dict[str, Any] = {"state": state, "recipe": recipe, "seed": seed, "device": "CPU"}
    facts["seconds"] = {"training": 1.0, "evaluation": 0.5}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def test_training_is_followed_by_confirmed_tag(run: Run) -> None:
    ran = run.confirm("--json")
    (found,) = json.loads(ran.stdout)["dynamics"]
    assert found["recipe"] == "baseline-small" and found["seeds"] == list(SEEDS)
    groups = {group["group"]: group for group in found["groups"]}
    for name, after in (("easy", 1.0), ("learnable", 1.75 / 3), ("no_positive", 0.0)):
        assert groups[name]["mean_reward"][-1] == pytest.approx(after, abs=1e-6)
        assert groups[name]["clipped_fraction"] == [0.01, 0.02]
    assert "1.500% (" in run.confirm().stdout
    # The outcomes are told also where the logs are gone.
    (run.validation / "baseline-small/1/rewards.parquet").unlink()
    ran = run.confirm()
    assert ran.status == 0 and "note: no rewards in training: " in ran.stdout
    assert run.summary["dynamics"] is None and run.summary["confirmed"]["learnable"]


def outcome_file(run: Run, seed: int = 1) -> Path:
    return run.validation / "baseline-small" / str(seed) / "outcomes.parquet"


def files_of(run: Run) -> Mapping[Path, bytes]:
    paths = [run.out, *sorted(run.folder.rglob("*"))]
    return {path: path.read_bytes() for path in paths if path.is_file()}


# --- What it writes --------------------------------------------------------------------------


def test_confirmed_tags_are_the_partition_over_the_seeds(run: Run) -> None:
    ran = run.confirm()
    assert ran.status == 0, ran.stderr
    rows = run.table("validation/confirmed")
    assert [row["item_id"] for row in rows] == [row["item_id"] for row in run.table("items")]
    by_item, predicted = fates(run), run.table("tags")
    for row, tags in zip(rows, predicted, strict=True):
        final, _, tag_of = by_item[row["item_id"]]
        assert row["confirmed_trainability"] == tag_of
        assert row["final_pass_rates"] == list(final)
        assert row["final_pass_rate"] == pytest.approx(sum(final) / 3)
        assert (row["trainability"], row["p_unlearnable"]) == (
            tags["trainability"],
            tags["p_unlearnable"],
        )


def test_the_tagged_file_gets_the_one_column_and_keeps_every_other_byte(run: Run) -> None:
    before = run.out.read_text().splitlines()
    assert run.confirm().status == 0
    after = run.out.read_text().splitlines()
    by_item = fates(run)
    for old, new in zip(before, after, strict=True):
        fate = by_item.get(json.loads(old)["item_id"])
        value = "null" if fate is None else f'"{fate[-1]}"'
        assert old.endswith('"confirmed_trainability": null}')
        assert new == old.removesuffix("null}") + value + "}"
    confirmed = [json.loads(line)["confirmed_trainability"] for line in after]
    assert confirmed[0] == confirmed[20]  # The same item in two rows.
    assert confirmed[21] is None  # Rejected.


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json"])
def test_other_formats_keep_every_other_value_too(
    run: Run, tagged: Run, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"again.{suffix}"
    config = tagged.folder / "config.toml"
    shutil.rmtree(run.validation)
    # The run is finished: the command only writes the tagged file, in another format.
    ran = run_curate("tag", "--config", config, "--run-dir", run.folder, "--out", out)
    assert ran.status == 0, ran.stderr
    write_outcomes(run)
    before, text = read_columns(out), out.read_bytes()
    assert run.confirm().status == 0
    after = read_columns(out)
    assert list(after) == list(before)
    confirmed, empty = after.pop("confirmed_trainability"), before.pop("confirmed_trainability")
    assert after == before
    by_item = fates(run)
    wanted = [by_item[i][-1] if i else None for i in after["item_id"]]
    assert [value or None for value in confirmed] == wanted
    assert not any(empty)
    if suffix == "parquet":
        schema = pq.read_schema(out)
        assert schema.field("confirmed_trainability").type == pa.string()
    # Filled with nulls again it is the file of before, byte for byte.
    fill_column(out, "confirmed_trainability", [(i or None, None) for i in after["item_id"]])
    assert suffix == "parquet" or out.read_bytes() == text
    assert read_columns(out) == before | {"confirmed_trainability": empty}


def fill_column(path: Path, name: str, rows: list[tuple[str | None, str | None]]) -> None:
    values = [(item_id, {name: value}) for item_id, value in rows]
    set_columns(path, pa.schema([(name, pa.string())]), values)


def read_columns(path: Path) -> dict[str, list[Any]]:
    if path.suffix == ".parquet":
        columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
        return columns
    if path.suffix == ".json":
        return pa.Table.from_pylist(json.loads(path.read_text())).to_pydict()
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def test_the_same_command_again_gives_the_same_files(run: Run) -> None:
    assert run.confirm().status == 0
    first = files_of(run)
    assert run.confirm().status == 0
    assert files_of(run) == first


def test_tagging_again_keeps_what_was_confirmed(run: Run, tagged: Run) -> None:
    assert run.confirm().status == 0
    filled = run.out.read_bytes()
    config = tagged.folder / "config.toml"
    ran = run_curate("tag", "--config", config, "--run-dir", run.folder, "--out", run.out)
    assert ran.status == 0, ran.stderr
    assert run.out.read_bytes() == filled


def predict_what_comes(run: Run) -> list[float | None]:
    """Make p_unlearnable right for all but one item, which has none; return it, item by item."""
    by_item = fates(run)
    tags = pq.read_table(run.folder / "tags.parquet")
    p: list[float | None] = [
        {"unlearnable": 0.9, "learnable": 0.2}.get(by_item[item_id][-1])
        for item_id in tags["item_id"].to_pylist()
    ]
    first = next(i for i, value in enumerate(p) if value == 0.9)
    p[first] = None  # Not predicted: left out, and counted.
    write_predictions(run, p)
    return p


def write_predictions(run: Run, p: list[float | None]) -> None:
    tags = pq.read_table(run.folder / "tags.parquet")
    place = tags.schema.get_field_index("p_unlearnable")
    pq.write_table(
        tags.set_column(place, "p_unlearnable", pa.array(p, pa.float64())),
        run.folder / "tags.parquet",
    )


# --- The summary -----------------------------------------------------------------------------


def test_the_summary_has_the_figures_that_follow_from_the_outcomes(run: Run) -> None:
    summary = confirm_function(run.folder)
    assert summary == run.summary
    by_item = fates(run)
    tags = [fate[-1] for fate in by_item.values()]
    assert summary["seeds"] == list(SEEDS)
    assert (summary["recipe"], summary["seconds"], summary["device"]) == (
        *("baseline-small", 4.5, "CPU"),
    )
    assert summary["confirmed"]["easy"] == tags.count("easy")
    hard = len(tags) - tags.count("easy")
    table = summary["table1"]
    assert table["hard_items"] == summary["hard_items"] == hard
    for kind, tag_of in [
        ("unlearnable", "unlearnable"),
        ("learnable", "learnable"),
        ("no_positive", "no_positive"),
        ("seeds_disagree", "undetermined"),
    ]:
        assert table[kind]["items"] == tags.count(tag_of)
        assert table[kind]["share"] == tags.count(tag_of) / hard
    assert sum(map(sum, (row.values() for row in summary["confusion"].values()))) == len(tags)
    # The tiny model's few items support nothing, and the summary says so.
    assert "Too few items for a claim" in summary["too_few"]
    assert summary["interventions"] is None and summary["payoff"] is None


def test_predictions_that_came_true_have_auroc_1(run: Run) -> None:
    p = predict_what_comes(run)
    summary = confirm_function(run.folder)
    agreement = summary["agreement"]
    assert agreement["left_out"] == 1
    assert agreement["unlearnable"] == p.count(0.9)
    assert agreement["learnable"] == p.count(0.2)
    assert summary["auroc"] == 1
    scores = agreement["scores"]
    assert set(scores) == {"p_unlearnable", "pass_rate", "semantic_similarity"}
    assert summary["auroc_pass_rate"] == scores["pass_rate"]["auroc"]
    assert summary["auroc_semantic"] == scores["semantic_similarity"]["auroc"]
    difference = scores["semantic_similarity"]["auroc_difference"]
    assert difference == pytest.approx(1 - summary["auroc_semantic"])
    # Fewer than 20 items are one bin: mean predicted against the share that came true.
    true, false = p.count(0.9), p.count(0.2)
    error = abs(0.9 * true + 0.2 * false - true) / (true + false)
    assert summary["expected_calibration_error"] == pytest.approx(error)


def test_the_terminal_shows_every_table(run: Run) -> None:
    write_predictions(run, [None] * len(fates(run)))
    assert "pass rate alone" not in run.confirm().stdout
    predict_what_comes(run)
    shown = run.confirm().stdout
    summary = run.summary
    assert "confirmed by recipe baseline-small, seeds 1, 37, 42" in shown
    assert f"hard items: {summary['hard_items']} of {summary['items']}" in shown
    for words in (
        *("no positive reward", "seeds disagree", "predicted (rows) against confirmed"),
        *("pass rate alone", "semantic similarity", "calibration error", "0.30"),
        summary["too_few"],
    ):
        assert words in shown
    assert json.loads(run.confirm("--json").stdout) == summary


def test_unfinished_seeds_are_left_out_and_named(run: Run) -> None:
    table = pq.read_table(outcome_file(run))
    write_seed(run, "baseline-small", 7, table, state="started")
    ran = run.confirm()
    assert "not finished, so left out: baseline-small seed 7" in ran.stdout
    assert run.summary["seeds"] == list(SEEDS)
    assert run.summary["seeds_unfinished"] == [7]


def test_hard_items_that_were_not_trained_on_are_said(run: Run) -> None:
    write_outcomes(run, visits=0)
    summary = confirm_function(run.folder)
    hard = summary["hard_items"]
    assert any(f"{hard} of {hard} hard items were not trained on" in n for n in summary["notes"])


def test_final_rates_that_could_not_be_judged_are_null(run: Run) -> None:
    write_outcomes(run, final_pass_rate=None)
    summary = confirm_function(run.folder)
    rows = run.table("validation/confirmed")
    assert rows[0]["final_pass_rates"] == [None] * 3 and rows[0]["final_pass_rate"] is None
    assert summary["table1"]["not_judged"]["items"] > 0
    assert summary["agreement_all"]["learnable"] == summary["agreement_all"]["unlearnable"] == 0


def test_other_recipes_and_what_curation_pays_are_told_where_they_have_run(run: Run) -> None:
    write_outcomes(run, "no-kl-small", final_pass_rate=1.0)
    held_out = [
        {"step": step, "rollouts": 1000 * step, "item_id": "a"}
        | {"total_rollouts": 10, "total_correct_rollouts": 4 * step}
        for step in (0, 1)
    ]
    for seed in SEEDS:
        folder = run.validation / "baseline-small" / str(seed)
        copied = shutil.copytree(folder, run.validation / "full-small" / str(seed))
        (copied.parent / "recipe.toml").write_text('hypothesis = "all items"\n')
        table = pa.Table.from_pylist(held_out, HELD_OUT.schema)
        pq.write_table(table, copied / "held_out.parquet")
    shown = run.confirm().stdout
    interventions, payoff = run.summary["interventions"], run.summary["payoff"]
    assert interventions["baseline"] == "baseline-small"
    assert [row["recipe"] for row in interventions["recipes"]] == ["no-kl-small"]
    group = interventions["recipes"][0]["groups"]["unlearnable"]
    assert group["confirmed_items"] == run.summary["confirmed"]["unlearnable"]
    assert group["pass_rate"] == 1.0
    assert payoff["target"]["value"] == pytest.approx(0.4)
    assert "no-kl-small: it helps" in shown
    assert "1 held-out items that no run trained on" in shown


# --- Which recipe ----------------------------------------------------------------------------


def test_the_baseline_confirms_unless_another_recipe_is_named(run: Run) -> None:
    write_outcomes(run, "clip-higher")
    assert confirm_function(run.folder)["recipe"] == "baseline-small"
    write_outcomes(run, "baseline")
    assert confirm_function(run.folder)["recipe"] == "baseline"
    assert confirm_function(run.folder, "clip-higher")["recipe"] == "clip-higher"
    assert confirm_function(run.folder, "recipes/clip-higher.toml")["recipe"] == "clip-higher"
    shutil.rmtree(run.validation / "baseline")
    shutil.rmtree(run.validation / "baseline-small")
    assert confirm_function(run.folder)["recipe"] == "clip-higher"
    write_outcomes(run, "no-kl")
    with pytest.raises(UsageError, match="clip-higher, no-kl: choose one with --recipe"):
        confirm_function(run.folder)
    with pytest.raises(UsageError, match="did you mean 'no-kl'"):
        confirm_function(run.folder, "no-klx")


# --- What is wrong is one line ---------------------------------------------------------------


def test_a_run_that_cannot_be_confirmed_is_one_line(run: Run, tmp_path: Path) -> None:
    def refused(status: int, words: str, *arguments: object) -> None:
        ran = run.confirm(*arguments)
        assert (ran.status, ran.stdout) == (status, "")
        assert words in ran.last_line and "Traceback" not in ran.stderr
        assert not (run.validation / "confirmed.parquet").exists()

    ran = run_curate("confirm", tmp_path)
    assert ran.status == 2 and "is no run folder" in ran.last_line
    refused(2, "no outcomes of 'nothing'", "--recipe", "nothing")

    good = pq.read_table(outcome_file(run))
    for bad in (good.slice(1), pa.concat_tables([good, good.slice(0, 1)])):
        pq.write_table(bad, outcome_file(run))
        refused(2, "outcomes of other items")
    pq.write_table(good.drop_columns("ever_positive"), outcome_file(run))
    refused(1, "has no column ever_positive")
    outcome_file(run).write_bytes(b"PAR1 damaged")
    refused(1, "is missing or damaged")
    outcome_file(run).unlink()
    refused(1, "is missing or damaged")
    pq.write_table(good, outcome_file(run))

    (outcome_file(run).parent / "run.json").write_text("{")
    refused(1, "run.json is damaged")
    for seed in SEEDS:
        write_seed(run, "baseline-small", seed, good, state="started")
    refused(2, "no finished seed, only 1, 37, 42 started")
    shutil.rmtree(run.validation / "baseline-small")
    refused(2, "no validation yet")


def test_without_its_own_tagged_file_the_rest_is_written(run: Run) -> None:
    text = run.out.read_text()
    shorter = text[: text.rindex("\n", 0, -1) + 1]
    other = text.replace('"item_id": "', '"item_id": "0', 1)
    plain = '{"question": "what"}\n'
    for content, words in [
        (shorter, "it has 22 rows, not 23"),
        (other, "its row 1 is another item"),
        (text + text, "its row 24 is another item"),
        (plain, "no column item_id"),
        (None, "no such file"),
    ]:
        if content is None:
            run.out.unlink()
        else:
            run.out.write_text(content)
        ran = run.confirm()
        assert ran.status == 0
        (note,) = [line for line in ran.stdout.splitlines() if "was not filled in" in line]
        assert words in note
        assert content is None or run.out.read_text() == content
        assert run.table("validation/confirmed")
    assert [path.name for path in run.out.parent.iterdir()] == ["run"]


def test_without_the_model_there_is_no_semantic_baseline(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = confirm_function(run.folder)["agreement"]["scores"]
    assert "semantic_similarity" in kept
    config = run.folder / "config.toml"
    config.write_text(config.read_text().replace("tiny-llama", "gone"))
    # What was computed once is used again.
    assert confirm_function(run.folder)["agreement"]["scores"] == kept
    (run.validation / "prompt_embeddings.npy").write_bytes(b"damaged")
    summary = confirm_function(run.folder)
    assert summary["auroc_semantic"] is None
    assert "semantic_similarity" not in summary["agreement"]["scores"]
    (note,) = summary["notes"]
    assert note.startswith("no semantic similarity: no such model")


# --- Semantic similarity ---------------------------------------------------------------------


def test_an_embedding_is_the_mean_last_hidden_state_whatever_the_batch(tiny_policy: Policy) -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 18, length).tolist() for length in (5, 1, 9, 3, 9, 2)]
    batched = embed_prompts(tiny_policy, prompts)
    assert batched.shape == (6, 32)
    np.testing.assert_allclose(
        batched, embed_prompts(tiny_policy, prompts, batch_tokens=1), atol=1e-5
    )
    for prompt, embedding in zip(prompts, batched, strict=True):
        with torch.no_grad():
            states = tiny_policy.model(torch.tensor([prompt]), output_hidden_states=True)
        mean = states.hidden_states[-1][0].mean(dim=0)
        np.testing.assert_allclose(embedding, mean.numpy(), atol=1e-5)


def test_semantic_similarity_is_the_mean_cosine_to_the_nearest_easy_items() -> None:
    # Around their mean (1, 1): hard 0 at (1, 0), easy 1 to 3 at (1, 0), (0, 1), (-1, -1), hard 4 at
    # (-1, 0).
    places = np.array([[1, 0], [1, 0], [0, 1], [-1, -1], [-1, 0]], dtype=np.float32)
    embeddings = places - places.mean(axis=0) + 1
    centred = embeddings - 1
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    hard, easy = np.array([0, 4]), np.array([1, 2, 3])
    cosines = np.sort(units[hard] @ units[easy].T, axis=1)
    for neighbours in (1, 2, 3, 5):
        wanted = cosines[:, -neighbours:].mean(axis=1)
        found = semantic_similarity(embeddings, hard, easy, neighbours)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.isnan(semantic_similarity(embeddings, hard, np.empty(0, dtype=np.int64))).all()


# --- Filling in a column ---------------------------------------------------------------------


def test_a_filled_json_row_keeps_the_text_around_the_value(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{ "confirmed_trainability" :  "old" ,"x":1e5, "item_id": "a", "n": NaN}\n'
        '{"item_id": null, "x": {"confirmed_trainability": 1}, "confirmed_trainability": null}\n'
    )
    fill_column(path, "confirmed_trainability", [("a", "easy"), (None, None)])
    assert path.read_text() == (
        '{ "confirmed_trainability" :  "easy" ,"x":1e5, "item_id": "a", "n": NaN}\n'
        '{"item_id": null, "x": {"confirmed_trainability": 1}, "confirmed_trainability": null}\n'
    )


def test_filled_parquet_keeps_row_groups_metadata_and_place(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    # Some programs give a column of nothing but nulls the type null.
    schema = pa.schema(
        [("confirmed_trainability", pa.null()), ("item_id", pa.string()), ("n", pa.int16())],
        metadata={"made_by": "test"},
    )
    columns = [pa.nulls(5), pa.array(list("abcde")), pa.array(range(5), pa.int16())]
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=2)
    fill_column(path, "confirmed_trainability", [(i, i + i) for i in "abcde"])
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 3
    assert file.schema_arrow.metadata[b"made_by"] == b"test"
    assert file.schema_arrow.names == schema.names
    assert file.read()["confirmed_trainability"].to_pylist() == ["aa", "bb", "cc", "dd", "ee"]
    assert file.read()["n"].to_pylist() == list(range(5))


def test_a_row_without_the_column_stops_the_filling(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"item_id": "a", "d": 1}, {"item_id": "b"}])
    text = path.read_text()
    with pytest.raises(UsageError, match="row 2 has no d"):
        fill_column(path, "d", [("a", "x"), ("b", "y")])
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
