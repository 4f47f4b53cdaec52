"""Grown worlds to judge forecasts by: each is grown, probed, and trained with three seeds.

    python -m benchmarks.forecast.grown_worlds d1 k1 --folder runs/worlds        some
    python -m benchmarks.forecast.grown_worlds --folder runs/worlds              all

A world is a small Llama with items out of its own failures (`tests/worlds/grown.py`). In
FOLDER/NAME:

    model/, items.jsonl, world.json    the world, from `grow_world`
    run/                               `curate tag`, as many rollouts of every item
    run/validation/world/SEED/         `curate validate`: outcomes after GRPO, three seeds
    run/pilot/tenth/1/                 `curate forecast --lift pilot`, a tenth of the steps
    DONE                               all of it is there

Rollouts are numbered within an item, so that the first 16, 32, 64, ... of them are what a smaller
probe would have drawn.

The judging worlds k1, k2 and k3 judge a method and its constants, and may choose nothing of either:
they were specified before any of their outcomes was there, trainings and all. The others may be
used to choose: the design worlds d1, d2, d3, and j1, j2, j3, which judged the method before. Of
those the share of hard items that is learned, and how far the seeds agree, was looked at to set
learning rate and steps. Worlds differ in skills, width, depth, label noise, pretraining, lengths of
answers, and length of the training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.worlds.grown import WorldSettings, grow_world

TAU = 0.1
TRAINING_SEEDS = (1, 42, 37)
PILOT_PART = 10
"""A pilot is the first of so many parts of the training."""


@dataclass(frozen=True)
class Training:
    """GRPO of all parameters.

    Attributes:
        steps: of `prompts` groups of 8 rollouts.
        learning_rate: of AdamW, constant.
        prompts: groups that reach the loss in a step.
        most_rounds: times that as many groups are sampled as the step still lacks.
    """

    steps: int
    learning_rate: float = 1e-3
    prompts: int = 64
    most_rounds: int = 3

    def recipe(self, part: int = 1) -> str:
        """The recipe of one part in so many of the steps, as a TOML file."""
        steps = max(self.steps // part, 1)
        return f"""\
