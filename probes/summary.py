"""The final table of a run: what was found, what it cost, where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from curate.config import TagConfig
from curate.progress import duration
from curate.run.folder import read_manifest, read_run_config
from curate.tags import NO_POSITIVE_KINDS, Trainability
from probes.forecast.words import forecast_summary
from probes.stages.logged import drawn_words, taken_words

_PREDICTED_MEANINGS = {
    Trainability.LEARNABLE: "hard, and the predictor is sure that GRPO learns it",
    Trainability.UNLEARNABLE: "hard, and the predictor is sure that GRPO does not learn it",
}
_MEANINGS = {
    Trainability.EASY: "right in at least {percent:g}% of rollouts already: "
    "pass rate at least {tau:g}",
    Trainability.LEARNABLE: "hard, and expected to reach {tau:g} by training",
    Trainability.UNLEARNABLE: "hard, and expected to stay below {tau:g}",
    Trainability.NO_POSITIVE: "hard, and not one sampled answer was right",
    Trainability.UNDETERMINED: "the evidence does not decide",
}


def summarize(run_dir: Path) -> dict[str, Any]:
    """Collect the summary of a finished run from its manifest.

    Raises:
        UsageError: the folder is no run folder.
    """
    manifest = read_manifest(run_dir)
    config = read_run_config(run_dir)
    counts, stages = manifest["counts"], manifest["stages"]
    items = counts["items"]
    tags = {
        str(tag): {"items": counts["tags"][tag], "share": counts["tags"][tag] / items}
        for tag in Trainability
    }
    return {
        "dataset": config.dataset,
        "model": config.model,
        "tagged_file": config.out,
        "run_dir": str(run_dir),
        "tau": config.tau,
        "rows": counts["rows"],
        "rows_probed": counts["rows_probed"],
        "rows_rejected": counts["rows_rejected"],
        "items": items,
        "tags": tags,
        "rounds": counts["rounds"],
        "expected_label_changes": counts["expected_label_changes"],
        "rollouts": counts["rollouts_drawn"],
        "rollouts_correct": counts["rollouts_correct"],
        "rollouts_truncated": counts["rollouts_truncated"],
        "rollouts_not_judged": counts["rollouts_drawn"] - counts["rollouts_judged"],
        "completion_tokens": counts["completion_tokens"],
        "tokens_per_second": counts["completion_tokens"] / max(stages["sample"]["seconds"], 1e-9)
        # Rollouts of files were not sampled.
        if "sample" in stages
        else None,
        **_taken(manifest, config),
        "forecast": forecast_summary(manifest),
        "predictor": manifest.get("predictor", {}),
        "answers": manifest.get("answers", {}),
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "tries": {name: stage.get("tries", 1) for name, stage in stages.items()},
    }


def _taken(manifest: Mapping[str, Any], config: TagConfig) -> dict[str, Any]:
    """Of a run of rollouts that existed: where they are from, and what comes next."""
    taken = manifest.get("rollouts")
    if taken is None:
        return {}
    drawn = ", ".join(part for part in drawn_words(taken, config) if part)
    words = [*taken_words(taken).splitlines(), f"    {drawn}"]
    if not config.has_policy:
        more = " --golds optional" if config.golds == "optional" else ""
        more += " --instruction ''" if not config.instruction else ""
        words.append(
            f"    gradients, lift and forecast: curate tag {quote(config.dataset)} --model MODEL "
            f"--rollouts {quote(config.run_dir)}{more}"
        )
    return {"taken": {**taken, "words": words}}


def _speed(summary: Mapping[str, Any]) -> str:
    speed = summary["tokens_per_second"]
    return "" if speed is None else f" at {speed:,.0f} tokens/s{_over(summary['tries']['sample'])}"


def _over(tries: int) -> str:
    """Said of seconds in which there is what was lost when a process ended."""
    return f" over {tries:,} tries" if tries > 1 else ""


def tag_meanings(tau: float, *, learned: bool) -> dict[Trainability, str]:
    """What each tag means, in a line; `learned` says that a fitted predictor gave it."""
    meanings = _MEANINGS | (_PREDICTED_MEANINGS if learned else {})
    return {tag: text.format(tau=tau, percent=100 * tau) for tag, text in meanings.items()}


def answer_lines(answers: Mapping[str, Any]) -> list[str]:
    """What the answers of the rollouts say of golds, and of items that are never right."""
    lines = []
    kinds = answers.get("no_positive_kinds", {})
    if kinds:
        told = ", ".join(f"{n:,} {NO_POSITIVE_KINDS[kind]}" for kind, n in kinds.items())
        lines.append(f"no_positive: {told}")
    if answers.get("suspect_golds"):
        lines.append(
            f"golds: {answers['suspect_golds']:,} look wrong (suspect_gold); of "
            f"{answers['sure_majorities']:,} items whose rollouts agree as surely, "
            f"{answers['sure_and_gold']:,} agree on the gold"
        )
    return lines


def summary_text(summary: dict[str, Any]) -> str:
    """Write a summary as a table for a terminal."""
    predictor = summary["predictor"]
    meanings = tag_meanings(summary["tau"], learned="name" in predictor)
    taken = summary.get("taken")
    lines = [f"{'tag':<14}{'items':>8}{'share':>8}   meaning"]
    for tag, entry in summary["tags"].items():
        meaning = meanings[Trainability(tag)]
        lines.append(f"{tag:<14}{entry['items']:>8,}{entry['share']:>8.1%}   {meaning}")
    lines.append(f"{'all':<14}{summary['items']:>8,}")
    lines.append("")
    rows = [f"{summary['rows_probed']:,} probed", f"{summary['rows_rejected']:,} rejected"]
    beyond = summary["rows"] - summary["rows_probed"] - summary["rows_rejected"]
    if beyond:
        rows.append(f"{beyond:,} beyond --limit")
    lines.append(f"rows: {summary['rows']:,} ({', '.join(rows)})")
    lines.append(
        f"rollouts: {summary['rollouts']:,} ({summary['rollouts_correct']:,} correct, "
        f"{summary['rollouts_truncated']:,} cut{'' if taken else ' at --max-tokens'}, "
        f"{summary['rollouts_not_judged']:,} not judged)"
        + (
            f", {summary['completion_tokens']:,} tokens{_speed(summary)}"
            # Text that was taken from files has none that are known.
            if summary["completion_tokens"] or not taken
            else ""
        )
    )
    lines += taken["words"] if taken else []
    lines.append(f"forecast: {summary['forecast']['words']}")
    if "name" in predictor:
        lines.append(f"p_unlearnable: by {predictor['name']}")
        lines += [f"  outside of what it was fitted on: {why}" for why in predictor["outside"]]
    lines += answer_lines(summary["answers"])
    seconds = summary["seconds"]
    long = [f"{name} {duration(value)}" for name, value in seconds.items() if round(value)]
    stages = f" ({', '.join(long)})" if long else ""
    over = _over(max(summary["tries"].values()))
    lines.append(f"time: {duration(sum(seconds.values()))}{over}{stages}")
    lines.append("")
    lines.append(f"tagged file: {summary['tagged_file']}")
    lines.append(f"evidence:    {summary['run_dir']}")
    return "\n".join(lines)
