"""The facts of a report: every number that it draws, in the order in which it tells them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cards.report.comparisons import comparison_facts
from cards.report.forecast import forecast_facts
from cards.report.gradients import gradient_facts
from cards.report.items import TAGS, Floats, Ints, ReportItems, sample_by_tag, tag_words
from cards.report.training import confirmation_facts, plain, reward_facts
from curate.run.run import Run
from curate.version import __version__
from probes.forecast.words import forecast_words, probability_words
from probes.stages.without_policy import NO_POLICY
from probes.summary import answer_lines

BIN_WIDTH = 0.05
SHOWN_POINTS = 600
_MOST_REASONS = 8
_MOST_SUSPECTS = 50
_SHOWN_ANSWER = 200
_SETTINGS = (
    *("verifier", "min_rollouts", "max_rollouts", "rollout_budget", "temperature", "max_tokens"),
    *("instruction", "seed", "gradient_rollouts", "gradient_dim", "gradient_rank"),
)


def report_facts(run: Run, items: ReportItems, gaps: dict[str, Any]) -> dict[str, Any]:
    """Collect every number of a report, in plain values; unknown numbers are None.

    Args:
        run: finished.
        items: of the run.
        gaps: facts of `gap_facts`.

    Returns:
        `run`: what was probed and how. `dataset`: rows, tags, pass rates and source columns.
        `certainty`: intervals, forecast, what is missing where training will not solve an item,
        similarities, cosines, where the rollouts went, what training made of it, and how it
        compares with an earlier policy. `not_measured`: what a
        reader might miss, each with the reason.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    gradients = gradient_facts(run, items)
    certainty = {
        "pass_rates": _rate_certainty(run, items),
        "forecast": forecast_facts(run, items, SHOWN_POINTS),
        "gaps": gaps,
        "similarities": _similarity_facts(items)
        | ({} if run.config.has_policy else {"why_none": NO_POLICY}),
        "gradients": gradients,
        "rollouts": {
            "by_tag": _rollouts_by_tag(items),
            "by_round": _rollouts_by_round(run, items),
        },
        "confirmation": confirmation_facts(run),
        "rewards": reward_facts(run, items),
        "comparisons": comparison_facts(run),
        "reasoning_quality": _reasoning_facts(run, items),
    }
    return {
        "run": _run_facts(run),
        "dataset": {
            **_row_facts(run),
            "items": len(items),
            "tags": _tag_facts(items),
            "pass_rates": _distribution(run, items),
            "sources": _source_facts(items),
            "answers": _answer_facts(run, items),
        },
        "certainty": certainty,
        "not_measured": _not_measured(items, certainty),
    }


def _run_facts(run: Run) -> dict[str, Any]:
    """Who was probed and how, without the paths of the machine on which it was."""
    manifest, config = run.manifest, run.config
    dataset, model = manifest.get("dataset", {}), manifest.get("model", {})
    return {
        "dataset": dataset.get("name") or Path(config.dataset).name,
        "dataset_fingerprint": dataset.get("fingerprint"),
        "model": model.get("name") or Path(config.model).name or run.facts["model"],
        "model_revision": model.get("revision"),
        "weight_hash": model.get("weight_hash"),
        "dtype": model.get("dtype"),
        "device": manifest.get("device"),
        "created": manifest.get("created"),
        "tau": config.tau,
        "settings": {name: getattr(config, name) for name in _settings(run)}
        | ({"verifier": f"by {config.verifier_field}"} if config.verifier_field else {}),
        "forecast": forecast_words(manifest, constants=True),
        "p_unlearnable": probability_words(manifest),
        "predictor": manifest.get("predictor", {}).get("name"),
        "seconds": {
            name: stage.get("seconds") for name, stage in manifest.get("stages", {}).items()
        },
        "versions": {**manifest.get("versions", {}), "report": __version__},
    }


def _settings(run: Run) -> tuple[str, ...]:
    """The settings that a run went by."""
    if run.config.has_policy:
        return _SETTINGS
    return ("rollout_rewards", "correct_from")


