"""The page `docs/evidence/interventions.md`, from the trainings of `grown_interventions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.study.grown_interventions import BASELINE, STEPS, TAU, World, groups_of
from benchmarks.study.interval import Interval

Floats = NDArray[np.float64]
Trainings = Mapping[tuple[int, str], Sequence[Mapping[str, Any]]]

FEWEST = 5
"""Items that a group of a world must have to count."""
_COMPARED = ("learnable", "unlearnable")
_SHOWN = (*_COMPARED, "right in training")

PAPER = {
    "replay": "no effect on the unlearnable; the learnable are learned more slowly",
    "clip-higher": "no effect on the unlearnable",
    "no upper clip": "not tried: the upper limit taken away altogether",
    "no KL": "no effect on the unlearnable",
    "SFT": "the gap does not close",
    "k = 64": "the gap does not close",
    "curriculum": "what is gained on easier items does not carry over",
    "similar problems": "the new problems are learned, the unlearnable items are not",
    "mid-training": "it helps, and gradients of hard items come nearer to the others'",
}


_HEAD = f"""\
# Interventions on real skills

`python -m benchmarks.study.grown_interventions --folder runs/interventions-grown` prints this
page but for the last two sections. The paper's interventions in five grown worlds
(`tests/worlds/grown.py`): Llamas of a hundred thousand parameters, pretrained on 20 to 26 skills
of unequal share and label noise (sums, codes, sorting, ...), with items out of their own
failures; nothing about learnability is planted. Questions are answered directly, so that pass
probabilities are exact, by teacher forcing. Training is GRPO of all parameters: {STEPS}
steps of {BASELINE.prompts} groups of {BASELINE.group}, {BASELINE.updates} updates a step, dynamic
sampling, clipping at {BASELINE.epsilon:g}, KL {BASELINE.beta:g}
(`benchmarks/training/grpo.py`, a test holds its loss to TRL's).

Groups, comparisons and what counts as the finding holding were fixed and committed before any
outcome of these worlds was there (the head of `benchmarks/study/grown_interventions.py`). In
short: hard items have a pass probability of 0.001 to 0.1; three seeds of the baseline group them
(all three at 0.1 or above: learnable; all three below although they can be right: unlearnable),
and two *other* seeds are compared, so that no regression to the mean is in a difference.
Intervals are Student's 95 % over the five worlds. That an intervention does not close the gap
holds where it surely closes less than half of it. *Unseen twins* are questions of the same skills
and pass probabilities that nothing trains on: what they do not share was learned by heart.

""".splitlines()


@dataclass(frozen=True)
class Study:
    """All trainings, and the groups of each world."""

    worlds: Sequence[World]
    trainings: Trainings
    groups: Sequence[Mapping[str, NDArray[np.intp]]]

    def places(self, world: int, group: str) -> NDArray[np.intp]:
        """The items of a group; none where there are too few."""
        found = self.groups[world][group]
        return found if len(found) >= FEWEST else found[:0]

    def beside(self, arm: str) -> Study:
        """The same with as many seeds of every training as an intervention has."""
        count = len(self.trainings[0, arm])
        cut = {key: each[:count] for key, each in self.trainings.items()}
        return Study(self.worlds, cut, self.groups)

    def final(self, world: int, arm: str, group: str) -> Floats:
        """Final pass probabilities, (seeds, items of the group)."""
        found = np.array([each["final"] for each in self.trainings[world, arm]])
        return np.asarray(found[:, self.places(world, group)])

    def twins(self, world: int, arm: str, group: str) -> Floats:
        """Those of the twins of a group, (seeds, twins)."""
        owners = self.worlds[world].twin_places
        chosen = np.isin(owners, self.places(world, group))
        found = np.array([each["twins"] for each in self.trainings[world, arm]])
        return np.asarray(found[:, chosen])

    def means(self, arm: str, group: str, *, twins: bool = False, reach: bool = False) -> Floats:
        """The mean of each world, nan where its group is too small; shares at τ if `reach`."""
        of = self.twins if twins else self.final
        found = [of(world, arm, group) for world in range(len(self.worlds))]
        return np.array(
            [float((each >= TAU if reach else each).mean()) if each.size else np.nan
             for each in found]
        )  # fmt: skip

    def gradient(self, arm: str, when: str, what: str, group: str) -> Floats:
        """Mean similarity, lift or pass probability of each world, over the seeds that have it."""
        found = []
        for world in range(len(self.worlds)):
            values = [
                each[when][what]
                for each in self.trainings[world, arm]
                if what in each.get(when, {})
            ]
            part = np.array(values)[:, self.places(world, group)]
            found.append(float(part.mean()) if part.size else np.nan)
        return np.array(found)

    def separation(self, when: str, what: str) -> Floats:
        """Of each world: probability that a learnable item is above an unlearnable one."""
        found = []
        for world in range(len(self.worlds)):
            chances = []
            for each in self.trainings[world, "baseline"]:
                if when in each:
                    values = np.array(each[when][what])
                    up, down = (values[self.places(world, group)] for group in _COMPARED)
                    if len(up) and len(down):
                        pairs = len(up) * len(down)
                        above = stats.mannwhitneyu(up, down).statistic
                        chances.append(above / pairs)
            found.append(float(np.mean(chances)) if chances else np.nan)
        return np.array(found)


def page(worlds: Sequence[World], trainings: Trainings) -> str:
    """The page as Markdown."""
    study = Study(worlds, trainings, [groups_of(world) for world in worlds])
    return "\n".join(
        [
            *_HEAD,
            *_worlds(study),
            *_table(study),
            *_clipping(study),
            *_mid_training(study),
            *_half(study),
            f"All trainings: {_seconds(study) / 60:.0f} minutes of one processor.",
        ]
    )


def _seconds(study: Study) -> float:
    return float(sum(each["seconds"] for runs in study.trainings.values() for each in runs))


def _worlds(study: Study) -> list[str]:
    names = ("easy", *_SHOWN, "no_positive", "seeds_differ")
    lines = [
        "## The worlds",
        "",
        "| world | items | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for world, groups in zip(study.worlds, study.groups, strict=True):
        counts = " | ".join(str(len(groups[name])) for name in names)
        lines.append(f"| {world.folder.name} | {len(world.questions)} | {counts} |")
    return [*lines, ""]


def _table(study: Study) -> list[str]:
    gap = study.means("baseline", "learnable") - study.means("baseline", "unlearnable")
    lines = [
        "## Interventions",
        "",
        f"Gap under the baseline: {Interval.of(gap).text()}.",
        "",
        "| intervention, trainings | group | items | baseline | with it | difference (95 %) "
        "| at 0.1 or above | unseen twins: baseline | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    sentences = []
    arms = [arm for arm in PAPER if (0, arm) in study.trainings]
    for arm in arms:
        paired = study.beside(arm)
        both = ("baseline", arm)
        runs = sum(len(study.trainings[n, arm]) for n in range(len(study.worlds)))
        for group in _SHOWN:
            count = sum(len(study.places(n, group)) for n in range(len(study.worlds)))
            before, after = (paired.means(each, group) for each in both)
            share = [np.nanmean(paired.means(each, group, reach=True)) for each in both]
            twins = [paired.means(each, group, twins=True) for each in both]
            lines.append(
                f"| {f'{arm}, {runs}' if group == 'learnable' else ''} | {group} | {count} "
                f"| {np.nanmean(before):.3f} | {np.nanmean(after):.3f} "
                f"| {Interval.of(after - before).text()} | {share[0]:.0%} → {share[1]:.0%} "
                f"| {np.nanmean(twins[0]):.3f} | {Interval.of(twins[1] - twins[0]).text()} |"
            )
        sentences.append(_sentence(paired, arm))
    return [*lines, "", *sentences, "", *_added(study)]


def _added(study: Study) -> list[str]:
    """What became of the similar problems themselves."""
    if (0, "similar problems") not in study.trainings:
        return []
    runs = [
        [each["added"] for each in study.trainings[n, "similar problems"]]
        for n in range(len(study.worlds))
    ]
    rates = [
        np.array([np.mean([np.mean(each[when]) for each in world]) for world in runs])
        for when in ("before", "after")
    ]
    return [
        f"The similar problems themselves: {sum(len(world[0]['after']) for world in runs)}, pass "
        f"probability {rates[0].mean():.3f} before,",
        f"{rates[1].mean():.3f} after training on them "
        f"(difference {Interval.of(rates[1] - rates[0]).text()}).",
        "",
    ]


def _sentence(study: Study, arm: str) -> str:
    """What the paper found of an intervention, and whether it holds here."""
    gap = study.means("baseline", "learnable") - study.means("baseline", "unlearnable")
    gain = study.means(arm, "unlearnable") - study.means("baseline", "unlearnable")
    share = float(np.nanmean(gain) / np.nanmean(gap))
    beyond = Interval.of(gain - gap / 2)
    closed = f"{share:.0%}".replace("-", "−")
    if arm == "mid-training":
        risen = Interval.of(
            study.gradient(arm, "start", "similarity", "unlearnable")
            - study.gradient("baseline", "start", "similarity", "unlearnable")
        )
        lifted = Interval.of(
            study.gradient(arm, "start", "lift", "unlearnable")
            - study.gradient("baseline", "start", "lift", "unlearnable")
        )
        both = Interval.of(gain).low > 0 and risen.low > 0
        says = (
            f"similarity {risen.verdict}, lift {lifted.verdict}; the finding, outcome and "
            f"similarity both, {'**holds**' if both else 'is **not shown**'}"
        )
    elif beyond.high < 0:
        says = "that it does not close the gap **holds**"
    elif beyond.low > 0:
        says = "that it does not close the gap **fails**"
    else:
        says = "whether it closes half of the gap is **open**"
    return (
        f"- **{arm}**. The paper: {PAPER[arm]}. Here: {Interval.of(gain).verdict} for the "
        f"unlearnable, {closed} of the gap; {says}."
    )


def _clipping(study: Study) -> list[str]:
    arms = [arm for arm in ("baseline", "clip-higher", "no upper clip", "no KL")
            if (0, arm) in study.trainings]  # fmt: skip
    lines = [
        "## Clipped tokens, and the KL term",
        "",
        "Of the tokens of correct rollouts in all updates, the share that the upper limit clipped;",
        "of wrong ones, the share that the lower limit clipped.",
        "",
        "| training | easy | learnable | unlearnable | wrong rollouts, all items "
        "| KL to the initial policy at the end |",
        "|---|---|---|---|---|---|",
    ]
    for arm in arms:
        runs = [(n, each) for n in range(len(study.worlds)) for each in study.trainings[n, arm]]
        shares = []
        for group in ("easy", *_COMPARED):
            sums = np.zeros(2)
            for n, each in runs:
                for place, name in enumerate(("clipped_above", "right_tokens")):
                    sums[place] += np.array(each[name])[study.groups[n][group]].sum()
            shares.append(f"{sums[0] / max(sums[1], 1):.1%}")
        below = sum(np.sum(each["clipped_below"]) for _, each in runs)
        wrong = sum(np.sum(each["tokens"]) - np.sum(each["right_tokens"]) for _, each in runs)
        kl = [each["kl"] for _, each in runs if each["kl"] is not None]
        lines.append(
            f"| {arm} | {' | '.join(shares)} | {below / wrong:.1%} "
            f"| {f'{np.mean(kl):.2f}' if kl else 'not measured'} |"
        )
    return [*lines, "", f"The KL term weighs {BASELINE.beta:g} of it.", ""]


def _mid_training(study: Study) -> list[str]:
    if (0, "mid-training") not in study.trainings:
        return []
    study = study.beside("mid-training")
    lines = [
        "## Mid-training",
        "",
        "| group | | before | after mid-training | difference (95 %) |",
        "|---|---|---|---|---|",
    ]
    for group in _COMPARED:
        for what, name, digits in (
            ("p", "pass probability", 3),
            ("similarity", "similarity to the easy items", 3),
            ("lift", "lift", 2),
        ):
            before = study.gradient("baseline", "start", what, group)
            after = study.gradient("mid-training", "start", what, group)
            lines.append(
                f"| {group} | {name} | {np.nanmean(before):.{digits}f} "
                f"| {np.nanmean(after):.{digits}f} | {Interval.of(after - before).text(digits)} |"
            )
        gains = [_gained(study, arm, group) for arm in ("baseline", "mid-training")]
        lines.append(
            f"| {group} | log odds that GRPO adds | {np.nanmean(gains[0]):.2f} "
            f"| {np.nanmean(gains[1]):.2f} | {Interval.of(gains[1] - gains[0]).text(2)} |"
        )
    return [*lines, ""]


def _gained(study: Study, arm: str, group: str) -> Floats:
    """Mean log odds that the training added to a group, of each world."""
    found = []
    for n, world in enumerate(study.worlds):
        places = study.places(n, group)
        gains = [
            _log_odds(np.array(each["final"])[places])
            - _log_odds(
                world.initial[places] if arm == "baseline"
                else np.array(each["start"]["p"])[places]
            )
            for each in study.trainings[n, arm]
        ]  # fmt: skip
        found.append(float(np.mean(gains)) if len(places) else np.nan)
    return np.array(found)


def _log_odds(p: Floats) -> Floats:
    """Of probabilities, which are kept off 0 and 1: below 1e-6 nothing is told apart."""
    kept = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(kept / (1 - kept)))


def _half(study: Study) -> list[str]:
    lines = [
        "## Half of the training, as the paper's step 50",
        "",
        "| | policy | learnable | unlearnable | difference (95 %) | AUROC (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    sentences = []
    for what, name, digits in (("similarity", "similarity", 3), ("lift", "lift", 2)):
        for when, label in (("start", "before training"), ("half", "half-way")):
            up, down = (study.gradient("baseline", when, what, group) for group in _COMPARED)
            apart = Interval.of(up - down)
            lines.append(
                f"| {name} | {label} | {np.nanmean(up):.{digits}f} | {np.nanmean(down):.{digits}f} "
                f"| {apart.text(digits)} | {Interval.of(study.separation(when, what)).text(2)} |"
            )
            sentences.append(f"{name} {label}: {apart.verdict}")
    return [
        *lines,
        "",
        "Learnable against unlearnable, by the difference:",
        f"{'; '.join(sentences)}.",
        "",
    ]
