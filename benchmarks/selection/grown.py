"""Does it pay? What is trained on under one budget of rollouts, in grown worlds.

    python -m benchmarks.selection.grown --folder runs/payoff-grown           the table
    python -m benchmarks.selection.grown --folder runs/t --worlds t1          one world

A world is a small Llama with items out of its own failures (`tests/worlds/grown.py`): two thirds of
them are trained on, one third is held out. Its items are tagged by `curate tag` as it is by
default, arms are chosen by `curate filter`, `select` and `order`, and each trains by GRPO with all
parameters (`benchmarks.training.grpo`) until its budget of rollouts is spent. What is
finished is kept in FOLDER, and the same command goes on from there; it begins nothing new after
`--minutes`, and prints the table of the seeds that are finished in all worlds.

The rule, fixed before any judged world was grown: arms are judged at the long budget, and `PRIMARY`
is ours. A final rate is the mean over the last eighth of the rollouts. The goal is met where the
mean curve of `PRIMARY` reaches the final held-out pass rate of `full` with 60 % of its rollouts or
fewer (those of the probe are told beside it), and its final rate is ahead of that of every rival,
each time by an interval over worlds (`grown_table.over_worlds`) that leaves out 0. Seeds are taken
in their order, as many as are finished. Worlds whose names begin with t are thrown away: they chose
the kind of world, learning rate, lengths and `PRIMARY`. All arms have dynamic sampling. Of the
oracles `EXACT_OF_ITEMS` was added when the outcomes of the others were known.

So was a target, after those, and this rule for it was fixed before anything was trained on it. As
many other questions as are held out, of the same skills and chosen by pass probability in the same
way, with a seed of their own, are neither trained on nor judged. `curate tag --target` probes them
beside the items, as it does by default, and `select --by teaching` chooses for them: `TARGETED`,
the only arm that is judged here. Naming a target pays at a budget where the final held-out rate of
`TARGETED` is ahead of that of `full` by more than its interval over worlds; that it is ahead of
`random` is told beside, and so is the cost of its probe, with the target's rollouts.
`EXACT_OF_TARGET` is an oracle that knows the teaching of these questions exactly: what it lacks to
`EXACT` is the change of questions, and what `TARGETED` lacks to it the probe's noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

import curate
from benchmarks.selection.grown_oracle import exact_teaching, signal_of
from benchmarks.training.grpo import Draw, Grpo, Hear, grpo, in_epochs
from benchmarks.training.rollouts import draw_each, problem
from curate.files import write_atomically
from curate.run.names import MANIFEST, TARGET
from recipes.sampler.items import ItemSampler, SamplerSettings
from tests.worlds.grown import (
    WorldSettings,
    grow_world,
    other_questions,
    pass_probability,
    read_questions,
    write_questions,
)
from tests.worlds.grown_skills import SKILLS, Question

GROUP = 8
LONG, SHORT = 24_576, 6_144
"""Rollouts of a training."""
EVALUATIONS = 24
SHARE = 0.4
"""Of the items, in `select` and its rivals of the same size."""
SEEDS = tuple(range(1, 11))
TRAINING = Grpo(learning_rate=7e-4, prompts=16, group=GROUP, updates=1, first_round=1)

FULL, RANDOM, SCHEDULE, SAMPLER = "full", "random", "order --by schedule", "the sampler"
UNPROBED = "the sampler, without a probe"
PRIMARY = SAMPLER
TARGETED = "select --by teaching, for a target"
OURS = (
    "filter: easy, learnable",
    "filter: and undetermined",
    "select --by teaching",
    "select",
    SCHEDULE,
    SAMPLER,
    UNPROBED,
    TARGETED,
)
RIVALS = (FULL, RANDOM, "largest p(1 − p)", "band 0.1 to 0.9")
EXACT, EXACT_OF_ITEMS = "exact teaching", "exact teaching, of the items"
EXACT_OF_TARGET = "exact teaching, of a target"
CHANCE = "exact chance of a signal"
ORACLES = (EXACT, EXACT_OF_ITEMS, EXACT_OF_TARGET, CHANCE)
ARMS = (*RIVALS, *OURS, *ORACLES)
NEEDS_PROBE = frozenset((*OURS, "largest p(1 − p)", "band 0.1 to 0.9")) - {UNPROBED}


@dataclass(frozen=True)
class PayoffWorld:
    """A world by its name."""

    name: str
    settings: WorldSettings

    @property
    def judges(self) -> bool:
        """Whether nothing was chosen by it."""
        return not self.name.startswith("t")


def _world(name: str, seed: int, skills: int, **more: Any) -> PayoffWorld:
    """A world whose skills are drawn by its seed, of those that follow a rule."""
    rules = sorted(skill for skill in SKILLS if not skill.startswith("codes"))
    drawn = np.random.default_rng(seed).choice(rules, skills, replace=False).tolist()
    settings = {
        "width": 64, "layers": 2, "steps": 1200, "learning_rate": 3e-3, "noise": 0.97,
        "share_spread": 0.5, "items": 450, "largest_skill": 0.15, "seed": seed, **more,
    }  # fmt: skip
    return PayoffWorld(name, WorldSettings(tuple(sorted(drawn)), **settings))


WORLDS = (
    _world("t1", 903, 14),
    _world("p1", 911, 14),
    _world("p2", 912, 18),
    _world("p3", 913, 12, width=48, layers=3, steps=1400),
    _world("p4", 914, 16, noise=0.9),
    _world("p5", 915, 14, share_spread=0.8),
)


@dataclass(frozen=True)
class Probed:
    """A world that is ready to be trained in."""

    model: Path
    items: tuple[Question, ...]
    held_out: tuple[Question, ...]
    arms: Mapping[str, list[int]]
    """Of each arm that trains on some items, or in an order: their numbers."""
    counts: Mapping[str, list[Any]]
    """What `ItemSampler.of` reads."""
    rollouts: Mapping[str, int]
    """Of the probe that an arm needs; an arm that needs none is not there."""


def prepare(world: PayoffWorld, folder: Path) -> Probed:
    """Grow and probe a world and choose the items of each arm; what is there is read."""
    if not (folder / "world.json").exists():
        with _clock(f"{world.name}: grown"):
            grow_world(folder, world.settings)
    questions = read_questions(folder / "items.jsonl")
    trained = len(questions) * 2 // 3
    model, run, tagged = folder / "model", folder / "run", folder / "tagged.jsonl"
    if not tagged.exists():
        with _clock(f"{world.name}: probed"):
            write_questions(folder / "train.jsonl", questions[:trained])
            _tag(folder, tagged, run)
    found = _rows(tagged)
    kept = folder / "arms.json"
    arms = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    if EXACT_OF_ITEMS not in arms:
        with _clock(f"{world.name}: chosen"):
            arms = arms or _choose(run, found, folder)
            policy = LlamaForCausalLM.from_pretrained(model)
            size = len(arms["select"])
            arms[EXACT], arms[EXACT_OF_ITEMS] = exact_teaching(
                policy, questions[:trained], [questions[trained:], None], size, GROUP
            )
            _write(kept, arms)
    with_target = folder / "run-target"
    if TARGETED not in arms:
        with _clock(f"{world.name}: chosen for a target"):
            arms |= _choose_for_target(world, folder, with_target, questions, trained)
            _write(kept, arms)
    about = json.loads((with_target / TARGET / MANIFEST).read_text("utf-8"))
    spent = sum(row["total_rollouts"] for row in found)
    rollouts = dict.fromkeys(NEEDS_PROBE, spent)
    rollouts[TARGETED] = spent + about["stages"]["sample"]["rollouts"]
    names = ("item_id", "total_correct_rollouts", "total_rollouts")
    return Probed(
        model,
        tuple(questions[:trained]),
        tuple(questions[trained:]),
        arms,
        {name: [row[name] for row in found] for name in names},
        rollouts,
    )


def _tag(folder: Path, out: Path, run: Path, **more: Any) -> None:
    """Probe the items that are trained on."""
    about = json.loads((folder / "world.json").read_text("utf-8"))
    curate.tag(
        folder / "train.jsonl", model=str(folder / "model"), out=out, run_dir=run, instruction="",
        prompt_end="", verifier="exact", verifier_workers=1, max_tokens=about["max_tokens"], **more,
    )  # fmt: skip


def _choose_for_target(
    world: PayoffWorld, folder: Path, run: Path, questions: Sequence[Question], trained: int
) -> dict[str, list[int]]:
    """What teaches other questions of the world: as `curate` measures it, and exactly."""
    policy = LlamaForCausalLM.from_pretrained(folder / "model")
    # Their order is random, so that the first are like all.
    target = other_questions(policy, world.settings, 1_000 + world.settings.seed, questions)
    target = target[: len(questions) - trained]
    file, tagged = folder / "target.jsonl", folder / "tagged-target.jsonl"
    write_questions(file, target)
    _tag(folder, tagged, run, target=str(file))
    number = {row["item_id"]: n for n, row in enumerate(_rows(tagged))}
    chosen = folder / "chosen.jsonl"
    curate.select(run, out=chosen, budget=str(SHARE), by="teaching")
    ours = [number[row["item_id"]] for row in _rows(chosen)]
    (exact,) = exact_teaching(policy, questions[:trained], [target], len(ours), GROUP)
    return {TARGETED: ours, EXACT_OF_TARGET: exact}


def _choose(run: Path, found: Sequence[dict[str, Any]], folder: Path) -> dict[str, list[int]]:
    """What each arm trains on, by the product's own commands where there is one."""
    number = {row["item_id"]: n for n, row in enumerate(found)}
    out = folder / "chosen.jsonl"

    def written(command: Callable[..., Any], **options: Any) -> list[int]:
        command(run, out=out, **options)
        return [number[row["item_id"]] for row in _rows(out)]

    decided = ("easy", "learnable")
    arms = {
        "filter: easy, learnable": written(curate.filter, keep=decided, max_pass_rate=0.9),
        "filter: and undetermined": written(
            curate.filter, keep=(*decided, "undetermined"), max_pass_rate=0.9
        ),
        "select --by teaching": written(curate.select, budget=str(SHARE), by="teaching"),
        "select": written(curate.select, budget=str(SHARE)),
    }
    for name, rollouts in ((SCHEDULE, LONG), (f"{SCHEDULE}, short", SHORT)):
        epochs = max(1, round(rollouts / GROUP / len(found)))
        arms[name] = written(
            curate.order, by="schedule", epochs=epochs, repeats=3 * epochs, batch=TRAINING.prompts
        )
    rate = np.array([row["pass_rate"] for row in found])
    size = len(arms["select"])
    rng = np.random.default_rng(len(found))
    arms |= {
        FULL: list(range(len(found))),
        RANDOM: rng.permutation(len(found))[:size].tolist(),
        "largest p(1 − p)": np.argsort(-rate * (1 - rate), kind="stable")[:size].tolist(),
        "band 0.1 to 0.9": np.flatnonzero((rate >= 0.1) & (rate <= 0.9)).tolist(),
    }
    return arms


