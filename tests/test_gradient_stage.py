"""Which rollouts are differentiated, and that wrong ones stand beside the correct ones."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.config import TagConfig
from curate.errors import RunError
from curate.run.features import joined
from curate.run.folder import open_run
from curate.run.rollouts import item_rows
from curate.run.run import Run
from probes.engines.choose import LoadedModel
from probes.gradients.batch import TokenizedRollout
from probes.gradients.tap import Adapter
from probes.models.files import resolve_model
from probes.stages.gradients import GradientShard, differentiate, gathered, join
from tests.tag_runs import additions, read_rollouts, run_curate, tag, write_jsonl

# The defaults, and all wrong rollouts but for those of items that are seldom right.
MOST, MOST_WRONG, MANY = 16, 4, 150
# Completions are short, so that some come again. Only what stops by itself is judged.
JUDGE = """
def judge(completion, answer):
    if completion == "is":
        raise LookupError("no idea")
    return int(bool(completion) and answer in ("anything", completion))
"""
ANSWERS = [*5 * ["anything"], "1", "6", "nothing"]


def tagged(folder: Path, model: Path, name: str, *more: object) -> Path:
    """A run of items of which some are easy, some rarely right, and one never."""
    (folder / "rewards.py").write_text(JUDGE)
    rows = [row | {"answer": answer} for row, answer in zip(additions(8), ANSWERS, strict=True)]
    data = write_jsonl(folder / "sums.jsonl", rows)
    ran = tag(
        *(data, "--model", model, "--run-dir", folder / name, "--out", folder / f"{name}.jsonl"),
        *(
            "--verifier",
            "rewards:judge",
            "--max-tokens",
            4,
            "--min-rollouts",
            128,
            "--tau",
            0.03,
            *more,
        ),
    )
    assert ran.status == 0, ran.stderr
    return folder / name


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs by how many wrong rollouts of an item are differentiated: `one`, `four`, `many`."""
    made = tmp_path_factory.mktemp("wrong")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        tagged(made, tiny_model, "four")
        tagged(made, tiny_model, "one", "--gradient-wrong-rollouts", 1)
        tagged(made, tiny_model, "many", "--gradient-wrong-rollouts", MANY)
    return made


def expected_draws(run: Path, most_wrong: int) -> Counter[tuple[str, tuple[int, ...], int]]:
    """How often each (item, completion, reward) is among an item's first rollouts."""
    by_item: dict[str, list[dict[str, Any]]] = {}
    for rollout in read_rollouts(run).to_pylist():
        by_item.setdefault(rollout["item_id"], []).append(rollout)
    counts: Counter[tuple[str, tuple[int, ...], int]] = Counter()
    for item_id, own in by_item.items():
        right, wrong = ([r for r in own if r["reward"] == reward] for reward in (1, 0))
        for rollout in right[:MOST] + (wrong[:most_wrong] if right else []):
            counts[item_id, tuple(rollout["completion_token_ids"]), rollout["reward"]] += 1
    return counts


@pytest.mark.parametrize(("name", "most_wrong"), [("four", MOST_WRONG), ("one", 1), ("many", MANY)])
def test_the_first_rollouts_of_each_kind_are_differentiated(
    folder: Path, name: str, most_wrong: int
) -> None:
    run = folder / name
    rollouts = {(r["item_id"], r["sample"]): r for r in read_rollouts(run).to_pylist()}
    wanted = expected_draws(run, most_wrong)
    draws = pq.read_table(run / "gradients/rollouts.parquet").to_pylist()
    found = {}
    for draw in draws:
        ids = rollouts[draw["item_id"], draw["sample"]]["completion_token_ids"]
        found[draw["item_id"], tuple(ids), draw["reward"]] = draw["weight"]
        assert draw["completion_tokens"] == len(ids) < draw["tokens"]
    assert found == wanted and len(draws) == len(wanted)
    # The run has what there is to see: cut and unjudged ones, repeated wrong ones where many are
    # taken, and items that are never right.
    reasons = {(r["reward"], r["finish_reason"]) for r in rollouts.values()}
    assert {(0, "length"), (0, "stop"), (None, "stop")} <= reasons
    wrong = [draw for draw in draws if not draw["reward"]]
    assert any(
        rollouts[draw["item_id"], draw["sample"]]["finish_reason"] == "length" for draw in wrong
    )
    assert (max(draw["weight"] for draw in wrong) > 1) or name != "many"
    never = {r["item_id"] for r in rollouts.values()} - {
        r["item_id"] for r in rollouts.values() if r["reward"] == 1
    }
    assert never and not never & {draw["item_id"] for draw in draws}
    counts = json.loads((run / "manifest.json").read_text())["stages"]["gradients"]
    assert counts["rollouts_differentiated"] == len(draws)
    assert counts["wrong_rollouts_differentiated"] == len(wrong)
    assert counts["rollouts_this_time"] == sum(wanted.values())


