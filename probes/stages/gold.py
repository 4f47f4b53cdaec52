"""The gold stage: the probability of every item's gold after what its rollouts wrote before theirs.

Of each item the first `most_prefixes` judged rollouts are looked at, right and wrong alike. Those
that were cut or gave no answer have no gold completion of their own, and neither has one whose
answer cannot be found in its tokens, or whose gold completion the verifier does not accept; they
count among the rollouts all the same. A forward pass over distinct prefixes is all that it costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.datasets.code_tests import is_code_gold
from curate.progress import Progress
from curate.run.rollouts import item_rows, read_outcomes, rollout_outcomes, rollout_shards
from curate.run.tables import GOLD, Folder
from probes.forecast.gold import (
    GoldCompletion,
    GoldProbability,
    Tokens,
    answer_place,
    gold_completion,
    gold_probability,
    placed_form,
)
from probes.forecast.pass_probability import GoldEvidence
from probes.gradients.batch import TokenizedRollout
from probes.models.load import Policy, PolicyOutline
from probes.rescoring.teacher_forcing import log_probabilities
from probes.verifiers.answers import given_answer
from probes.verifiers.pool import Pair, VerifierPool

# Rollouts that are looked at together, which bounds the memory.
_BLOCK = 4096
_COLUMNS = [
    "item_id",
    "completion",
    "completion_token_ids",
    "finish_reason",
    "answer_found",
]


class Score(Protocol):
    """Gives log-probabilities: `probes.rescoring.teacher_forcing.log_probabilities` of a policy."""

    def __call__(
        self, rollouts: Sequence[TokenizedRollout], *, temperature: float
    ) -> NDArray[np.float64]:
        """Of each rollout's completion, shape (rollouts,)."""
        ...


@dataclass(frozen=True)
class _Rollout:
    token_ids: Tokens
    completion: str
    is_cut: bool
    is_correct: bool
    answer_found: str | None


@dataclass
class _Item:
    """An item in hand."""

    row: int
    rollouts: list[_Rollout]
    candidates: dict[tuple[Tokens, Tokens], GoldCompletion] = field(default_factory=dict)
    """By prefix and scored tokens."""
    located: list[bool] = field(default_factory=list)
    """Of each rollout, whether its answer has a place."""
    scores: list[float] = field(default_factory=list)


def score_golds(
    run: Folder,
    items: pa.Table,
    row_of: Mapping[str, int],
    tokenizer: Any,
    policy: Policy | PolicyOutline,
    pool: VerifierPool,
    *,
    most_prefixes: int = 16,
    temperature: float = 1.0,
    score: Score | None = None,
) -> dict[str, Any]:
    """Write the gold probability of every item; return the stage's counts.

    Writes `gold.parquet`, where it is not there yet, a row an item: item_id; gold_probability, null
    where no gold completion is accepted; standard_error of that mean over rollouts, 0 where all
    have the same prefixes; prefixes, the rollouts looked at; distinct_prefixes, those scored;
    seen_rollouts and seen_correct, how many rollouts and correct ones the number already contains,
    0 where it does not depend on how they came out.

    Args:
        run: its `rollouts/*.parquet` are judged.
        items: of `items.parquet`: item_id, prompt_token_ids and answer.
        row_of: position of each item by item_id.
        tokenizer: decodes as the sampling stage did.
        policy: the one that the rollouts were drawn from; where others score, its outline will do.
        pool: of the run's verifier, not entered.
        most_prefixes: rollouts looked at of an item, 1 or more.
        temperature: at which the rollouts were drawn.
        score: gives log-probabilities, such as on other machines; by `policy` here where None.

    Raises:
        RunError: a file is damaged, the verifier's workers die, or memory runs out.
    """
    if most_prefixes < 1:
        raise ValueError(f"most_prefixes must be at least 1, not {most_prefixes}")
    if GOLD.is_in(run):
        known = GOLD.read(run, "gold_probability")["gold_probability"]
        return {"items_with_gold": len(known) - known.null_count, "prefixes_this_time": 0}
    empty = {"prefixes": 0, "distinct_prefixes": 0, "seen_rollouts": 0, "seen_correct": 0}
    rows: list[dict[str, Any]] = [
        {"item_id": item_id, "gold_probability": None, "standard_error": None, **empty}
        for item_id in items["item_id"].to_pylist()
    ]
    scored = tokens = 0
    if score is None:
        assert isinstance(policy, Policy)
        score = partial(log_probabilities, policy)
    with pool, Progress("gold", len(rows), "items") as progress:
        for block in _blocks(run, row_of, most_prefixes):
            _place_golds(block, items, tokenizer, pool, policy.context_length)
            asked = _score(block, items, score, temperature)
            scored += len(asked)
            tokens += sum(one.tokens for one in asked)
            for item in block:
                _enter(item, rows[item.row])
            progress.advance(len(block), f"{scored:,} prefixes")
        progress.reach(len(rows))
    GOLD.write(run, pa.Table.from_pylist(rows, GOLD.schema))
    return {
        "items_with_gold": sum(row["gold_probability"] is not None for row in rows),
        "prefixes_this_time": scored,
        "tokens_this_time": tokens,
        "seconds_this_time": progress.seconds,
    }


