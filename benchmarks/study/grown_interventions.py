"""The paper's interventions on real skills: grown worlds, in which nothing is planted.

    python -m benchmarks.study.grown_interventions --folder runs/interventions-grown

Five worlds (`tests/worlds/grown.py`: small Llamas pretrained on skills of unequal share and noise,
items out of their own failures), all questions answered directly, so that pass probabilities are
read off exactly. In each, GRPO (`benchmarks.training.grpo`) with five seeds, and each
intervention with two of them. Every training leaves a file in FOLDER; what is there is not done
again, so that a run that was killed goes on. Then the page `docs/evidence/interventions.md` is
printed.

The rule, fixed before any outcome of these worlds was there (four others, thrown away, set learning
rate, length, and how long mid-training is):

- Hard items have a pass probability of 0.001 to 0.1 before training. Three seeds of the baseline
  (1, 42, 37) group them: `learnable` ended at 0.1 or above in all three, `unlearnable` below it in
  all three although a correct rollout was drawn: in a probe of 1,024 rollouts, or in each of the
  three trainings, as `curate confirm` has it. (Those with one in each training, the paper's rule,
  stand beside.) Baseline and interventions are compared on two further seeds (5, 6), which chose
  nothing.
- A world's figure is the mean over its items and both seeds. Intervals are Student's over the
  five worlds, 95 %.
- "Does not close the gap" holds where the upper limit of (gain of the unlearnable) − ½ (learnable −
  unlearnable under the baseline) is below 0: surely less than half of the gap. It fails where the
  lower limit is above 0. Else it is open. Gains and gap are of mean pass probabilities.
- Unseen twins stand beside: for each hard item another question of its skill with the nearest pass
  probability, in no training and no pretraining afterwards. A gain that they do not share was
  learned by heart.
- Mid-training: about as long as the pretraining, half on the skills of the unlearnable items
  (labels without noise), half as before. The paper's finding holds where outcome and similarity
  of the unlearnable both rise (lower limits above 0).
- At half of the training (the paper's step 50) its pattern holds where the similarity of learnable
  items to the easy ones is still above that of the unlearnable, by the interval; the same is asked
  of the lift.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from benchmarks.study.grown_gradients import measure
from benchmarks.training.grpo import Draw, Grpo, grpo, in_epochs
from benchmarks.training.rollouts import Problem, problem
from benchmarks.training.supervised import Row, train_more, train_sft
from curate.files import write_atomically
from recipes.train.groups import Group, ReplayBuffer, with_replay
from tests.worlds.grown import (
    HARD_RANGE,
    WorldSettings,
    grow_world,
    pass_probability,
    read_questions,
)
from tests.worlds.grown_skills import SKILLS, Question, draw_question

TAU = 0.1
GROUPING_SEEDS = (1, 42, 37)
COMPARED_SEEDS = (5, 6)
BASELINE = Grpo(learning_rate=1.5e-3, prompts=32, group=8, updates=4, beta=0.04, epsilon_high=0.2)
STEPS = 44
SFT_UPDATES, SFT_BATCH = 40, 16
PROBE = 1024
"""Rollouts an item that tell whether it is ever right."""
MORE_STEPS, MORE_BATCH, MORE_RATE = 300, 128, 3e-3
SIMILAR = 2
"""New questions for each unlearnable item."""

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


def _skills(seed: int, count: int) -> tuple[str, ...]:
    chosen = np.random.default_rng([seed, 77]).choice(sorted(SKILLS), size=count, replace=False)
    return tuple(sorted(map(str, chosen)))


def _world(seed: int, skills: int, **changes: Any) -> WorldSettings:
    common = {"batch": 128, "learning_rate": 3e-3, "items": 160, "largest_skill": 0.1}
    return WorldSettings(_skills(seed, skills), **common | changes, seed=seed)


WORLDS = {
    "i1": _world(101, 22, width=64, layers=2, steps=450),
    "i2": _world(102, 20, width=48, layers=3, steps=500),
    "i3": _world(103, 24, width=80, layers=2, steps=400, noise=0.8),
    "i4": _world(104, 20, width=64, layers=3, steps=400, noise=0.7),
    "i5": _world(105, 26, width=64, layers=2, steps=500, noise=0.85),
}


@dataclass(frozen=True)
class World:
    """A world as it is trained in; arrays (items,)."""

    folder: Path
    settings: WorldSettings
    model: LlamaForCausalLM
    """Before training; trainings take copies."""
    questions: Sequence[Question]
    initial: Floats
    """Pass probabilities."""
    twins: Sequence[Question | None]
    """Of the hard items, as far as there are some."""
    shares: Floats
    """Of the skills in pretraining."""
    noise: Floats

    @property
    def is_hard(self) -> NDArray[np.bool_]:
        """Whether each is hard."""
        return np.asarray((self.initial >= HARD_RANGE[0]) & (self.initial < HARD_RANGE[1]))

    @property
    def held(self) -> set[str]:
        """Prompts that nothing else may train on."""
        return {each.prompt for each in (*self.questions, *self.twins) if each is not None}

    @property
    def twin_places(self) -> Places:
        """The items that have a twin."""
        return np.array([n for n, each in enumerate(self.twins) if each is not None], np.intp)


def open_world(folder: Path, settings: WorldSettings) -> World:
    """Grow a world, or read it."""
    if not (folder / "world.json").exists():
        grow_world(folder, settings)
    about = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    questions = read_questions(folder / "items.jsonl")
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    initial = pass_probability(model, questions)
    skills = [about["skills"][name] for name in settings.skills]
    shares = np.array([each["share"] for each in skills])
    return World(
        folder, settings, model, questions, initial,
        _twins(model, questions, initial, settings.seed), shares / shares.sum(),
        np.array([each["noise"] for each in skills]),
    )  # fmt: skip


def _twins(
    model: LlamaForCausalLM, questions: Sequence[Question], initial: Floats, seed: int
) -> list[Question | None]:
    """For each hard item another hard question of its skill, the nearest in log p that is left."""
    rng = np.random.default_rng([seed, 7])
    taken = {each.prompt for each in questions}
    low, high = HARD_RANGE
    found: list[Question | None] = [None] * len(questions)
    for skill in sorted({each.skill for each in questions}):
        drawn = [draw_question(skill, rng) for _ in range(400)]
        fresh = list({each.prompt: each for each in drawn if each.prompt not in taken}.values())
        if not fresh:
            continue
        p = pass_probability(model, fresh)
        left = [n for n in range(len(fresh)) if low <= p[n] < high]
        for place, item in enumerate(questions):
            if item.skill == skill and low <= initial[place] < high and left:
                nearest = min(left, key=lambda n: abs(np.log(p[n] / initial[place])))
                left.remove(nearest)
                found[place] = fresh[nearest]
    return found


def groups_of(world: World) -> dict[str, Places]:
    """Items by what became of them in the baseline's grouping seeds, as the head of this file says.

    Of the hard items: learnable, unlearnable, of these those that were right in training in every
    seed, no_positive (below 0.1 in all, and without a correct rollout), seeds_differ. And easy:
    those that were easy before.
    """
    found = [_read(world, "baseline", seed) for seed in GROUPING_SEEDS]
    final = np.array([each["final"] for each in found])
    trained = (np.array([each["right"] for each in found]) > 0).all(axis=0)
    rng = np.random.default_rng([world.settings.seed, 4])
    was_right = trained | (rng.binomial(PROBE, world.initial) > 0)
    up, down = (final >= TAU).all(axis=0), (final < TAU).all(axis=0)
    hard = world.is_hard
    masks = {
        "learnable": hard & up,
        "unlearnable": hard & down & was_right,
        "right in training": hard & down & trained,
        "no_positive": hard & down & ~was_right,
        "seeds_differ": hard & ~up & ~down,
        "easy": world.initial >= HARD_RANGE[1],
    }
    return {name: np.flatnonzero(mask) for name, mask in masks.items()}


# --- Trainings ----------------------------------------------------------------------------------


@dataclass
class Run:
    """One training that is about to begin."""

    world: World
    seed: int
    model: LlamaForCausalLM
    """A copy of the world's, to be trained in place."""
    problems: list[Problem]
    """The items, and what a training adds to them."""
    groups: dict[str, Places]
    facts: dict[str, Any]

    def grpo(
        self,
        settings: Grpo = BASELINE,
        draw: Draw | None = None,
        *,
        steps: int = STEPS,
        mix: Callable[[Group], Group] = lambda group: group,
        at_half: Callable[[], None] = lambda: None,
    ) -> None:
        """Train by GRPO, on all problems in shuffled epochs by default, and note what it did."""
        draw = draw or in_epochs(range(len(self.problems)), self.seed)
        training = grpo(self.model, self.problems, settings, self.seed, draw, mix=mix)
        for log in itertools.islice(training, steps):
            if log.steps == steps // 2:
                at_half()
        self.facts |= {
            "rollouts": log.rollouts,
            "unfilled": log.unfilled,
            "kl": float(np.mean(log.kl[-settings.updates :])) if log.kl else None,
            **{
                name: np.round(getattr(log, name), 3).tolist()
                for name in ("visits", "right", "right_tokens", "tokens", "clipped_above",
                             "clipped_below")
            },
        }  # fmt: skip

    def gradients(self, name: str) -> None:
        """Measure the items under the policy as it is."""
        world = self.world
        p = pass_probability(self.model, world.questions)
        found = measure(
            self.model, self.problems[: len(p)], p, world.initial >= TAU,
            group=BASELINE.group, seed=world.settings.seed,
        )  # fmt: skip
        self.facts[name] = {
            "p": p.tolist(),
            "similarity": found.similarity.tolist(),
            "lift": found.lift.tolist(),
        }