def test_wrong_rollouts_change_the_lift_and_nothing_else_that_is_measured(folder: Path) -> None:
    names = ("one", "four", "many")
    for table in ("similarity", "pass_rates", "gradients/index"):
        first, *others = (pq.read_table(folder / name / f"{table}.parquet") for name in names)
        assert all(other.equals(first) for other in others), table
    similar = pq.read_table(folder / "one/similarity.parquet")
    assert similar["gradient_similarity"].null_count < 4
    features = [(folder / name / "gradients/features.npy").read_bytes() for name in names]
    assert len(set(features)) == 1
    # What is wrong is what the right ones are set against in a step of GRPO.
    units = {json.loads((folder / name / "lift.json").read_text())["unit"] for name in names}
    assert len(units) == 3


def test_the_features_are_those_of_the_probe(folder: Path, tiny_model: Path) -> None:
    run = folder / "four"
    prompts = {
        item["item_id"]: item["prompt_token_ids"]
        for item in pq.read_table(run / "items.parquet").to_pylist()
    }
    completions = {
        (r["item_id"], r["sample"]): r["completion_token_ids"]
        for r in read_rollouts(run).to_pylist()
    }
    draws = pq.read_table(run / "gradients/rollouts.parquet").to_pylist()
    rollouts = [
        TokenizedRollout(prompts[d["item_id"]], completions[d["item_id"], d["sample"]])
        for d in draws
    ]
    config = TagConfig(gradient_dim=256)
    probe = LoadedModel(config, resolve_model(str(tiny_model))).probe(Adapter.from_config(config))
    features = np.load(run / "gradients/rollouts.npy")
    assert {draw["reward"] for draw in draws} == {0, 1}
    for positions, expected in probe.gradients(rollouts):
        for place, row in zip(positions, expected, strict=True):
            # In bfloat16 the batch moves the last digits.
            error = np.linalg.norm(features[place] - row) / np.linalg.norm(row)
            assert error < (1e-4 if probe.policy.model.dtype.itemsize == 4 else 0.1)


def test_what_is_joined_can_be_read_in_parts(folder: Path) -> None:
    run = folder / "four"
    ids = pq.read_table(run / "items.parquet")["item_id"].to_pylist()
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    every, table = joined(run, row_of), pq.read_table(run / "gradients/rollouts.parquet")
    lengths = table["completion_tokens"].to_numpy()
    for part, reward in ((every.correct, 1), (every.wrong, 0)):
        own = table["reward"].to_numpy() == reward
        np.testing.assert_array_equal(part.features, every.features[own])
        np.testing.assert_array_equal(part.item, item_rows(table, row_of)[own])
        np.testing.assert_array_equal(part.weights, table["weight"].to_numpy()[own])
        np.testing.assert_array_equal(part.lengths(), lengths[own])
        assert (part.reward == reward).all() and own.any()
        assert np.shares_memory(part.features, every.features)
        assert (np.diff(part.item) >= 0).all()


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Callable[[pa.Table], Path]:
    """A copy of the run `four` with another table of rollouts."""

    def put(table: pa.Table) -> Path:
        run = tmp_path / "run"
        shutil.copytree(folder / "four", run)
        pq.write_table(table, run / "gradients/rollouts.parquet")
        features = np.load(run / "gradients/rollouts.npy")[: table.num_rows]
        np.save(run / "gradients/rollouts.npy", features)
        return run

    return put


def rows_of(run: Path) -> dict[str, int]:
    ids = pq.read_table(run / "items.parquet")["item_id"].to_pylist()
    return {item_id: row for row, item_id in enumerate(ids)}


def test_a_run_of_an_earlier_version_is_read(
    folder: Path, copied: Callable[[pa.Table], Path]
) -> None:
    table = pq.read_table(folder / "four/gradients/rollouts.parquet")
    table = table.slice(0, int(table["reward"].to_numpy().sum()))
    run = copied(table.drop_columns(["reward", "completion_tokens"]))
    found = joined(run, rows_of(run))
    assert (found.reward == 1).all() and len(found.correct.item) == table.num_rows
    assert len(found.wrong.item) == 0
    with pytest.raises(RunError, match="earlier version of curate, has no completion_tokens"):
        found.lengths()
    ran = run_curate("report", run, "--out", run / "report.html")
    assert ran.status == 0, ran.stderr
    features, whole = (Run.open(each).features() for each in (run, folder / "four"))
    assert features is not None and whole is not None
    np.testing.assert_array_equal(features.features, whole.features)