def _row_facts(run: Run) -> dict[str, Any]:
    reasons = run.rows("row", "item_id", "reason")
    unused = pc.is_null(reasons["item_id"]).to_numpy()
    why = np.array(reasons["reason"].to_pylist(), dtype=object)[unused]
    beyond = np.array([str(reason).startswith("not probed") for reason in why], dtype=bool)
    names, counts = np.unique(why[~beyond].astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {
        "rows": reasons.num_rows,
        "rows_probed": int((~unused).sum()),
        "rows_rejected": int((~beyond).sum()),
        "rows_beyond_limit": int(beyond.sum()),
        "rejected_for": [
            {"reason": str(names[at]), "rows": int(counts[at])} for at in order[:_MOST_REASONS]
        ],
        "rejected_for_other_reasons": int(counts[order[_MOST_REASONS:]].sum()),
    }


def _answer_facts(run: Run, items: ReportItems) -> dict[str, Any]:
    """What the answers say of golds, in lines, and the golds that look most wrong."""
    suspects = []
    if items.is_suspect is not None and items.majority_share is not None and items.majority:
        places = np.flatnonzero(items.is_suspect)
        order = np.lexsort((items.row[places], -items.majority_share[places]))
        suspects = [
            {
                "row": int(items.row[at]),
                "gold": items.answer[at].as_py()[:_SHOWN_ANSWER],
                "majority": items.majority[at].as_py(),
            }
            for at in places[order][:_MOST_SUSPECTS].tolist()
        ]
    return {"lines": answer_lines(run.manifest.get("answers", {})), "suspects": suspects}


def _tag_facts(items: ReportItems) -> list[dict[str, Any]]:
    confirmed = items.confirmed
    return [
        {
            "tag": tag,
            "items": int((items.tag == at).sum()),
            "share": float((items.tag == at).mean()),
            "confirmed_items": None if confirmed is None else int((confirmed == at).sum()),
        }
        for at, tag in enumerate(TAGS)
    ]


def _counts_by_tag(tag: Ints) -> dict[str, int]:
    counts = np.bincount(tag[tag >= 0], minlength=len(TAGS))
    return dict(zip(TAGS, counts.tolist(), strict=True))


def _distribution(run: Run, items: ReportItems) -> dict[str, Any]:
    """Items by pass rate: those without a correct rollout, then bins of 0.05, closed below."""
    known = np.isfinite(items.pass_rate)
    never = known & (items.correct == 0)
    width = round(1 / BIN_WIDTH)
    # A rate of exactly 1, and the rounding of 0.15 / 0.05, stay in their bins.
    at = np.clip(np.floor(items.pass_rate * width + 1e-9), 0, width - 1)
    bins = [{"low": 0.0, "high": 0.0, "items": int(never.sum()), **_split(items.tag[never])}]
    for number in range(width):
        members = known & ~never & (at == number)
        low, high = round(number * BIN_WIDTH, 2), round((number + 1) * BIN_WIDTH, 2)
        bins.append(
            {"low": low, "high": high, "items": int(members.sum()), **_split(items.tag[members])}
        )
    rates = items.pass_rate[known]
    return {
        "tau": run.config.tau,
        "bins": bins,
        "items": int(known.sum()),
        "not_measured": int((~known).sum()),
        "mean": float(rates.mean()) if len(rates) else None,
        "median": float(np.median(rates)) if len(rates) else None,
    }


def _split(tag: Ints) -> dict[str, Any]:
    return {"tags": _counts_by_tag(tag)}


def _source_facts(items: ReportItems) -> dict[str, Any]:
    columns = []
    for column in items.sources:
        values = []
        for at, value in enumerate([*column.values, None]):
            members = column.codes == (at if value is not None else -1)
            if members.any():
                values.append(
                    {
                        "value": value,
                        "items": int(members.sum()),
                        "tags": _counts_by_tag(items.tag[members]),
                        "mean_pass_rate": _mean(items.pass_rate[members]),
                    }
                )
        columns.append({"column": column.name, "values": values})
    return {"columns": columns, "note": items.sources_note}


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return round(float(known.mean()), 4) if len(known) else None


def _quartiles(values: NDArray[Any]) -> dict[str, float | None]:
    known = values[np.isfinite(values)]
    names = ("least", "lower_quartile", "median", "upper_quartile", "most")
    if not len(known):
        return dict.fromkeys(names)
    return dict(zip(names, np.quantile(known, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))


def _rate_certainty(run: Run, items: ReportItems) -> dict[str, Any]:
    tau = run.config.tau
    across = (items.pass_rate_low <= tau) & (items.pass_rate_high >= tau)
    drawn = items.judged + items.unjudged
    with np.errstate(invalid="ignore", divide="ignore"):
        is_easy = items.correct / items.judged >= tau
    # Where sampling stops because of what it saw, the corrected rate and c/n may differ.
    corrected = np.isfinite(items.pass_rate) & (is_easy != (items.pass_rate >= tau))
    return {
        "confidence": 0.95,
        "items": int(np.isfinite(items.pass_rate_low).sum()),
        "interval_contains_tau": int(across.sum()),
        "interval_contains_tau_by_tag": _counts_by_tag(items.tag[across]),
        "rate_and_counts_on_two_sides_of_tau": int(corrected.sum()),
        "rollouts_per_item": _quartiles(drawn.astype(np.float64)),
        "rollouts": int(drawn.sum()),
        "correct": int(items.correct.sum()),
        "truncated": int(items.truncated.sum()),
        "not_judged": int(items.unjudged.sum()),
        "expected_label_changes": run.manifest.get("counts", {}).get("expected_label_changes"),
    }


def _similarity_facts(items: ReportItems) -> dict[str, Any]:
    hard = items.tag != TAGS.index("easy")
    known = np.isfinite(items.similarity)
    shown = sample_by_tag(items, known, SHOWN_POINTS)
    return {
        "confidence": 0.95,
        "hard_items": int(hard.sum()),
        "measured": int(known.sum()),
        "without_correct_rollout": int((~known & (items.correct == 0)).sum()),
        "with_one_correct_rollout": int((~known & (items.correct == 1)).sum()),
        "without_for_other_reasons": int((~known & (items.correct > 1)).sum()),
        "reliability": _quartiles(items.reliability),
        "mostly_noise": int((known & (items.reliability < 0.5)).sum()),
        "range": _range(items.similarity[known]),
        "points": {
            "of": int(known.sum()),
            "item": shown.tolist(),
            "item_id": items.ids[shown].tolist(),
            "tag": tag_words(items.tag[shown]),
            "confirmed": None if items.confirmed is None else tag_words(items.confirmed[shown]),
            "gradients": items.gradients[shown].tolist(),
            **{name: plain(values[shown]) for name, values in items.measured.items()},
        },
    }


def _range(values: Floats) -> list[float]:
    """From 0 or below to 0 or above, all but the most extreme values between."""
    if not len(values):
        return [-1.0, 1.0]
    low, high = np.quantile(values, [0.01, 0.99]).tolist()
    return [round(min(0.0, low), 3), round(max(0.0, high, low + 0.01), 3)]


def _rollouts_by_tag(items: ReportItems) -> list[dict[str, Any]]:
    drawn = items.judged + items.unjudged
    total = max(int(drawn.sum()), 1)
    return [
        {
            "tag": tag,
            "items": int((items.tag == at).sum()),
            "rollouts": int(drawn[items.tag == at].sum()),
            "share": int(drawn[items.tag == at].sum()) / total,
            "correct": int(items.correct[items.tag == at].sum()),
            "truncated": int(items.truncated[items.tag == at].sum()),
            "not_judged": int(items.unjudged[items.tag == at].sum()),
        }
        for at, tag in enumerate(TAGS)
    ]


def _rollouts_by_round(run: Run, items: ReportItems) -> list[dict[str, Any]] | None:
    """Rollouts that each round drew, by the tag that the items have in the end."""
    ids = pa.array(items.ids)
    drawn = np.zeros(len(items), dtype=np.int64)
    rounds = []
    for number, table in enumerate(run.rounds()):
        places = pc.fill_null(pc.index_in(table["item_id"], value_set=ids), -1).to_numpy()
        target = np.asarray(table["rollouts"].to_numpy(), dtype=np.int64)[places >= 0]
        places = places[places >= 0]
        fresh = np.maximum(target - drawn[places], 0)
        by_tag = np.bincount(items.tag[places], fresh, minlength=len(TAGS)).astype(int)
        rounds.append(
            {
                "round": number + 1,
                "items": int((fresh > 0).sum()),
                "rollouts": int(fresh.sum()),
                "tags": dict(zip(TAGS, by_tag.tolist(), strict=True)),
            }
        )
        drawn[places] += fresh
    return rounds or None


def _reasoning_facts(run: Run, items: ReportItems) -> dict[str, Any] | None:
    scores = items.reasoning_quality
    if scores is None:
        return None
    groups = [
        {
            "group": tag,
            "items": int(np.isfinite(scores[items.group == at]).sum()),
            "mean": _mean(scores[items.group == at]),
            **_quartiles(scores[items.group == at]),
        }
        for at, tag in enumerate(TAGS)
    ]
    judging = run.judgement()
    model = judging.get("model")
    agreement = judging.get("agreement")
    return {
        # A server's name for a model may be a path of its machine.
        "judge": None if model is None else str(model).removesuffix("/").rpartition("/")[-1],
        "agreement": agreement if isinstance(agreement, dict) else None,
        "groups": [group for group in groups if group["items"]],
    }


def _not_measured(items: ReportItems, certainty: dict[str, Any]) -> list[str]:
    """What a reader might look for in vain, and why."""
    missing = []
    if certainty["forecast"]["why_none"]:
        missing.append(f"where training leads: {certainty['forecast']['why_none']}")
    elif not certainty["forecast"]["lift"]["items"]:
        missing.append(
            f"lift: {certainty['forecast']['lift'].get('why_none') or 'it is known of no item'}"
        )
    if certainty["gaps"]["why_none"] and items.correct.any():
        missing.append(f"what is missing for unlearnable items: {certainty['gaps']['why_none']}")
    if certainty["confirmation"] is None:
        missing.append(
            "whether the predictions come true: not confirmed by GRPO (`curate validate`, then "
            "`curate confirm`)"
        )
    if not certainty["rewards"]:
        missing.append("rewards in training: no finished run of `curate validate`")
    gradients = certainty["gradients"]
    if gradients is None and certainty["forecast"]["why_none"] == NO_POLICY:
        missing.append(f"cosines between items: {NO_POLICY}")
    elif gradients is None:
        missing.append("cosines between items: the gradients were removed from the run folder")
    elif not gradients["blocks"]["groups"]:
        missing.append("cosines between items: no item has two correct rollouts")
    if certainty["rollouts"]["by_round"] is None:
        missing.append("rollouts by round: the run folder has no rounds")
    if certainty["reasoning_quality"] is None:
        missing.append("reasoning quality: correct answers were not judged by their reasoning")
    if items.sources_note:
        missing.append(f"tags by source column: {items.sources_note}")
    return missing
