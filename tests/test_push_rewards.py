"""`curate push --with-rewards`: what is published says how its pass rates came about."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cards.card.facts import read_run_facts
from cards.push.command import Push
from cards.push.push import _Push
from cards.push.rewards import write_rewards
from curate.run.run import Run
from curate.run.tables import PASS_RATES, ROLLOUT_TESTS, ROLLOUTS
from tests.made.published import write_published_run
from tests.tag_runs import Ran, additions, read_jsonl, run_curate, tag, write_jsonl

FIXED = ("--min-rollouts", 16, "--tau", 0.1, "--gold-prefixes", 0)
ROUNDS = ("--min-rollouts", 8, "--max-rollouts", 32, "--tau", 0.03, "--gold-prefixes", 0)
# Pass rates of several sizes, so that some are decided early; and numbers that are not 0 or 1,
# of which nothing is said where nothing was written.
REWARDS = """
def generous(completion, answer):
    last = completion.split()[-1:]
    return int(last == [answer] or (last != [] and last[0] in "0123456789"[: 12 - 3 * int(answer)]))

def length(completion, answer):
    words = completion.split()
    if not words:
        return None
    return 1.0 if words[-1] == answer else 0.1 * min(len(words), 9)
"""
TEXTS = {"completion", "completion_token_ids", "answer_found"}


@pytest.fixture(scope="module")
def inputs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset in which an item is there twice, and the model."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = additions(20)
    return write_jsonl(folder / "sums.jsonl", [*rows, rows[0]]), tiny_model


Tag = Callable[..., Path]


@pytest.fixture
def tagged(inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tag:
    """Tags the dataset; gives the run."""
    (tmp_path / "some_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, name: str = "run") -> Path:
        dataset, model = inputs
        run = tmp_path / name
        out = ("--run-dir", run, "--out", tmp_path / f"{name}.jsonl")
        ran: Ran = tag(dataset, "--model", model, *arguments, *out)
        assert ran.status == 0, ran.stderr
        return run

    return call


def prepared(run: Path, folder: Path) -> str:
    """The folder that a push prepares, as a repository; gives its card."""
    folder.mkdir()
    settings = Push(run, repo=str(folder), with_rewards=True)
    push = _Push(read_run_facts(run), settings, folder)
    push.make_files()
    push.make_card(str(folder), "")
    return (folder / "README.md").read_text()


def recomputed(card: str) -> dict[str, Any]:
    """What the lines of the card leave, where its section on rewards says how."""
    section = card.partition("### Rewards\n")[2].partition("\n### ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    if "rates" in names:
        rows = names["rates"].to_pylist()
        return {
            row["item_id"]: tuple(row[f"pass_rate{end}"] for end in ("", "_low", "_high"))
            for row in rows
        }
    triples = zip(names["pass_rate"], names["low"], names["high"], strict=True)
    return dict(zip(names["pass_rate"].index, triples, strict=True))


def assert_rederived(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """All configurations are loaded from the folder, and what is recomputed is what was tagged."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder.with_name("cache"))
    card = prepared(run, folder)
    tagged = datasets.load_dataset(str(folder))
    rewards = datasets.load_dataset(str(folder), "rewards")
    assert set(rewards) <= set(tagged)
    rates = recomputed(card)
    known = 0
    for name, split in tagged.items():
        of_split = set()
        for row in split.to_list():
            of_split.add(row["item_id"])
            expected = [row[f"pass_rate{end}"] for end in ("", "_low", "_high")]
            if expected[0] is None:
                assert row["item_id"] not in rates or rates[row["item_id"]][0] is None
                continue
            known += 1
            np.testing.assert_allclose(rates[row["item_id"]], expected, rtol=1e-9, atol=1e-12)
        if name in rewards:
            assert set(rewards[name]["item_id"]) <= of_split
    assert known > 10
    return dict(rewards)