def one_training(
    probed: Probed, arm: str, seed: int, budget: int, settings: Grpo = TRAINING
) -> dict[str, Any]:
    """Train one arm until its budget of rollouts is spent; the step in hand is finished.

    Returns its curve: rollouts, steps and held-out pass rates, the first before training.
    """
    policy = LlamaForCausalLM.from_pretrained(probed.model)
    hear = None
    if arm in (SAMPLER, UNPROBED):
        draw, hear = _by_sampler(probed.counts, arm == SAMPLER, seed)
    elif arm == CHANCE:
        draw = _by_chance(policy, probed.items, seed)
    else:
        is_order = arm.startswith(SCHEDULE)
        name = f"{SCHEDULE}, short" if is_order and budget < LONG else arm
        draw = in_epochs(probed.arms[name], seed, shuffle=not is_order)

    points = [(0, 0, _mean_rate(policy, probed.held_out))]
    problems = [problem(each) for each in probed.items]
    for log in grpo(policy, problems, settings, seed, draw, sample=draw_each, hear=hear):
        reached = log.rollouts * EVALUATIONS // budget
        if log.rollouts >= budget or reached > points[-1][0] * EVALUATIONS // budget:
            points.append((log.rollouts, log.steps, _mean_rate(policy, probed.held_out)))
        if log.rollouts >= budget:
            break
    rollouts, steps, rates = zip(*points, strict=True)
    return {
        "rollouts": rollouts,
        "steps": steps,
        "rates": [round(rate, 6) for rate in rates],
        "with_signal": round(log.signals / log.groups, 4),
        "trained_items": round(_mean_rate(policy, probed.items), 6),
    }


