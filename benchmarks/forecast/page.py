"""The page and the tables of `benchmarks/forecast`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.forecast.data import LOWEST_RATE, ROUNDS
from benchmarks.forecast.figures import Figures, WorldFigures
from benchmarks.forecast.grown_worlds import TAU, TRAINING_SEEDS, WORLDS, BenchmarkWorld
from benchmarks.forecast.scores import BY_GRADIENTS, KIN_WEIGHT, PASS_RATE
from probes.forecast.model import Constants

_AT = ("64", ROUNDS)
_ECE = "expected_calibration_error"
CHOSEN_ON = ("d1", "d2")
"""Worlds whose outcomes were there when the rule and its constants were fixed; of d2 two trainings,
of which its settings have neither."""
_GOALS = (
    "The goals: 0.08 ahead of the pass rate at 64 rollouts and 0.05 at the end, a calibration "
    "error of at most 0.06, and 60 % of the hard items tagged at the end, 95 % of those rightly."
)


def page(found: Sequence[WorldFigures], constants: Mapping[str, Constants]) -> str:
    """The whole page, Markdown."""
    about = {world.name: world for world in WORLDS}
    fitted = "; ".join(
        f"{source}: drift {each.drift:.2f}, gain {each.gain:.2f}, spread {each.spread:.2f}"
        for source, each in constants.items()
    )
    seeds = len(TRAINING_SEEDS)
    parts = [
        "# The forecast in grown worlds",
        "Written by `python -m benchmarks.forecast judge "
        f"{' '.join(world.name for world in found)}`.",
        "A grown world is a small language model with items out of its own failures "
        "(`benchmarks/forecast/grown_worlds.py`). It is probed, and then trained by GRPO with "
        f"{seeds} seeds. The first n rollouts of every item are a probe of n; in the column "
        "`rounds` they are drawn as `curate tag` does, until the forecast decides.",
        f"**Chosen on** {_and(CHOSEN_ON)}: the estimator, the form of the forecast, its constants "
        f"({fitted}) and the weight of kin ({KIN_WEIGHT:g}). **Judged on** "
        f"{_and([world.name for world in found])}, of which no score had been looked at, only "
        "the shares learned, overall and by thirds of the pass rate, and how far the seeds agree: "
        "by these, length and learning rate of the trainings were set (j1 was trained a second "
        "time because its seeds disagreed). j1 and j2 were scored first, and then again with j3 "
        "and with pilots; constants and code of the forecasts stayed what they were. How far the "
        "pilots of j1 and j2 agree with their outcomes had been looked at in between; of j3 "
        "nothing had.",
        "A pilot is the first tenth of the world's own training, one seed: its recipe with a tenth "
        "of the steps, by `curate forecast FOLDER/NAME/run --lift pilot --recipe FILE`. What it "
        "samples is spent besides the rollouts that a column names.",
        f"Judged are the items whose pass rate over all rollouts is from {LOWEST_RATE:g} to below "
        f"{TAU:g} and of which all seeds say the same. Learned is an item that ends at {TAU:g} or "
        "above. An item of which a score says nothing, having no correct rollout, comes last in "
        "that score. Intervals are 95 %, by bootstrap over items.",
        _summary(found),
        _verdict(found),
    ]
    for world in found:
        parts += [f"## {world.name}", _description(about[world.name]), world_tables(world)]
    return "\n\n".join(parts) + "\n"


def _summary(found: Sequence[WorldFigures]) -> str:
    """The forecast by gradients against the pass rate, a line a world and budget."""
    rows = [
        "| world | rollouts | pass rate | forecast by gradients | ahead by | calibration error |",
        "|---|---|---|---|---|---|",
    ]
    for world in found:
        for budget in _AT:
            at = world.by_budget[budget]
            ours, error = at.ranking[BY_GRADIENTS], at.calibration[BY_GRADIENTS]
            rows.append(
                f"| {world.name} | {_spent(budget, at)} | {_two(at.ranking[PASS_RATE]['auroc'])} "
                f"| {_two(ours['auroc'])} | {_ahead(ours)} | {_two(error[_ECE])} "
                f"({_two(error[_ECE + '_low'])} to {_two(error[_ECE + '_high'])}) |"
            )
    return "AUROC for being learned:\n\n" + "\n".join(rows)


def _verdict(found: Sequence[WorldFigures]) -> str:
    """Which goals were met."""
    lines = [_GOALS]
    for world in found:
        early, late = (world.by_budget[budget] for budget in _AT)
        tags = late.decided[BY_GRADIENTS]
        figures = (
            ("ahead at 64", early.ranking[BY_GRADIENTS]["ahead"], 0.08, 1),
            ("ahead at the end", late.ranking[BY_GRADIENTS]["ahead"], 0.05, 1),
            ("calibration at 64", early.calibration[BY_GRADIENTS][_ECE], 0.06, -1),
            ("calibration at the end", late.calibration[BY_GRADIENTS][_ECE], 0.06, -1),
            ("share tagged", tags.share, 0.6, 1),
            ("tagged rightly", tags.right, 0.95, 1),
        )
        met = [name for name, value, goal, sign in figures if value and sign * (value - goal) >= 0]
        missed = [name for name, *_ in figures if name not in met]
        said = (", ".join(names) or "none" for names in (met, missed))
        lines.append(f"- {world.name}: met: {next(said)}; missed: {next(said)}.")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _description(world: BenchmarkWorld) -> str:
    settings, training = world.settings, world.training
    working = len(settings.working_skills)
    return (
        f"{len(settings.skills)} skills, {working} of them with lines of working; "
        f"{settings.layers} layers of width {settings.width}; GRPO of {training.steps} steps of "
        f"{training.prompts} × 8 at a learning rate of {training.learning_rate:g}; "
        f"{world.rollouts:,} rollouts of every item."
    )


def world_tables(world: WorldFigures) -> str:
    """The tables of one world, Markdown."""
    first = next(iter(world.by_budget.values()))
    names, probabilities = list(first.ranking), list(first.calibration)

    def table(title: str, rows: Sequence[str], cell: Callable[[Figures, str], str]) -> str:
        columns = [_spent(budget, at) for budget, at in world.by_budget.items()]
        lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name in rows:
            cells = [cell(at, name) for at in world.by_budget.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def positives(at: Figures, name: str) -> str:
        return _two(at.ranking[name]["with_positive"])

    def tags(at: Figures, name: str) -> str:
        one = at.decided[name]
        return f"{_percent(one.share)}: {_percent(one.right)} ({_percent(one.right_by_seed)})"

    with_positive = [str(at.with_positive) for at in world.by_budget.values()]
    return "\n\n".join(
        [
            f"{world.name}: {world.items} items, {world.hard} of them hard; {world.judged} hard "
            f"ones on which the seeds agree, {world.learned} of these learned.",
            table(
                "AUROC (within skills)",
                names,
                lambda at, name: (
                    f"{_two(at.ranking[name]['auroc'])} ({_two(at.ranking[name]['within'])})"
                ),
            ),
            table(
                "AUROC ahead of the pass rate",
                [name for name in names if name != PASS_RATE],
                lambda at, name: _ahead(at.ranking[name]),
            ),
            table("AUROC, items with a correct rollout", names, positives)
            + f"\n| items | {' | '.join(with_positive)} |",
            table(
                "average precision",
                names,
                lambda at, name: _two(at.ranking[name]["average_precision"]),
            ),
            table(
                "calibration error (by chance alone)",
                probabilities,
                lambda at, name: (
                    f"{_two(at.calibration[name][_ECE])} "
                    f"({_two(at.calibration[name][_ECE + '_if_calibrated'])})"
                ),
            ),
            table("hard items tagged: right (by seed)", probabilities, tags),
            "Tagged are `learnable` and `unlearnable`; right is where the seeds agree, and in "
            "brackets the share over all tagged items and seeds. The calibration error in brackets "
            "is what a calibrated forecast would show by chance on as many items.",
        ]
    )


def _spent(budget: str, at: Figures) -> str:
    return f"{ROUNDS}, {at.rollouts:.0f}" if budget == ROUNDS else budget


def _ahead(figures: Mapping[str, float | None]) -> str:
    low, high = figures["ahead_low"], figures["ahead_high"]
    return f"{_signed(figures['ahead'])} ({_signed(low)} to {_signed(high)})"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