def _baseline(run: Run) -> None:
    if run.seed != COMPARED_SEEDS[0]:
        run.grpo()
        return
    run.gradients("start")
    run.grpo(at_half=lambda: run.gradients("half"))


def _replay(run: Run) -> None:
    """Of four times as many rollouts 1 right and 7 wrong ones; none right: one that was before."""
    buffer, size = ReplayBuffer(reuse=2), BASELINE.group

    def mix(group: Group) -> Group:
        return with_replay(group, 1, size, buffer, np.random.default_rng([run.seed, group.number]))

    run.grpo(replace(BASELINE, group=4 * size), mix=mix)


def _sft(run: Run) -> None:
    chosen = [run.problems[n] for n in run.groups["unlearnable"]]
    train_sft(
        run.model, chosen, steps=SFT_UPDATES, batch=SFT_BATCH,
        learning_rate=BASELINE.learning_rate, seed=run.seed,
    )  # fmt: skip


def _curriculum(run: Run) -> None:
    """Easy items, then learnable ones, then the others; each for as many steps as its share."""
    groups = run.groups
    early = [*groups["easy"], *groups["learnable"]]
    rest = np.setdiff1d(np.arange(len(run.world.questions)), early)
    phases = [groups["easy"], groups["learnable"], rest]
    draws = [in_epochs(phase.tolist(), run.seed) if len(phase) else None for phase in phases]
    ends = np.cumsum([len(phase) for phase in phases]) / sum(map(len, phases)) * STEPS

    def draw(step: int, count: int) -> Sequence[int]:
        of_phase = draws[int(np.searchsorted(ends, step - 0.5))]
        assert of_phase is not None
        return of_phase(step, count)

    run.grpo(draw=draw)