def read_gold(run: Folder) -> GoldEvidence:
    """What the gold stage found, in the items' order.

    Raises:
        RunError: `gold.parquet` is missing or damaged.
    """
    table = GOLD.read(run)
    probability, error = (
        # Null becomes nan.
        table[name].to_numpy().astype(np.float64)
        for name in ("gold_probability", "standard_error")
    )
    seen, correct = (
        table[name].to_numpy().astype(np.int64) for name in ("seen_rollouts", "seen_correct")
    )
    return GoldEvidence(probability, error, seen, correct)


def join_golds(run: Folder, parts: Sequence[Path]) -> None:
    """Put together what parts of a run found, each of its own items.

    Args:
        run: gets `gold.parquet`.
        parts: folders with such a file, of the same items in the same order.

    Raises:
        RunError: a file of a part is missing or damaged.
    """
    tables = [GOLD.read(part, *GOLD.columns) for part in parts]
    looked_at = np.array([table["prefixes"].to_numpy() for table in tables])
    owner, items = looked_at.argmax(axis=0), looked_at.shape[1]
    joined = pa.concat_tables(tables).take(pa.array(owner * items + np.arange(items)))
    GOLD.write(run, joined)


def _blocks(run: Folder, row_of: Mapping[str, int], most: int) -> Iterator[list[_Item]]:
    """Yield items with their first `most` judged rollouts, some thousand rollouts at a time."""
    waiting: dict[int, list[_Rollout]] = {}
    finished: list[_Item] = []
    taken = np.zeros(len(row_of), dtype=np.int64)
    for file in rollout_shards(run):
        table = read_outcomes(file, *_COLUMNS)
        rows = item_rows(table, row_of)
        outcome = rollout_outcomes(table)
        lines = []
        for line in np.flatnonzero(outcome >= 0).tolist():
            if taken[rows[line]] < most:
                taken[rows[line]] += 1
                lines.append(line)
        # Of a later round there is often nothing to look at, and an empty list has no type.
        chosen = table.take(pa.array(lines, pa.int64()))
        for row, values, was in zip(
            rows[lines], chosen.to_pylist(), outcome[lines].tolist(), strict=True
        ):
            waiting.setdefault(int(row), []).append(
                _Rollout(
                    tuple(values["completion_token_ids"]),
                    values["completion"],
                    values["finish_reason"] == "length",
                    was == 1,
                    values["answer_found"],
                )
            )
            if len(waiting[int(row)]) == most:
                finished.append(_Item(int(row), waiting.pop(int(row))))
                if len(finished) * most >= _BLOCK:
                    yield finished
                    finished = []
    for row in list(waiting):
        finished.append(_Item(row, waiting.pop(row)))
        if sum(len(item.rollouts) for item in finished) >= _BLOCK:
            yield finished
            finished = []
    if finished:
        yield finished


