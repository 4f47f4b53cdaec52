"""`curate confirm`: what GRPO made of the items, against what was predicted of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.errors import RunError, UsageError
from curate.files import write_atomically
from curate.run.names import CONFIRMATION
from curate.run.run import Run
from curate.run.tables import CONFIRMED, PASS_RATES, SIMILARITY, TAGS
from curate.run.validated import FinishedSeeds
from curate.tagged.fill import fill_tagged
from curate.tags import Trainability
from recipes.confirm.dynamics import training_dynamics
from recipes.confirm.embedding import prompt_embeddings, semantic_similarity
from recipes.confirm.interventions import intervention_table
from recipes.confirm.outcomes import read_outcomes, stack_outcomes
from recipes.confirm.partition import SeedOutcomes, Tags, partition, table1, tau_sweep
from recipes.confirm.payoff import payoff_table
from recipes.confirm.training_log import log_notes
from recipes.score.text import checkpoint_notes
from recipes.statistics.agreement import (
    Booleans,
    Floats,
    calibration,
    compare_scores,
    confusion,
    too_few_items,
)

_CONFIRMED = pa.field("confirmed_trainability", pa.string())


@dataclass(frozen=True)
class _Items:
    """What `curate tag` said of the items, in their order; nan is unknown."""

    item_ids: pa.Array
    pass_rate: Floats
    trainability: list[str]
    p_unlearnable: Floats
    gradient_similarity: Floats


def confirm_run(run_dir: Path, recipe: str = "") -> dict[str, Any]:
    """Confirm the tags of a run by its finished seeds of GRPO.

    Writes `validation/confirmed.parquet` (a row an item) and `validation/summary.json`, and fills
    the column `confirmed_trainability` of the tagged file. The same again gives the same files.

    Args:
        run_dir: the folder of a finished run of `curate tag`, validated.
        recipe: whose outcomes confirm; by default `baseline`, or `baseline-small`, or the only one.

    Returns:
        the summary, as docs/validation.md tells it.

    Raises:
        UsageError: not a run folder, no finished seed, or outcomes of other items.
        RunError: a file is damaged, or the disk is full.
    """
    run = Run.open(run_dir)
    config, items = run.config, _read_items(run)
    found = run.seeds(recipe)
    tables = [read_outcomes(folder, items.item_ids) for folder in found.folders.values()]
    outcomes = stack_outcomes(tables)
    tags = partition(
        outcomes.initial_pass_rate, outcomes.final_pass_rates, outcomes.ever_positive, config.tau
    )
    is_hard = outcomes.initial_pass_rate < config.tau
    not_visited = is_hard & np.any([table["visits"].to_numpy() == 0 for table in tables], axis=0)
    notes = _notes(found, int(not_visited.sum()), int(is_hard.sum()))
    for seed, facts in found.runs.items():
        notes += log_notes(seed, facts["log"]) if "log" in facts else []
    notes += checkpoint_notes(found.runs)
    semantic, note = _semantic(run, tags)
    notes += note
    dynamics, note = _dynamics(run, items, tags)
    notes += note
    confirmed = _confirmed_table(items, tables[0]["initial_pass_rate"], outcomes, tags)
    CONFIRMED.write(run.path, confirmed)
    values = ({_CONFIRMED.name: tag} for tag in tags.tolist())
    notes += fill_tagged(run, pa.schema([_CONFIRMED]), dict(zip(run.row_of, values, strict=True)))
    summary = (
        _facts(run, found, tags)
        | _figures(items, outcomes, tags, config.tau, semantic)
        | {"notes": notes, "dynamics": dynamics}
        | _further_sections(run, items, tags, found.recipe)
    )
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_atomically(run.path / CONFIRMATION, text)
    return summary


def _dynamics(run: Run, items: _Items, tags: Tags) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """Rewards in training by confirmed tag; None and a note where the logs cannot be read."""
    try:
        found = training_dynamics(run, items.item_ids, tags.tolist())
    except RunError as error:
        # What becomes of the items is told without them.
        return None, [f"no rewards in training: {error}"]
    return [recipe for recipe in found if recipe["groups"]] or None, []


def _further_sections(run: Run, items: _Items, tags: Tags, recipe: str) -> dict[str, Any]:
    """Sections about more than one recipe, null where the run has nothing to tell of them."""
    confirmed = dict(zip(items.item_ids.to_pylist(), tags.tolist(), strict=True))
    interventions = intervention_table(run, confirmed, recipe)
    return {
        "interventions": interventions if interventions["recipes"] else None,
        "payoff": payoff_table(run),
    }


def _read_items(run: Run) -> _Items:
    tags = run.columns(TAGS, "trainability", "p_unlearnable")
    return _Items(
        run.ids,
        run.columns(PASS_RATES, "pass_rate")["pass_rate"].to_numpy(),
        tags["trainability"].to_pylist(),
        tags["p_unlearnable"].to_numpy(),
        run.columns(SIMILARITY, "gradient_similarity")["gradient_similarity"].to_numpy(),
    )


def _notes(found: FinishedSeeds, not_visited: int, hard: int) -> list[str]:
    """What a reader has to know before the figures."""
    notes = []
    if found.unfinished:
        names = ", ".join(map(str, found.unfinished))
        notes.append(f"not finished, so left out: {found.recipe} seed {names}")
    if len(found.seeds) == 1:
        notes.append("one seed only: no seed could disagree, and the outcomes are themselves noisy")
    if not_visited:
        notes.append(
            f"{not_visited:,} of {hard:,} hard items were not trained on in every seed: "
            "that they are not learned may say more of the number of steps than of them"
        )
    return notes


def _semantic(run: Run, tags: Tags) -> tuple[Floats | None, list[str]]:
    """Semantic similarity of each hard item, nan for others; None and a note if there is none."""
    easy = np.flatnonzero(tags == Trainability.EASY)
    hard = np.flatnonzero(tags != Trainability.EASY)
    if not len(easy):
        return None, ["no semantic similarity: there are no easy items to compare with"]
    try:
        embeddings = prompt_embeddings(run)
    except UsageError as error:
        return None, [f"no semantic similarity: {error}"]
    similarity = np.full(len(tags), np.nan)
    similarity[hard] = semantic_similarity(embeddings, hard, easy)
    return similarity, []


def _confirmed_table(
    items: _Items, initial: pa.ChunkedArray, outcomes: SeedOutcomes, tags: Tags
) -> pa.Table:
    final = pa.array(outcomes.final_pass_rates.T.ravel(), from_pandas=True)
    seeds = len(outcomes.final_pass_rates)
    offsets = np.arange(0, len(tags) * seeds + 1, seeds, dtype=np.int32)
    return pa.table(
        {
            "item_id": items.item_ids,
            "initial_pass_rate": initial,
            "final_pass_rates": pa.ListArray.from_arrays(offsets, final),
            "final_pass_rate": pa.array(_mean_final(outcomes), from_pandas=True),
            "trainability": pa.array(items.trainability, pa.string()),
            "p_unlearnable": pa.array(items.p_unlearnable, from_pandas=True),
            "confirmed_trainability": pa.array(tags.tolist(), pa.string()),
        }
    )


def _mean_final(outcomes: SeedOutcomes) -> Floats:
    """Mean final pass rate over the seeds in which it is known, nan in none; shape (items,)."""
    final = outcomes.final_pass_rates
    known = np.isfinite(final).sum(axis=0)
    mean = np.full(final.shape[1], np.nan)
    np.divide(np.nansum(final, axis=0), known, out=mean, where=known > 0)
    return mean


def _facts(run: Run, found: FinishedSeeds, tags: Tags) -> dict[str, Any]:
    devices = {str(run.get("device")) for run in found.runs.values()}
    # By step of the work, in each seed.
    seconds = [run.get("seconds", {}) for run in found.runs.values()]
    return {
        "run_dir": str(run.path),
        "dataset": run.config.dataset,
        "model": run.config.model,
        "tagged_file": run.config.out,
        "tau": run.config.tau,
        "recipe": found.recipe,
        "seeds": list(found.seeds),
        "seeds_unfinished": list(found.unfinished),
        "device": ", ".join(sorted(devices)),
        "seconds": round(sum(sum(each.values()) for each in seconds), 3),
        "items": len(tags),
        "confirmed": {str(tag): int((tags == tag).sum()) for tag in Trainability},
    }


def _figures(
    items: _Items, outcomes: SeedOutcomes, tags: Tags, tau: float, semantic: Floats | None
) -> dict[str, Any]:
    """Every figure of the summary; the main ones stand first, under names of their own."""
    mean_final = _mean_final(outcomes)
    scores = {"p_unlearnable": items.p_unlearnable, "pass_rate": -items.pass_rate}
    if semantic is not None:
        scores["semantic_similarity"] = -semantic
    is_unlearnable = tags == Trainability.UNLEARNABLE
    agreed = is_unlearnable | (tags == Trainability.LEARNABLE)
    is_hard = outcomes.initial_pass_rate < tau
    with_positive = is_hard & (tags != Trainability.NO_POSITIVE) & np.isfinite(mean_final)
    agreement = _agreement(is_unlearnable, agreed, scores)
    agreement_all = _agreement(mean_final < tau, with_positive, scores)
    ours, all_ours = (each["scores"]["p_unlearnable"] for each in (agreement, agreement_all))
    table = table1(outcomes, tau)
    return {
        "hard_items": table["hard_items"],
        **ours,
        **{
            f"expected_calibration_error{end}": agreement["calibration"][
                f"expected_calibration_error{end}"
            ]
            for end in ("", "_low", "_high")
        },
        "auroc_pass_rate": agreement["scores"]["pass_rate"]["auroc"],
        "auroc_semantic": agreement["scores"].get("semantic_similarity", {}).get("auroc"),
        "auroc_all": all_ours["auroc"],
        "auroc_all_low": all_ours["auroc_low"],
        "auroc_all_high": all_ours["auroc_high"],
        "too_few": too_few_items(
            agreement["unlearnable"],
            agreement["learnable"],
            ours["auroc_low"],
            ours["auroc_high"],
        ),
        "table1": table,
        "confusion": confusion(items.trainability, tags.tolist()),
        "agreement": agreement,
        "agreement_all": agreement_all,
        "tau_sweep": tau_sweep(
            outcomes,
            {"gradient_similarity": items.gradient_similarity, "pass_rate": items.pass_rate},
        ),
    }


def _agreement(
    is_unlearnable: Booleans, among: Booleans, scores: dict[str, Floats]
) -> dict[str, Any]:
    """Compare scores, each higher for unlearnable, over some items, of which those have all."""
    judged = among & np.isfinite(scores["p_unlearnable"])
    outcome = is_unlearnable[judged]
    return {
        "unlearnable": int(outcome.sum()),
        "learnable": int((~outcome).sum()),
        "left_out": int((among & ~judged).sum()),
        "scores": compare_scores(outcome, {name: each[judged] for name, each in scores.items()}),
        "calibration": calibration(outcome, scores["p_unlearnable"][judged]),
    }