def _similar(run: Run) -> None:
    """Two fresh questions of its skill for each unlearnable item; all are met as often."""
    world = run.world
    rng = np.random.default_rng([world.settings.seed, 8])
    taken, added = world.held, []
    for place in run.groups["unlearnable"]:
        for _ in range(SIMILAR):
            for _ in range(100):
                question = draw_question(world.questions[place].skill, rng)
                if question.prompt not in taken:
                    taken.add(question.prompt)
                    added.append(question)
                    break
    before = pass_probability(run.model, added)
    run.problems += [problem(each) for each in added]
    steps = round(STEPS * len(run.problems) / len(world.questions))
    run.grpo(steps=steps)
    after = pass_probability(run.model, added)
    run.facts["added"] = {"before": before.tolist(), "after": after.tolist(), "steps": steps}


def drawing(world: World, items: Places, rng: np.random.Generator) -> Callable[[], Row]:
    """What more pretraining draws: half of the skills of some items, half as in pretraining.

    Questions are fresh: neither items nor twins. The first half is labelled without noise, a better
    corpus than the first; the other half keeps the noise of its skill.
    """
    names = world.settings.skills
    weak = np.array([sum(world.questions[n].skill == name for n in items) for name in names])
    weak = weak / weak.sum()
    held = world.held

    def fresh(skill: str) -> Question | None:
        for _ in range(100):
            question = draw_question(skill, rng)
            if question.prompt not in held:
                return question
        return None

    def draw() -> Row:
        while True:
            is_weak = rng.random() < 0.5
            n = int(rng.choice(len(names), p=weak if is_weak else world.shares))
            question, other = fresh(names[n]), fresh(names[n])
            if question is not None and other is not None:
                is_noisy = not is_weak and rng.random() < world.noise[n]
                shown = other if is_noisy else question
                return problem(question).prompt, problem(shown).right

    return draw


