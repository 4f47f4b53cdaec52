"""The pass-rate stage: count every item's rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.progress import say
from curate.run.rollouts import (
    Outcomes,
    drawn_judged_correct,
    item_rows,
    nullable,
    read_outcomes,
    rollout_shards,
)
from curate.run.tables import PASS_RATES, Folder
from probes.statistics.pass_rates import pass_at_k_of_items
from probes.statistics.plan import Plan, label_risk
from probes.statistics.recount import RolloutCounts


def count_rollouts(
    run: Folder,
    row_of: Mapping[str, int],
    ks: Sequence[int],
    plan: Plan,
    *,
    with_rewards: bool = False,
    is_planned: bool = True,
) -> tuple[Outcomes, dict[str, int]]:
    """Write `pass_rates.parquet`, a line an item; return its counts and the totals of the run.

    Only judged rollouts count for a rate: a reward of null is left out.

    Args:
        run: sampling is finished, and all rollouts have a verdict.
        row_of: position of each item by item_id, in the order of the positions.
        ks: the k of pass@k.
        plan: that sampling followed. It decides what rate and interval may be said of an item
            that stopped early.
        with_rewards: whether to write the mean and the sample standard deviation of each item's
            rewards, which say more than the rate where they are not 0 and 1.
        is_planned: whether the numbers of rollouts are those of the plan; else, as with rollouts of
            files, they say nothing, and a pass rate is the share of correct ones.
    """
    counts = RolloutCounts(plan, len(row_of))
    truncated, tokens, told = np.zeros((3, len(row_of)), dtype=np.int64)
    rewards, squares = np.zeros((2, len(row_of)))
    columns = ["item_id", "sample", "finish_reason", "completion_token_ids"]
    for file in rollout_shards(run):
        table = read_outcomes(file, *columns)
        rows = item_rows(table, row_of)
        _, judged, correct = drawn_judged_correct(table)
        counts.add(rows, table["sample"].to_numpy(), judged, correct)
        reward = np.asarray(pc.fill_null(table["reward"], 0), dtype=np.float64)
        np.add.at(rewards, rows, reward)
        np.add.at(squares, rows, reward**2)
        is_cut = pc.equal(table["finish_reason"], "length").to_numpy()
        np.add.at(truncated, rows, is_cut.astype(np.int64))
        lengths = pc.list_value_length(table["completion_token_ids"]).to_numpy()
        np.add.at(tokens, rows, lengths.astype(np.int64))
        # What was sampled has a token at least; of rollouts of files there may be none.
        np.add.at(told, rows, lengths.astype(np.int64) > 0 if not is_planned else 1)
    found = Outcomes(*counts.totals)
    n, c = found.judged, found.correct
    rates, low, high = counts.rates(is_planned=is_planned)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_tokens = tokens / told
        mean = rewards / n
        spread = np.sqrt(np.maximum(squares - n * mean**2, 0) / (n - 1))
    table = pa.table(
        {
            "item_id": pa.array(list(row_of), pa.string()),
            "total_rollouts": n,
            "total_correct_rollouts": c,
            "pass_rate": nullable(rates),
            "pass_rate_low": nullable(low),
            "pass_rate_high": nullable(high),
            **{f"pass_at_{k}": nullable(pass_at_k_of_items(n, c, k)) for k in ks},
            **(
                {
                    "reward_mean": nullable(mean),
                    "reward_std": nullable(np.where(n > 1, spread, np.nan)),
                }
                if with_rewards
                else {}
            ),
            "unjudged_rollouts": found.drawn - n,
            "truncated_rollouts": truncated,
            "mean_completion_tokens": nullable(mean_tokens),
        }
    )
    PASS_RATES.write(run, table)
    totals = {
        "rollouts_drawn": int(found.drawn.sum()),
        "rollouts_judged": int(n.sum()),
        "rollouts_correct": int(c.sum()),
        "rollouts_truncated": int(truncated.sum()),
        "completion_tokens": int(tokens.sum()),
    }
    return found, totals


def expected_label_changes(found: Outcomes, plan: Plan) -> float:
    """Labels that the rollouts saved by stopping early are expected to have cost; tell the user."""
    early = found.drawn < plan.max_rollouts
    if not early.any():
        return 0.0
    risk = label_risk(plan, found.judged, found.correct)
    changes = max(float(np.nansum(risk[early])), 0.0)  # Never -0.0.
    say(
        f"sampling stopped early: about {changes:.1f} of {len(risk):,} labels would be "
        f"different after {plan.max_rollouts:,} rollouts an item"
    )
    return changes