def test_pass_rates_are_rederived_from_what_is_published(
    tagged: Tag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tagged(*FIXED)
    rewards = assert_rederived(run, tmp_path / "made", monkeypatch)
    # Every rollout of the run is there once, and nothing of what it says.
    drawn = {(row["item_id"], row["sample"]): row for row in Run.open(run).rollouts().to_pylist()}
    rows = [row for split in rewards.values() for row in split.to_list()]
    assert len(rows) == len(drawn) == 20 * 16
    for row in rows:
        assert not TEXTS & set(row)
        was = drawn[row["item_id"], row["sample"]]
        for name in ("reward", "verdict", "finish_reason", "log_probability"):
            assert row[name] == was[name]
        assert row["correct"] == (was["reward"] == 1) and row["correct"] in (True, False)
        assert row["truncated"] == (was["finish_reason"] == "length")
        assert row["tokens"] == len(was["completion_token_ids"])
    assert {row["truncated"] for row in rows} == {row["correct"] for row in rows} == {True, False}


def test_those_of_items_that_stopped_early_too(
    tagged: Tag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tagged(*ROUNDS, "--verifier", "some_rewards:generous")
    assert_rederived(run, tmp_path / "made", monkeypatch)
    counts = Run.open(run).rollouts("item_id")["item_id"].value_counts().to_pylist()
    assert len({each["counts"] for each in counts}) > 1
    # Where items stop early the share of correct ones is another number.
    rows = Run.open(run).columns(PASS_RATES, *PASS_RATES.columns).to_pylist()
    shares = [row["total_correct_rollouts"] / row["total_rollouts"] for row in rows]
    assert any(abs(row["pass_rate"] - c) > 0.01 for row, c in zip(rows, shares, strict=True))
    assert "min_rollouts=8, max_rollouts=32, tau=0.03" in (tmp_path / "made/README.md").read_text()
    # Joined from the parts of two machines it is the same.
    inputs = ("--run-dir", tmp_path / "parts", "--out", tmp_path / "parts.jsonl")
    config = tmp_path / "run/config.toml"
    for _ in range(3):
        for shard in ("1/2", "2/2"):
            ran = run_curate("tag", "--config", config, *inputs, "--shard", shard)
            assert ran.status == 0, ran.stderr
        ran = run_curate("merge", tmp_path / "parts", "--json")
        assert ran.status == 0, ran.stderr
    assert_rederived(tmp_path / "parts", tmp_path / "joined", monkeypatch)


def test_those_of_rollouts_that_were_taken_from_files_too(
    tagged: Tag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"prompt": row["question"], "completion": word, "reward": float(word == row["answer"])}
        for n, row in enumerate(additions(18))
        for word in ["1", "2", "3", row["answer"]][: 2 + n % 3]
    ]
    # Of one nothing is known, and two items have none at all.
    rows[0]["reward"] = None
    log = write_jsonl(tmp_path / "log.jsonl", rows)
    run = tagged("--rollouts", log, "--tau", 0.1)
    rewards = assert_rederived(run, tmp_path / "made", monkeypatch)
    assert sum(len(split) for split in rewards.values()) == len(rows)
    unjudged = [row for split in rewards.values() for row in split if row["correct"] is None]
    assert [row["reward"] for row in unjudged] == [None]


def test_rewards_that_are_other_numbers_stay_what_they_are(
    tagged: Tag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tagged(*FIXED, "--verifier", "some_rewards:length")
    rewards = assert_rederived(run, tmp_path / "made", monkeypatch)
    rows = [row for split in rewards.values() for row in split]
    assert {0.1, 1.0} < {row["reward"] for row in rows}
    assert {row["correct"] for row in rows if row["reward"] == 0.1} == {False}
    means = {row["item_id"]: row["reward_mean"] for row in read_jsonl(tmp_path / "run.jsonl")}
    for item_id, mean in means.items():
        own = [row["reward"] for row in rows if row["item_id"] == item_id]
        assert np.mean([each for each in own if each is not None]) == pytest.approx(mean)


def test_a_run_of_an_earlier_version_has_what_it_has(tmp_path: Path) -> None:
    run = write_published_run(tmp_path)
    file = ROLLOUTS.path(run, 0)
    pq.write_table(pq.read_table(file).drop_columns("log_probability"), file)
    paths = write_rewards(Run.open(run), tmp_path / "made", shard_bytes=1)
    tables = [pq.read_table(tmp_path / "made" / path) for path in paths]
    assert len({str(table.schema) for table in tables}) == 1
    found = pa.concat_tables(tables)
    assert len(found) == 7 and found["log_probability"].null_count == 7
    # Nothing tells how long they were, nor how they ended.
    assert found["correct"].null_count == found["truncated"].null_count == 7


def test_of_programs_it_has_how_many_tests_they_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_published_run(tmp_path)
    file = ROLLOUTS.path(run, 0)
    table = pq.read_table(file)
    for name in ROLLOUT_TESTS:
        table = table.append_column(name, pa.array(range(len(table)), pa.int32()))
    pq.write_table(table, file)
    card = prepared(run, tmp_path / "made")
    assert "| `tests_passed`, `tests_total` | of a program" in card
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rewards = datasets.load_dataset(str(tmp_path / "made"), "rewards")
    passed = [count for split in rewards.values() for count in split["tests_passed"]]
    assert passed == [*range(7)]