def more_pretraining(
    world: World, items: Places, seed: int, steps: int = MORE_STEPS
) -> LlamaForCausalLM:
    """The world's policy, pretrained further on the skills of some items."""
    rng = np.random.default_rng([world.settings.seed, seed, 9])
    model = copy.deepcopy(world.model)
    train_more(
        model, drawing(world, items, rng),
        steps=steps, batch=MORE_BATCH, learning_rate=MORE_RATE,
    )  # fmt: skip
    return model


def _mid_trained(run: Run) -> None:
    """Both seeds of GRPO begin at one mid-trained policy."""
    folder = run.world.folder / "mid-trained"
    if not (folder / "config.json").exists():
        aside = folder.with_name("mid-trained.part")
        more_pretraining(run.world, run.groups["unlearnable"], 0).save_pretrained(aside)
        aside.rename(folder)
    run.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    run.facts["twins_start"] = twin_probability(run).tolist()
    run.facts["start"] = {"p": pass_probability(run.model, run.world.questions).tolist()}
    if run.seed == COMPARED_SEEDS[0]:
        run.gradients("start")
    run.grpo()


def twin_probability(run: Run) -> Floats:
    """Pass probabilities of the twins, in the order of their items."""
    twins = [each for each in run.world.twins if each is not None]
    return pass_probability(run.model, twins)


ARMS: dict[str, Callable[[Run], object]] = {
    "baseline": _baseline,
    "mid-training": _mid_trained,
    "replay": _replay,
    "clip-higher": lambda run: run.grpo(replace(BASELINE, epsilon_high=0.28)),
    "no KL": lambda run: run.grpo(replace(BASELINE, beta=0.0)),
    "SFT": _sft,
    "k = 64": lambda run: run.grpo(
        replace(BASELINE, group=64, prompts=BASELINE.prompts // 8),
        in_epochs(run.groups["unlearnable"].tolist(), run.seed),
    ),
    "curriculum": _curriculum,
    "similar problems": _similar,
    "no upper clip": lambda run: run.grpo(replace(BASELINE, epsilon_high=1e9)),
}
"""Each intervention by its name; it changes one thing of the baseline."""


def _file(world: World, arm: str, seed: int) -> Path:
    return world.folder / "trainings" / f"{arm.replace(' ', '_')}-{seed}.json"


def _read(world: World, arm: str, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_file(world, arm, seed).read_text(encoding="utf-8"))
    return found


def train(world: World, arm: str, seed: int) -> None:
    """Do one training, if its file is not there."""
    file = _file(world, arm, seed)
    if file.exists():
        return
    start, of_processor = time.monotonic(), time.process_time()
    run = Run(
        world, seed, copy.deepcopy(world.model), [problem(each) for each in world.questions],
        {} if arm == "baseline" else groups_of(world), {},
    )  # fmt: skip
    ARMS[arm](run)
    facts = run.facts | {
        "final": pass_probability(run.model, world.questions).tolist(),
        "twins": twin_probability(run).tolist(),
        "seconds": time.process_time() - of_processor,
    }
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps(facts) + "\n")
    print(
        f"{world.folder.name} {arm} {seed}: {time.monotonic() - start:.0f} s, "
        f"{facts['seconds']:.0f} of a processor",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is missing, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/interventions-grown"))
    parser.add_argument("--page", action="store_true", help="train nothing, print what is there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    worlds = [open_world(options.folder / name, settings) for name, settings in WORLDS.items()]
    if options.page:
        print_page(worlds)
        return
    for world in worlds:
        for seed in GROUPING_SEEDS:
            train(world, "baseline", seed)
    for seed in COMPARED_SEEDS:
        for arm in ARMS:
            for world in worlds:
                train(world, arm, seed)
    print_page(worlds)


def print_page(worlds: Sequence[World]) -> None:
    """The page of what is there: of each intervention the seeds that all worlds have."""
    from benchmarks.study.grown_interventions_page import page

    trainings = {}
    for arm in ARMS:
        there = [
            seed
            for seed in COMPARED_SEEDS
            if all(_file(world, arm, seed).exists() for world in worlds)
        ]
        for n, world in enumerate(worlds):
            if there:
                trainings[n, arm] = [_read(world, arm, seed) for seed in there]
    print(page(worlds, trainings))


if __name__ == "__main__":
    main()