def test_correct_rollouts_after_wrong_ones_are_damage(
    folder: Path, copied: Callable[[pa.Table], Path]
) -> None:
    table = pq.read_table(folder / "four/gradients/rollouts.parquet")
    run = copied(table.take(pa.array(range(table.num_rows - 1, -1, -1))))
    with pytest.raises(RunError, match=r"rollouts\.parquet is damaged: correct rollouts after"):
        joined(run, rows_of(run))


# --- Over several files ------------------------------------------------------------------------

ROW_OF = {"a": 0, "b": 1, "c": 2}
ITEMS = pa.table({"item_id": list(ROW_OF), "prompt_token_ids": [[3], [4], [5]]})
# A file's rollouts: item, completion, reward. `a` is right from the start, `b` in the second file,
# `c` never; one completion of `a` was judged now so, now so.
FILES: list[list[tuple[str, Sequence[int], int | None]]] = [
    [
        *(("a", [6], 0), ("a", [7], 1), ("a", [8], None), ("a", [7], 1), ("a", [6], 0)),
        *(("b", [6], 0), ("b", [6, 7], 0)),
    ],
    [
        *(("a", [6], 0), ("a", [9], 0), ("a", [7], 0), ("a", [7], 1)),
        *(("b", [6, 9], 0), ("b", [6], 0), ("b", [7], 1), ("c", [6], 0)),
    ],
    [("b", [6, 9], 0), ("b", [9, 9], 0), ("b", [9], 0), ("c", [7], 0), ("a", [7], 1)],
]
# Of the first three correct and the first four wrong rollouts: (item, completion, reward): weight.
CHOSEN = {
    ("a", (7,), 1): 3,
    ("b", (7,), 1): 1,
    ("a", (6,), 0): 3,
    ("a", (9,), 0): 1,
    ("b", (6, 9), 0): 2,
    ("b", (6,), 0): 1,
    ("b", (9, 9), 0): 1,
}


@dataclass
class Files:
    """A run folder whose files of rollouts come one after the other."""

    path: Path
    asked: list[tuple[int, list[tuple[tuple[int, ...], int]]]]
    fits: int = 1000  # tokens of prompt and completion

    def __post_init__(self) -> None:
        self.samples: Counter[str] = Counter()
        self.completions: dict[tuple[str, int], tuple[int, ...]] = {}
        self.run = open_run(self.path, TagConfig(), {})
        (self.path / "rollouts").mkdir()

    def add(self, number: int) -> None:
        rows = []
        for item_id, completion, reward in FILES[number]:
            sample = self.samples[item_id]
            self.samples[item_id] += 1
            self.completions[item_id, sample] = tuple(completion)
            rows.append((item_id, sample, list(completion), reward))
        item_ids, samples, completions, rewards = zip(*rows, strict=True)
        table = pa.table(
            {
                "item_id": item_ids,
                "sample": pa.array(samples, pa.int32()),
                "completion_token_ids": pa.array(completions, pa.list_(pa.int32())),
                "reward": pa.array(rewards, pa.int8()),
            }
        )
        pq.write_table(table, self.path / "rollouts" / f"{number:05d}.parquet")

    def differentiate(self) -> dict[str, Any]:
        """Features that are the completion's tokens: (first, second or 0)."""

        def work(
            shards: Iterable[GradientShard], advance: Callable[[int, int], None]
        ) -> Iterator[tuple[int, Any]]:
            for shard in shards:
                completions = [tuple(r.completion_token_ids) for r in shard.rollouts]
                self.asked.append(
                    (shard.number, list(zip(completions, shard.weights, strict=True)))
                )
                for weight, rollout in zip(shard.weights, shard.rollouts, strict=True):
                    advance(weight, rollout.tokens)
                rows = np.array([[*ids, 0][:2] for ids in completions], dtype=np.float32)
                rows = rows.reshape(-1, 2)
                rows[[1 + len(ids) > self.fits for ids in completions]] = np.nan
                yield shard.number, rows

        return differentiate(self.run, ITEMS, ROW_OF, work, most=3, most_wrong=4)

    def draws(self) -> dict[tuple[str, tuple[int, ...], int], int]:
        table = pq.read_table(self.path / "gradients/rollouts.parquet").to_pylist()
        return {
            (d["item_id"], self.completions[d["item_id"], d["sample"]], d["reward"]): d["weight"]
            for d in table
        }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "run", [])