def _mean_rate(policy: LlamaForCausalLM, questions: Sequence[Question]) -> float:
    return float(pass_probability(policy, questions).mean())


def _by_sampler(counts: Mapping[str, list[Any]], has_probe: bool, seed: int) -> tuple[Draw, Hear]:
    """Draws items by `recipes.sampler`, which hears of their rewards."""
    ids = counts["item_id"]
    if not has_probe:
        counts = {name: ids if name == "item_id" else [None] * len(ids) for name in counts}
    sampler = ItemSampler.of(counts, SamplerSettings(group_size=GROUP, seed=seed))

    def hear(items: Sequence[int], right: NDArray[np.bool_]) -> None:
        sampler.observe([ids[i] for i in items for _ in range(GROUP)], right.ravel().tolist())

    return lambda step, count: sampler.draw(count), hear


def _by_chance(policy: LlamaForCausalLM, items: Sequence[Question], seed: int) -> Draw:
    """Draws items by the exact chance that their group has a signal, read at every eighth draw."""
    rng = np.random.default_rng(seed)
    draws, chance = itertools.count(), np.zeros(0)

    def draw(step: int, count: int) -> list[int]:
        nonlocal chance
        if next(draws) % 8 == 0:
            chance = signal_of(pass_probability(policy, items), GROUP) + 1e-9
        return rng.choice(len(chance), count, replace=False, p=chance / chance.sum()).tolist()

    return draw