extends = "baseline"
max_steps = {steps}
prompts_per_step = {self.prompts}
updates_per_step = 1
learning_rate = {self.learning_rate}
beta = 0.0
max_completion_length = 0
max_sampling_rounds = {self.most_rounds}
evaluation_temperature = 1.0
evaluation_rollouts = 128
rows_per_pass = 512
save_every = {steps}
"""


@dataclass(frozen=True)
class BenchmarkWorld:
    """A world, its probe and the training in it.

    Attributes:
        name: of its folder.
        settings: of the world itself.
        training: what its outcomes come from.
        rollouts: of every item in the probe.
    """

    name: str
    settings: WorldSettings
    training: Training
    rollouts: int = 512

    @property
    def judges(self) -> bool:
        """Whether it was kept out of all choices of method."""
        return self.name.startswith("k")


_STEPPED = ("total", "sum_times", "product_plus", "span", "digit_sum", "median")

_D1 = (
    *("plus", "sum", "minus", "gap", "times", "product", "mod", "gcd", "min", "lower", "clock"),
    *("back", "sort", "order", "reverse", "first", "at", "count", "codes0", "codes1"),
    *("successor", "double"),
)
_D2 = (
    *("plus", "sum", "minus", "times", "product", "max", "clock", "order", "reverse", "first"),
    *("codes0", "codes2", *_STEPPED),
)
_D3 = (
    *("sum", "minus", "gap", "mod", "gcd", "min", "max", "back", "compare", "sequence", "sort"),
    *("swap", "shift", "last", "ends", "count", "rotate", "codes1", "codes3", "sevens"),
)
_J1 = (
    *("sum", "gap", "product", "mod", "max", "lower", "min", "back", "compare", "tens", "sevens"),
    *("sequence", "fall", "swap", "copy", "last", "ends", "highest", "place", "codes2", "codes3"),
)
_J2 = (
    *("plus", "sum", "minus", "times", "gcd", "clock", "max", "order", "reverse", "at", "count"),
    *("codes2", "codes3", *_STEPPED),
)
_J3_STEPPED = ("total", "median", "span")
_J3 = (
    *("plus", "sum", "times", "gcd", "clock", "back", "double", "successor", "sort", "rotate"),
    *("shift", "first", "at", "distinct", "ones", "codes4", "codes5", "codes6", *_J3_STEPPED),
)
_K1_STEPPED = ("total", "product_plus", "digit_sum", "span")
_K1_WORKING = ("minus", "product", "sequence", "place", "reverse", *_K1_STEPPED)
_K1 = (
    *("minus", "gap", "product", "mod", "min", "lower", "back", "double", "tens", "sequence"),
    *("fall", "reverse", "swap", "copy", "place", "highest", "distinct", "codes0", "codes5"),
    *_K1_STEPPED,
)
_K2 = (
    *("sum", "times", "gcd", "max", "clock", "compare", "successor", "sevens", "order", "sort"),
    *("rotate", "shift", "first", "last", "at", "ends", "ones", "count", "codes1", "codes3"),
    *("codes6", "sum_times", "median"),
)
_K3_WORKING = ("median", "sum_times", "double")
_K3 = (
    *("plus", "gap", "times", "gcd", "max", "back", "compare", "sevens", "double", "fall", "order"),
    *("copy", "last", "place", "swap", "highest", "rotate", "count", "codes2", "codes4", "median"),
    *("sum_times", "at"),
)

WORLDS = (
    BenchmarkWorld(
        "d1",
        WorldSettings(_D1, steps=600, batch=192, learning_rate=3e-3, seed=1),
        Training(steps=60, learning_rate=3e-4, most_rounds=10),
        rollouts=1024,
    ),
    BenchmarkWorld(
        "d2",
        WorldSettings(
            *(_D2, _STEPPED),
            width=64, layers=4, steps=500, batch=128, learning_rate=3e-3, noise=0.8,
            items=300, candidates=160, working_samples=128, seed=2,
        ),
        Training(steps=100, learning_rate=7e-4),
    ),
    BenchmarkWorld(
        "d3",
        WorldSettings(
            _D3,
            width=128, layers=2, steps=450, batch=192, learning_rate=3e-3,
            items=300, largest_skill=0.1, seed=3,
        ),
        Training(steps=30, prompts=128),
    ),
    BenchmarkWorld(
        "j1",
        WorldSettings(
            _J1,
            width=80, layers=3, steps=600, batch=192, learning_rate=3e-3,
            items=320, largest_skill=0.1, seed=11,
        ),
        Training(steps=30, prompts=128),
        rollouts=1024,
    ),
    BenchmarkWorld(
        "j2",
        WorldSettings(
            *(_J2, _J2),
            width=96, layers=2, steps=600, batch=128, learning_rate=3e-3, noise=0.7,
            items=300, largest_skill=0.1, candidates=120, working_samples=128, seed=12,
        ),
        Training(steps=60, learning_rate=8e-4, prompts=96),
    ),
    BenchmarkWorld(
        "j3",
        WorldSettings(
            *(_J3, _J3_STEPPED),
            width=64, layers=3, steps=600, batch=192, learning_rate=3e-3,
            items=300, largest_skill=0.1, working_samples=128, seed=13,
        ),
        Training(steps=200, learning_rate=7e-4, prompts=48),
    ),
    BenchmarkWorld(
        "k1",
        WorldSettings(
            *(_K1, _K1_WORKING),
            width=112, layers=2, steps=500, batch=128, learning_rate=3e-3, noise=0.8,
            items=300, largest_skill=0.1, candidates=200, working_samples=128, seed=21,
        ),
        Training(steps=50, learning_rate=8e-4, prompts=80),
    ),
    BenchmarkWorld(
        "k2",
        WorldSettings(
            _K2,
            width=48, layers=4, steps=700, batch=160, learning_rate=3e-3,
            items=300, largest_skill=0.1, seed=22,
        ),
        Training(steps=100, learning_rate=7e-4, prompts=48),
    ),
    BenchmarkWorld(
        "k3",
        WorldSettings(
            *(_K3, _K3_WORKING),
            width=64, layers=2, steps=550, batch=144, learning_rate=3e-3,
            items=300, largest_skill=0.1, candidates=200, working_samples=128, seed=23,
        ),
        Training(steps=60, learning_rate=1.2e-3, prompts=80),
    ),
)  # fmt: skip


def build(world: BenchmarkWorld, folder: Path) -> None:
    """Bring a world to its outcomes; a step whose result is there is skipped.

    Raises:
        subprocess.CalledProcessError: a command failed; its own message is on standard error.
    """
    run, items, tagged = folder / "run", folder / "items.jsonl", folder / "tagged.jsonl"
    if not (folder / "world.json").exists():
        with _clock(world, "grown"):
            grow_world(folder, world.settings)
    if not tagged.exists():
        about = json.loads((folder / "world.json").read_text(encoding="utf-8"))
        rollouts = str(world.rollouts)
        with _clock(world, "probed"):
            _curate(
                *("tag", str(items), "--model", str(folder / "model"), "--instruction", ""),
                *("--out", str(tagged), "--run-dir", str(run), "--verifier", "exact"),
                *("--verifier-workers", "1", "--max-tokens", str(about["max_tokens"])),
                *("--min-rollouts", rollouts, "--max-rollouts", rollouts),
                *("--gradient-rollouts", "1"),
            )
    recipe = folder / "world.toml"
    if not recipe.exists() or recipe.read_text(encoding="utf-8") != world.training.recipe():
        recipe.write_text(world.training.recipe(), encoding="utf-8")
    with _clock(world, "trained"):
        seeds = ",".join(map(str, TRAINING_SEEDS))
        _curate("validate", str(run), "--recipe", str(recipe), "--seeds", seeds)
    pilot = folder / "tenth.toml"
    if not pilot.exists():
        pilot.write_text(world.training.recipe(PILOT_PART), encoding="utf-8")
        with _clock(world, "piloted"):
            _curate("forecast", str(run), "--lift", "pilot", "--recipe", str(pilot))
    (folder / "DONE").touch()


@dataclass(frozen=True)
class Outcomes:
    """What became of a world's hard items, those with a correct rollout and a pass rate below 0.1.

    Attributes:
        hard: how many there are.
        learned, unlearned: shares of them at 0.1 or above after training in every seed, in none.
        seeds_agree: probability that two seeds say the same of an item.
    """

    hard: int
    learned: float
    unlearned: float
    seeds_agree: float


def outcomes(run: Path) -> Outcomes:
    """Read the shares that a training's length is set by, and nothing of any prediction."""
    tables = [
        pq.read_table(run / f"validation/world/{seed}/outcomes.parquet").sort_by("item_id")
        for seed in TRAINING_SEEDS
    ]
    initial = tables[0]["initial_pass_rate"].to_numpy()
    is_hard = (initial > 0) & (initial < TAU)
    is_learned = np.array([table["final_pass_rate"].to_numpy() >= TAU for table in tables])
    found = is_learned[:, is_hard]
    count, seeds = found.sum(axis=0), len(tables)
    pairs = count * (count - 1) + (seeds - count) * (seeds - count - 1)
    return Outcomes(
        hard=int(is_hard.sum()),
        learned=float((count == seeds).mean()),
        unlearned=float((count == 0).mean()),
        seeds_agree=float(pairs.mean() / (seeds * (seeds - 1))),
    )


def _curate(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "curate", *arguments], check=True, env=environment)


@contextmanager
def _clock(world: BenchmarkWorld, done: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"{world.name}: {done} in {time.monotonic() - start:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build what is missing, and print the shares of each world's hard items."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [world.name for world in WORLDS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--folder", type=Path, default=Path("runs/worlds"))
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.names) - set(names)
    if unknown:
        parser.error(f"no world {sorted(unknown)[0]!r}: there are {', '.join(names)}")
    print("world  hard items  learned  unlearned  seeds agree", flush=True)
    for world in WORLDS:
        if chosen.names and world.name not in chosen.names:
            continue
        build(world, chosen.folder / world.name)
        found = outcomes(chosen.folder / world.name / "run")
        shares = (found.learned, found.unlearned, found.seeds_agree)
        print(f"{world.name:5} {found.hard:11}", *(f"{share:9.2f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
