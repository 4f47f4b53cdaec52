"""The page of a study, written from its JSON document: no number in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.plots import NAMES, judged_items, write_plots
from curate.tags import Trainability

_ITEM_SETS = {
    "first": [
        "The first of two studies: its outcomes were known when the rule for `p_unlearnable` by "
        "similarity and pass rate was made (curate's before it forecast), so only the second, "
        "[smollm2.md](smollm2.md), tests that rule.",
        "",
    ],
    "second": [
        "The second of two studies. Its items share no question with those of the first "
        "([smollm2-first.md](smollm2-first.md)) and were drawn when the rule for `p_unlearnable` "
        "by similarity and pass rate (curate's before it forecast), which the first had led to, "
        "was fixed: this is the test of that rule.",
        "",
    ],
}
# As documents that were written before the forecast name scores, and as the page does.
_FORMER_NAMES = {
    "`p_unlearnable` by the present rule": "`p_unlearnable` by similarity and pass rate",
}
_KINDS = ("unlearnable", "learnable", "no_positive", "seeds_disagree", "not_judged")


def write_page(study: dict[str, Any], file: Path) -> None:
    """Write the page as Markdown, and its plots beside it.

    Args:
        study: the document.
        file: the page; the plots' names begin with its stem.
    """
    stem = file.stem
    file.parent.mkdir(parents=True, exist_ok=True)
    write_plots(study, file.parent, stem)
    parts = [
        *_head(study, stem),
        *_result(study),
        *_plot(stem, "roc", "ROC curves of the three scores."),
        *_what_became(study),
        *_plot(
            stem, "similarity",
            "Gradient similarity against the initial pass rate, by confirmed tag; items with "
            "fewer than two correct rollouts have no similarity and are not drawn. Points are "
            "spread a little sideways.",
        ),
        *_plot(stem, "rewards", "Mean reward in training, by confirmed tag."),
        *_by_task(study),
        *_plot(stem, "tasks", "Mean pass rate of each task before and after."),
        *_confusion(study),
        *_calibration(study),
        *_tried(study),
        *_sweep(study),
        *_limits(study),
        *_facts(study),
    ]  # fmt: skip
    file.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _head(study: dict[str, Any], stem: str) -> list[str]:
    training, rollouts = study["training"], study["rollouts"]
    probe = study["probe"]
    seeds = f"seed{'s' * (len(study['seeds']) > 1)} {', '.join(map(str, study['seeds']))}"
    chosen = study["item_set"]
    return [
        f"# SmolLM2, the {chosen} study: do the tags come true?",
        "",
        f"Written by `.venv/bin/python -m benchmarks.study.smollm2 --items {chosen}` from "
        f"`{stem}.json`.",
        "",
        *([] if study.get("forecast") else _ITEM_SETS[chosen]),
        f"{study['model']} was probed on {study['items']} items of {len(study['tasks'])} "
        f"`reasoning-gym` tasks ({rollouts['probe']:,} rollouts, {rollouts['probe_correct']:,} "
        f"correct; {probe['min_rollouts']} to {probe['max_rollouts']} an item) and then trained "
        f"by the recipe `{study['recipe']}` with {seeds}: {training['max_steps']} steps, "
        f"{rollouts['training']:,} training rollouts in all, and "
        f"{training['evaluation_rollouts']} final rollouts of every item and seed. Tags were "
        f"written before the training; τ = {study['tau']:g}.",
        "",
        f"This is {study['size']}.",
        "",
    ]


def _without_similarity(study: dict[str, Any]) -> int:
    return sum(row["similarity"] is None for row in judged_items(study))


def _result(study: dict[str, Any]) -> list[str]:
    agreement, everything = study["agreement"], study["agreement_all"]
    lines = [
        "## Result",
        "",
        f"Of {study['hard_items']} hard items the seeds agree on "
        f"{study['table1']['unlearnable']['items']} as unlearnable and on "
        f"{study['table1']['learnable']['items']} as learnable. {agreement['unlearnable']} and "
        f"{agreement['learnable']} of these have a `p_unlearnable`. "
        + (
            f"{_without_similarity(study)} of them had no two different correct rollouts in the "
            "probe; the forecast says something of those too."
            if study.get("forecast")
            else f"{_without_similarity(study)} of them had a single correct rollout in the "
            "probe, so that theirs is the mean of the others'."
        ),
        "",
    ]
    if study["auroc"] is None:
        lines += ["No AUROC: there are no items of both kinds.", ""]
    else:
        reached = "reached" if study["auroc"] >= study["goal"] else "missed"
        lines += [
            f"AUROC of `p_unlearnable` over these: **{_interval(study, 'auroc')}**. The goal, "
            f"{study['goal']:.2f} or more, is {reached}"
            + (
                ", and the interval holds both sides of it."
                if study["auroc_low"] < study["goal"] <= study["auroc_high"]
                else "."
            ),
            "",
        ]
    if study["too_few"]:
        lines += [f"**{study['too_few']}**", ""]
    lines += [
        *_table(
            ("score", "AUROC", "average precision", "p_unlearnable ahead by", "AUROC, all"),
            [
                (
                    name,
                    _interval(scores, "auroc"),
                    _interval(scores, "average_precision"),
                    _interval(scores, "auroc_difference") if "auroc_difference" in scores else "",
                    _interval(everything["scores"].get(key, {}), "auroc"),
                )
                for key, name in (
                    ("p_unlearnable", "`p_unlearnable`"),
                    ("pass_rate", "pass rate alone"),
                    ("semantic_similarity", "semantic similarity of prompts"),
                )
                if (scores := agreement["scores"].get(key))
            ],
        ),
        "",
        "`AUROC, all` is over all hard items with a positive, also where the seeds disagree, by "
        f"their mean final pass rate: {everything['unlearnable']} below τ, "
        f"{everything['learnable']} at or above, {everything['left_out']} without a "
        "`p_unlearnable` left out. Chance is 0.5 for the AUROC and the share of unlearnable items "
        "for the average precision. Intervals are 95 %, over items.",
        "",
    ]
    return lines


def _what_became(study: dict[str, Any]) -> list[str]:
    table = study["table1"]
    strict = table["positives_in_training_only"]
    rows = [
        (
            kind.replace("_", " "),
            str(table[kind]["items"]),
            _share(table[kind]["share"]),
            _share(strict[kind]["share"]),
        )
        for kind in _KINDS
        if kind != "not_judged" or table[kind]["items"]
    ]
    return [
        "## What became of the hard items",
        "",
        "The paper's Table 1 for this run; it found 17 to 30 % unlearnable.",
        "",
        *_table(("", "items", "share", "share, positives in training only (the paper's)"), rows),
        "",
        *(f"- {note}" for note in study["notes"]),
        *([""] if study["notes"] else []),
    ]


def _by_task(study: dict[str, Any]) -> list[str]:
    rows = [
        (
            name.replace("_", " "),
            str(task["items"]),
            _number(task["initial_pass_rate"]),
            _number(task["final_pass_rate"]),
            str(task["hard_items"]),
            *(
                str(task["confirmed"][tag])
                for tag in ("learnable", "unlearnable", "no_positive", "undetermined")
            ),
        )
        for name, task in study["tasks"].items()
    ]
    head = ("task", "items", "before", "after", "hard", "learned", "unlearnable", "no positive",
            "seeds disagree")  # fmt: skip
    return ["## By task", "", *_table(head, rows), ""]


def _confusion(study: dict[str, Any]) -> list[str]:
    table = study["confusion"]
    words = [str(tag) for tag in Trainability]
    rows = [
        (NAMES.get(tag, tag) if tag != "undetermined" else tag,
         *(str(table[tag][other]) for other in words))
        for tag in words
    ]  # fmt: skip
    decided = ", ".join(
        f"{table[tag][tag]} of the {sum(table[tag].values())} tagged {tag}"
        for tag in ("learnable", "unlearnable")
    )
    return [
        "## Predicted against confirmed",
        "",
        "Rows: predicted; columns: confirmed (undetermined: the seeds disagree). The predictor "
        "gives a word only where the evidence decides, else `undetermined`; `p_unlearnable` ranks "
        f"those too. Came true: {decided}.",
        "",
        *_table(("", *words), rows),
        "",
    ]


def _calibration(study: dict[str, Any]) -> list[str]:
    found = study["agreement"]["calibration"]
    key = "expected_calibration_error"
    rows = [
        (str(each["items"]), _number(each["predicted"]), _number(each["observed"]))
        for each in found["bins"]
    ]
    return [
        "## Calibration",
        "",
        f"Calibration error of `p_unlearnable`: {_interval(found, key)}; a calibrated one would "
        f"show about {_number(found[f'{key}_if_calibrated'])} on as many items.",
        "",
        *_table(("items", "mean predicted", "came true"), rows),
        "",
    ]


def _tried(study: dict[str, Any]) -> list[str]:
    tried = study["tried"]
    rows = [
        (
            f"`{name}`" if name == "p_unlearnable" else _FORMER_NAMES.get(name, name),
            _interval(figures, "auroc"),
            _number(figures["within_tasks"]),
        )
        for name, figures in tried["scores"].items()
    ]
    lines = [
        "## What was tried",
        "",
        f"Other scores on the {tried['items']} items with a similarity, from the same gradients "
        f"({tried['references']} reference items that are easy beyond doubt; "
        "formulas in [benchmarks.md](../benchmarks.md#estimators-of-similarity)). "
        "`within tasks` compares items of one task only "
        f"({tried['pairs_within_tasks']} pairs): what is left when the task is known. The last "
        "score knows outcomes, which no one has before training. Among so many scores the "
        "best is best by chance in part, so none was chosen by this table.",
        "",
        *_table(("score", "AUROC", "within tasks"), rows),
        "",
        *_required(tried.get("required")),
        *(f"- not computed: {name}: {why}" for name, why in tried["left_out"].items()),
        *([""] if tried["left_out"] else []),
    ]
    fitted = tried["calibrate"]
    if fitted is None:
        return [*lines, f"`curate calibrate` gives nothing: {tried['calibrate_note']}.", ""]
    rows = [
        (
            name.replace("_", " "),
            _interval(figures, "auroc"),
            _interval(figures, "log_loss"),
            _interval(figures, "brier"),
        )
        for name, figures in fitted["scores"].items()
    ]
    return [
        *lines,
        f"`curate calibrate`, cross-validated in {fitted['folds']} folds over {fitted['items']} "
        "confirmed items:",
        "",
        *_table(("score", "AUROC", "log loss", "Brier score"), rows),
        "",
        *([str(fitted["note"]), ""] if fitted["note"] else []),
    ]


def _required(required: dict[str, Any] | None) -> list[str]:
    if required is None:
        return []
    return [
        "The run was tagged by a rule that did not look at the pass rate. That by similarity and "
        f"pass rate reaches {_interval(required, 'auroc')} over all {required['items']} items on "
        "which the seeds agree. It, and the lift that it goes by, were made after these outcomes "
        "were seen (its one constant is from the planted world), so this is no test of it.",
        "",
    ]


def _sweep(study: dict[str, Any]) -> list[str]:
    rows = [
        (
            f"{row['tau']:.2f}",
            str(row["hard_items"]),
            *(str(row[kind]["items"]) for kind in _KINDS[:4]),
            str(row["auroc_items"]),
            _number(row["auroc_gradient_similarity"]),
            _number(row["auroc_pass_rate"]),
        )
        for row in study["tau_sweep"]
    ]
    head = ("τ", "hard", "unlearnable", "learnable", "no positive", "seeds disagree", "compared",
            "AUROC similarity", "AUROC pass rate")  # fmt: skip
    return [
        "## Other τ",
        "",
        "The partition and the AUROCs if τ were another; similarities are those of the run's τ.",
        "",
        *_table(head, rows),
        "",
    ]


def _limits(study: dict[str, Any]) -> list[str]:
    table = study["table1"]
    strict = table["positives_in_training_only"]["unlearnable"]["items"]
    each = study["rollouts"]["training"] / study["items"] / len(study["seeds"])
    return [
        "## What this does not say",
        "",
        f"- Of the {table['unlearnable']['items']} unlearnable items {strict} had a correct "
        "rollout in the training of every seed, as all of the paper's have: there are about "
        f"{each:.0f} training rollouts an item and seed. The others were seldom rewarded, which a "
        "low pass rate foretells; items that are rewarded and yet not learned, the paper's "
        "finding, are hardly put to the test.",
        f"- One small model, {len(study['tasks'])} arithmetic and counting tasks, one recipe. "
        "Items of one task are alike, so the intervals, which take items for independent, are "
        "too narrow.",
        "- Unlearnable means: not learned by this recipe in this many steps.",
        "- The intervals hold the noise of which items there are, not that of the GRPO runs.",
        "",
    ]


def _facts(study: dict[str, Any]) -> list[str]:
    steps = ", ".join(
        f"{name} {_duration(value)}" for name, value in study["seconds_by_step"].items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(study["versions"].items()))
    return [
        "## Where and with what",
        "",
        f"- device: {study['device']}; {study['machine'].get('cores')} cores; "
        f"{_duration(study['seconds'])} in all, the seeds' summed: {steps}",
        f"- probe: `{json.dumps(study['probe'])}`",
        *([f"- forecast: `{json.dumps(study['forecast'])}`"] if study.get("forecast") else []),
        f"- training: `{json.dumps(study['training'])}`",
        f"- versions: {versions}",
        f"- weights `{study['weight_hash'][:16]}…`, dataset `{study['dataset_fingerprint'][:16]}…`",
    ]


def _plot(stem: str, name: str, text: str) -> list[str]:
    return [f"![{text}]({stem}-{name}.svg)", "", text, ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _interval(figures: dict[str, Any], name: str) -> str:
    if figures.get(name) is None:
        return "–"
    low, high = figures[f"{name}_low"], figures[f"{name}_high"]
    text = f"{figures[name]:.2f}"
    return text if low is None or high is None else f"{text} ({low:.2f} to {high:.2f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