def trainings() -> list[tuple[str, int]]:
    """Arm and budget of every training of a world and seed: a short one is the beginning of a long
    one, but for the schedule, which knows its length."""
    return [*((arm, LONG) for arm in ARMS), (SCHEDULE, SHORT)]


def curve_file(folder: Path, arm: str, budget: int, seed: int) -> Path:
    """Where a training's curve is kept."""
    name = "".join(letter if letter.isalnum() else "-" for letter in arm)
    return folder / "curves" / f"{name}-{budget}-{seed}.json"


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(value))


@contextmanager
def _clock(done: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"{done} in {time.monotonic() - start:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    judged = [world.name for world in WORLDS if world.judges]
    parser.add_argument("--folder", type=Path, default=Path("runs/payoff-grown"))
    parser.add_argument("--worlds", nargs="+", default=judged, help=f"default: {' '.join(judged)}")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many at most")
    parser.add_argument("--minutes", type=float, default=35, help="begin nothing new after these")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    until = time.monotonic() + 60 * options.minutes
    worlds = [world for world in WORLDS if world.name in options.worlds]
    probed = {world.name: prepare(world, options.folder / world.name) for world in worlds}
    for seed in SEEDS[: options.seeds]:
        for world in worlds:
            if time.monotonic() > until:
                break
            with _clock(f"{world.name}, seed {seed}: trained"):
                for arm, budget in trainings():
                    file = curve_file(options.folder / world.name, arm, budget, seed)
                    if not file.exists():
                        _write(file, one_training(probed[world.name], arm, seed, budget))
    from benchmarks.selection.grown_table import print_tables

    print_tables(options.folder, {name: each.rollouts for name, each in probed.items()})


if __name__ == "__main__":
    main()
