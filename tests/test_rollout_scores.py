"""Kept rollouts under two policies: which are scored, and what they say of an item."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import logit

from curate.errors import RunError, UsageError
from curate.run.tables import ROLLOUTS
from probes.gradients.batch import TokenizedRollout
from probes.models.files import resolve_model
from probes.models.load import load_policy
from probes.rescoring.rollout_scores import RolloutScores
from tests.test_rescoring import by_hand
from tests.tiny import save_tiny_model

PROMPTS = {"often": [4, 5, 6], "rarely": [7, 8], "never": [9, 3]}
# Of each item in turn: completion and reward.
DRAWN = {
    "often": [([n, 1], 1) for n in range(3, 11)] + [([11, 1], 0), ([11, 1], 0), ([12, 1], 0)],
    "rarely": [([n, 1], 0) for n in range(3, 9)] + [([13, 1], 1), ([14, 1], 1)],
    "never": [([3, 1], 0)],
}


@pytest.fixture
def scores(tmp_path: Path) -> RolloutScores:
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    items = {"item_id": list(PROMPTS), "prompt_token_ids": list(PROMPTS.values())}
    pq.write_table(pa.table(items), run / "items.parquet")
    counts = [[reward for _, reward in drawn] for drawn in DRAWN.values()]
    rates = {
        "item_id": list(PROMPTS),
        "total_rollouts": [len(rewards) for rewards in counts],
        "total_correct_rollouts": [sum(rewards) for rewards in counts],
    }
    pq.write_table(pa.table(rates), run / "pass_rates.parquet")
    for number, (item_id, drawn) in enumerate(DRAWN.items()):
        columns = dict.fromkeys(ROLLOUTS.schema.names, [None] * len(drawn))
        columns |= {
            "item_id": [item_id] * len(drawn),
            "sample": list(range(len(drawn))),
            "completion_token_ids": [completion for completion, _ in drawn],
            "reward": [reward for _, reward in drawn],
        }
        table = pa.table(columns, ROLLOUTS.schema)
        pq.write_table(table, run / "rollouts" / f"{number:05d}.parquet")
    save_tiny_model(tmp_path / "later", seed=3)
    return RolloutScores(run, resolve_model(str(save_tiny_model(tmp_path / "model"))))


def test_an_item_is_read_from_its_rarer_outcome(scores: RolloutScores, tmp_path: Path) -> None:
    later = scores.open(str(tmp_path / "later"))
    after = scores.under(later, tmp_path / "after", label="scoring")
    counted: dict[tuple[str, int], int] = {}
    for line in after.to_pylist():
        key = (line["item_id"], line["reward"])
        counted[key] = counted.get(key, 0) + line["weight"]
    assert counted == {("often", 1): 4, ("often", 0): 3, ("rarely", 1): 2}

    initial = load_policy(scores.files, dtype=later.dtype)
    found = scores.lift(after)
    assert np.isnan(found.log_odds_change[2])
    for row, (item_id, reward) in enumerate((("often", 0), ("rarely", 1))):
        completions = [completion for completion, found_ in DRAWN[item_id] if found_ == reward]
        ratios = [
            by_hand(later.model, TokenizedRollout(PROMPTS[item_id], completion))
            - by_hand(initial.model, TokenizedRollout(PROMPTS[item_id], completion))
            for completion in completions
        ]
        p = scores.pass_rates[row] if reward else 1 - scores.pass_rates[row]
        change = logit(min(p * np.exp(ratios).mean(), 0.99)) - logit(p)
        assert found.log_odds_change[row] == pytest.approx(change if reward else -change, abs=1e-4)


def test_what_is_left_is_compared_with_the_same_under_the_initial_policy(
    scores: RolloutScores, tmp_path: Path
) -> None:
    policy = scores.open(str(tmp_path / "model"))
    leave_out = {"often": [8, 10], "rarely": [6, 7]}
    after = scores.under(policy, tmp_path / "after", leave_out=leave_out, label="scoring")
    found = scores.lift(after)
    np.testing.assert_allclose(found.log_odds_change, [0, np.nan, np.nan], atol=1e-5)
    # All wrong ones are left out, and the few correct ones say it.
    leave_out = {"often": [8, 9, 10]}
    after = scores.under(policy, tmp_path / "other", leave_out=leave_out, label="scoring")
    assert set(after["reward"].to_pylist()) == {1}
    np.testing.assert_allclose(scores.lift(after).log_odds_change, [0, 0, np.nan], atol=1e-5)


def test_scores_of_the_initial_policy_are_kept_and_are_of_this_run(
    scores: RolloutScores, tmp_path: Path
) -> None:
    kept = scores.initial()
    again = RolloutScores(scores.run, scores.files)
    after = again.under(again.open(str(tmp_path / "later")), tmp_path / "after", label="scoring")
    (file,) = (scores.run / "rescoring").glob("initial-*.parquet")
    written = file.stat().st_mtime_ns
    again.lift(after)
    assert file.stat().st_mtime_ns == written
    pq.write_table(kept.slice(2), file)
    with pytest.raises(RunError, match=r"initial-\w+\.parquet is of other rollouts; remove it"):
        RolloutScores(scores.run, scores.files).lift(after)


def test_a_checkpoint_of_another_network_is_refused(scores: RolloutScores, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds neither a model"):
        scores.open(str(tmp_path))