def test_the_choice_is_the_same_whenever_a_file_is_differentiated(
    files: Files, tmp_path: Path
) -> None:
    """All files at once, and each as soon as it is there, as in rounds of sampling."""
    for number in range(len(FILES)):
        files.add(number)
    counts = files.differentiate()
    assert counts["rollouts_this_time"] == sum(CHOSEN.values())
    counts = join(files.run, ROW_OF, 2)
    assert counts == {"rollouts_differentiated": 7, "wrong_rollouts_differentiated": 5}
    assert list(files.draws().items()) == list(CHOSEN.items())
    in_rounds = Files(tmp_path / "rounds", [])
    for number in range(len(FILES)):
        in_rounds.add(number)
        in_rounds.differentiate()
        # Nothing is left to do, and what there is so far can be looked at.
        assert in_rounds.differentiate()["rollouts_this_time"] == 0
        with gathered(in_rounds.run, ROW_OF, 2) as features:
            assert len(features.features) == len(features.reward)
    join(in_rounds.run, ROW_OF, 2)
    assert in_rounds.asked == files.asked
    for name in ("rollouts.npy", "features.npy"):
        written = [(each.path / "gradients" / name).read_bytes() for each in (files, in_rounds)]
        assert written[0] == written[1]
    tables = [pq.read_table(e.path / "gradients/rollouts.parquet") for e in (files, in_rounds)]
    assert tables[0].equals(tables[1])


def test_an_item_has_no_wrong_rollouts_from_before_its_first_correct_one(files: Files) -> None:
    files.add(0)
    files.differentiate()
    assert files.asked == [(0, [((6,), 2), ((7,), 2)])]
    with gathered(files.run, ROW_OF, 2) as features:
        assert features.item.tolist() == features.wrong.item.tolist() * 2 == [0, 0]
        assert features.lengths().tolist() == [1, 1]
        np.testing.assert_array_equal(features.correct.features, [[7, 0]])
        np.testing.assert_array_equal(features.wrong.features, [[6, 0]])


def test_a_completion_judged_now_so_now_so_counts_as_what_it_was(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.test_gradient_stage.FILES", [[("a", [7], 0), ("a", [7], 1), ("a", [7], 1)]]
    )
    files.add(0)
    files.differentiate()
    join(files.run, ROW_OF, 2)
    assert files.draws() == {("a", (7,), 1): 2, ("a", (7,), 0): 1}
    index = pq.read_table(files.path / "gradients/index.parquet").to_pylist()
    assert [entry["rollouts_used"] for entry in index] == [2]


def test_shards_of_an_earlier_version_are_one_line(files: Files) -> None:
    files.add(0)
    files.differentiate()
    path = files.path / "gradients/shard-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["reward", "completion_tokens"]), path)
    with pytest.raises(RunError, match=r"shard-00000\.parquet is missing or damaged: .*completion"):
        join(files.run, ROW_OF, 2)


# As CHOSEN, where completions of two tokens do not fit into memory.
CHOSEN_SHORT = {
    ("a", (7,), 1): 3,
    ("b", (7,), 1): 1,
    ("a", (6,), 0): 3,
    ("a", (9,), 0): 1,
    ("b", (6,), 0): 1,
    ("b", (9,), 0): 1,
}


def test_shorter_ones_take_the_places_of_what_does_not_fit(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All files at once and in rounds; the file that has the others may be done already."""
    files.fits = 2
    for number in range(len(FILES)):
        files.add(number)
    files.differentiate()
    # (6, 9) was chosen in two files, tried in the first, and (9, 9) in the third.
    assert files.run.manifest["too_long"] == {"tokens": 3, "rollouts": 2}
    assert "1 rollout of 3 tokens or more" in capsys.readouterr().err
    asked = len(files.asked)
    assert files.differentiate()["tokens_this_time"] == 0 and len(files.asked) == asked
    join(files.run, ROW_OF, 2)
    assert files.draws() == CHOSEN_SHORT
    features = np.load(files.path / "gradients/rollouts.npy")
    expected = [[*ids, 0][:2] for _, ids, _ in files.draws()]
    np.testing.assert_array_equal(features, expected)
    in_rounds = Files(tmp_path / "rounds", [], fits=2)
    for number in range(len(FILES)):
        in_rounds.add(number)
        in_rounds.differentiate()
    join(in_rounds.run, ROW_OF, 2)
    assert in_rounds.draws() == CHOSEN_SHORT