def _place_golds(
    block: Sequence[_Item],
    items: pa.Table,
    tokenizer: Any,
    pool: VerifierPool,
    context_length: int,
) -> None:
    """Give each item its gold completions that the verifier accepts."""
    # Of a programming problem there is no answer that one could write in the place of another.
    for item in block:
        if is_code_gold(items["answer"][item.row].as_py()):
            item.located += [False] * len(item.rollouts)
    block = [item for item in block if not item.located]
    answers = [items["answer"][item.row].as_py() for item in block]
    mixed = "verifier" in items.column_names
    verifiers = [items["verifier"][item.row].as_py() if mixed else None for item in block]
    named = list(zip(answers, verifiers, strict=True))
    boxed = pool.judge([(rf"\boxed{{{gold}}}", gold, verifier) for gold, verifier in named])
    pairs: list[Pair] = []
    owners: list[tuple[_Item, GoldCompletion]] = []
    for item, (gold, verifier), verdict in zip(block, named, boxed, strict=True):
        form = placed_form(gold, verdict.answer_found if verdict.is_correct else None)
        room = context_length - len(items["prompt_token_ids"][item.row])
        for rollout in item.rollouts:
            found = _with_gold(rollout, tokenizer, form)
            item.located.append(found is not None)
            if found is None or len(found.prefix) + len(found.scored) > room:
                continue
            if item.candidates.setdefault((found.prefix, found.scored), found) is found:
                pairs.append((found.text, gold, verifier))
                owners.append((item, found))
    for (item, found), verdict in zip(owners, pool.judge(pairs), strict=True):
        if not verdict.is_correct:
            del item.candidates[found.prefix, found.scored]


def _with_gold(rollout: _Rollout, tokenizer: Any, form: str) -> GoldCompletion | None:
    if rollout.is_cut:
        return None
    # A user's function does not say what it took for the answer.
    answer = rollout.answer_found or given_answer(rollout.completion)
    if not answer:
        return None
    place = answer_place(rollout.token_ids, tokenizer, rollout.completion, answer)
    if place is None:
        return None
    return gold_completion(rollout.token_ids, place, tokenizer, rollout.completion, form)


def _score(
    block: Sequence[_Item], items: pa.Table, score: Score, temperature: float
) -> list[TokenizedRollout]:
    """Give each item the log-probabilities of its gold completions; return what was scored."""
    asked = [
        TokenizedRollout(
            [*items["prompt_token_ids"][item.row].values.to_pylist(), *one.prefix], one.scored
        )
        for item in block
        for one in item.candidates.values()
    ]
    found = iter(score(asked, temperature=temperature).tolist())
    for item in block:
        item.scores = [next(found) for _ in item.candidates]
    return asked


def _enter(item: _Item, row: dict[str, Any]) -> None:
    """Write down what is known of an item."""
    row["prefixes"] = len(item.rollouts)
    if not item.candidates:
        return
    completions = list(item.candidates.values())
    sure = [
        rollout.is_correct and not located
        for rollout, located in zip(item.rollouts, item.located, strict=True)
    ]
    found: GoldProbability = gold_probability(
        [rollout.token_ids for rollout in item.rollouts], completions, item.scores, sure
    )
    row["gold_probability"] = found.probability
    row["standard_error"] = found.standard_error
    row["distinct_prefixes"] = len({one.prefix for one in completions})
    if found.standard_error > 0 or any(sure):
        row["seen_rollouts"] = len(item.rollouts)
        row["seen_correct"] = sum(rollout.is_correct for rollout in item.rollouts)
