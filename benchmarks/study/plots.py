"""The plots of a study, from its JSON document, as SVG files on a light ground of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # No display is needed.

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import roc_curve

# Colours that are told apart by the colour-blind too (Okabe and Ito), and markers besides.
TAGS = {
    "easy": ("#0072B2", "o"),
    "learnable": ("#009E73", "^"),
    "unlearnable": ("#D55E00", "s"),
    "no_positive": ("#000000", "x"),
    "undetermined": ("#999999", "D"),
}
NAMES = {"no_positive": "no positive", "undetermined": "seeds disagree"}
SCORES = {
    "p_unlearnable": ("p_unlearnable", "#D55E00", "-"),
    "pass_rate": ("pass rate alone", "#0072B2", "--"),
    "semantic_similarity": ("semantic similarity", "#666666", ":"),
}
PLOTS = ("similarity", "roc", "rewards", "tasks")
_STYLE = {
    "figure.figsize": (6.4, 4.2),
    "figure.facecolor": "white",
    "savefig.facecolor": "white",  # Opaque: readable on a dark page too.
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "curate",  # The same figures give the same file.
}


def write_plots(study: dict[str, Any], folder: Path, stem: str) -> None:
    """Write `STEM-NAME.svg` for every name of `PLOTS`.

    Args:
        study: the document.
        folder: that is there.
        stem: what the files' names begin with.
    """
    draw: dict[str, Callable[[Axes, dict[str, Any]], None]] = {
        "similarity": _similarity,
        "roc": _roc,
        "rewards": _rewards,
        "tasks": _tasks,
    }
    for name in PLOTS:
        with plt.rc_context(_STYLE):
            figure, axes = plt.subplots(layout="constrained")
            draw[name](axes, study)
            figure.savefig(folder / f"{stem}-{name}.svg", metadata={"Date": None})
            plt.close(figure)


def _similarity(axes: Axes, study: dict[str, Any]) -> None:
    """Similarity against the initial pass rate, a point an item, by confirmed tag."""
    for tag, (colour, marker) in TAGS.items():
        rows = [
            row
            for row in study["item_table"]
            if row["confirmed_trainability"] == tag and row["similarity"] is not None
        ]
        if not rows:
            continue
        rate = np.array([row["total_correct_rollouts"] / row["total_rollouts"] for row in rows])
        # Many items have the same few counts: apart by at most 4 % they can be seen.
        rate *= np.exp(np.linspace(-0.04, 0.04, len(rows)))
        value, low, high = (
            np.array([row[name] for row in rows], dtype=float)
            for name in ("similarity", "similarity_low", "similarity_high")
        )
        axes.errorbar(
            rate, value, yerr=[value - low, high - value],
            fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.25,
        )  # fmt: skip
        label = f"{NAMES.get(tag, tag)} ({len(rows)})"
        axes.plot(rate, value, marker, color=colour, markersize=4.5, alpha=0.85, label=label)
    axes.axvline(study["tau"], color="#444444", linewidth=0.8, linestyle="--")
    axes.axhline(0, color="#444444", linewidth=0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"initial pass rate (dashed: τ = {study['tau']:g})")
    axes.set_ylabel("gradient similarity, 95 % interval")
    axes.legend(title="confirmed (items)", fontsize=8, title_fontsize=8, loc="upper left")


def judged_items(study: dict[str, Any]) -> list[dict[str, Any]]:
    """The items that the main AUROC is over."""
    return [
        row
        for row in study["item_table"]
        if row["confirmed_trainability"] in ("learnable", "unlearnable")
        and row["p_unlearnable"] is not None
    ]


def _roc(axes: Axes, study: dict[str, Any]) -> None:
    rows = judged_items(study)
    outcome = [row["confirmed_trainability"] == "unlearnable" for row in rows]
    scores = study["agreement"]["scores"]
    if any(outcome) and not all(outcome):
        for name, (label, colour, style) in SCORES.items():
            if name not in scores:
                continue
            # All three lie on one scale here: higher for unlearnable.
            score = [row[name] if name == "p_unlearnable" else -row[name] for row in rows]
            false, true, _ = roc_curve(outcome, score)
            text = f"{label}, AUROC {scores[name]['auroc']:.2f}"
            axes.plot(false, true, style, color=colour, linewidth=1.8, label=text)
        axes.legend(fontsize=8, loc="lower right")
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8)
    axes.set_aspect("equal")
    axes.set_xlabel("share of the learnable items flagged")
    axes.set_ylabel("share of the unlearnable items flagged")


def _rewards(axes: Axes, study: dict[str, Any]) -> None:
    curves = study["reward_curves"]
    for tag, curve in curves["groups"].items():
        colour = TAGS[tag][0]
        for points in curve["by_seed"]:
            axes.plot(curves["steps"], _known(points), color=colour, linewidth=0.7, alpha=0.35)
        label = f"{NAMES.get(tag, tag)} ({curve['groups']} groups)"
        points = _known(curve["mean_reward"])
        axes.plot(curves["steps"], points, color=colour, linewidth=2.2, label=label)
    axes.axhline(study["tau"], color="#444444", linewidth=0.8, linestyle="--")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(f"step (windows of {curves['window']}; thin: single seeds)")
    axes.set_ylabel("mean reward in training")
    axes.legend(fontsize=8, loc="best")


def _known(points: list[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in points]


def _tasks(axes: Axes, study: dict[str, Any]) -> None:
    """Mean pass rates before and after, a line a task."""
    for place, task in enumerate(study["tasks"].values()):
        before, after = task["initial_pass_rate"], task["final_pass_rate"]
        if before is None or after is None:
            continue
        arrow = {"arrowstyle": "->", "color": "#999999", "linewidth": 1.5}
        axes.annotate("", xy=(after, place), xytext=(before, place), arrowprops=arrow)
        first = place == 0
        axes.plot(
            before, place, "o", color="#666666", markersize=7, label="before" if first else None
        )
        axes.plot(
            after, place, "o", color="#009E73", markersize=7, label="after" if first else None
        )
        seeds = [value for value in task["final_pass_rates"] if value is not None]
        axes.plot(
            seeds, [place] * len(seeds), "|", color="#000000", markersize=9,
            label="after, single seeds" if first else None,
        )  # fmt: skip
    axes.axvline(study["tau"], color="#444444", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(study["tasks"])), [name.replace("_", " ") for name in study["tasks"]])
    axes.invert_yaxis()
    axes.margins(y=0.12)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"mean pass rate of the task's items (dashed: τ = {study['tau']:g})")
    axes.legend(fontsize=8, loc="lower right")
