"""Does more pretraining on a cluster that `curate gaps` names lift its items, and no other's?

    python -m benchmarks.study.grown_gaps --folder runs/interventions-grown

In three of the worlds of `benchmarks.study.grown_interventions`: `curate tag` (512 rollouts an
item), `curate gaps`, and up to five clusters that share no skill with each other, the largest
first: named ones (`candidate` or `perhaps`) and `taught` ones in turn, so that up to three are
named. For each cluster the world's policy is pretrained 200 steps more, half on fresh questions of
the skills of its items, half as before; then comes the baseline's GRPO, two seeds. Its items,
which that pretraining never shows, are read under every policy of the world. What is there is not
done again.

The rule, fixed before any of these policies was trained (but that the second seed of GRPO
was added when the first had shown how much a cluster of two items owes to chance):

- own less others': an item's final pass probability with its own cluster's pretraining, less the
  mean of those with the others' of the world. Named clusters are lifted where the 95 % interval of
  the mean over named clusters (Student's, a cluster a unit) is above 0.
- Another's pretraining does not lift them where the interval of others' less none (GRPO alone) is
  not above 0.
- Named more than taught: Welch's interval of the difference of own less none between the two kinds,
  and the same for own less none beyond what pretraining itself raised the pass probability by.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import LlamaForCausalLM

from benchmarks.study.grown_interventions import (
    COMPARED_SEEDS,
    WORLDS,
    Run,
    World,
    more_pretraining,
    open_world,
)
from benchmarks.study.interval import Interval
from benchmarks.study.smollm2 import run_curate
from benchmarks.training.rollouts import problem
from curate import gaps
from curate.files import write_atomically
from recipes.gaps.clusters import CANDIDATE, PERHAPS, TAUGHT
from tests.worlds.grown import pass_probability

NAMES = ("i1", "i2", "i3")
ROLLOUTS, STEPS, MOST = "512", 200, 5
SEEDS = COMPARED_SEEDS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Chosen:
    """A cluster whose skills are pretrained on."""

    places: NDArray[np.intp]
    """Of its items in the world."""
    verdict: str
    skills: tuple[str, ...]

    @property
    def is_named(self) -> bool:
        """Whether mid-training is suggested for it."""
        return self.verdict in (CANDIDATE, PERHAPS)


def clusters_of(world: World) -> list[dict[str, Any]]:
    """What `curate gaps` says of a world, tagged if need be; the places of each cluster's items."""
    folder = world.folder
    if not (folder / "tagged.jsonl").exists():
        about = json.loads((folder / "world.json").read_text(encoding="utf-8"))
        run_curate(
            *("tag", str(folder / "items.jsonl"), "--model", str(folder / "model")),
            *("--out", str(folder / "tagged.jsonl"), "--run-dir", str(folder / "run")),
            *("--instruction", "", "--verifier", "exact", "--verifier-workers", "1"),
            *("--max-tokens", str(about["max_tokens"])),
            *("--min-rollouts", ROLLOUTS, "--max-rollouts", ROLLOUTS),
        )
    lines = (folder / "tagged.jsonl").read_text(encoding="utf-8").splitlines()
    place_of = {json.loads(line)["item_id"]: n for n, line in enumerate(lines)}
    found: list[dict[str, Any]] = gaps(folder / "run")["clusters"]
    return [each | {"places": [place_of[name] for name in each["item_ids"]]} for each in found]


def choose(world: World, clusters: Sequence[Mapping[str, Any]]) -> list[Chosen]:
    """Named and taught ones in turn, the largest first, no skill twice."""
    kinds = [[], []]  # type: list[list[Chosen]]
    for each in clusters:
        skills = tuple(sorted({world.questions[n].skill for n in each["places"]}))
        cluster = Chosen(np.array(each["places"], np.intp), each["verdict"], skills)
        kinds[each["verdict"] == TAUGHT].append(cluster)
    chosen: list[Chosen] = []
    turn, passed = 0, 0
    while len(chosen) < MOST and passed < 2:
        used = {skill for each in chosen for skill in each.skills}
        free = [each for each in kinds[turn % 2] if not used & set(each.skills)]
        passed = 0 if free else passed + 1
        chosen += free[:1]
        turn += 1
    return chosen


def pretrained(world: World, chosen: Sequence[Chosen], number: int) -> LlamaForCausalLM:
    """The policy after the pretraining on a cluster; -1: the world's own."""
    if number < 0:
        return copy.deepcopy(world.model)
    folder = world.folder / "gaps" / f"policy-{number}"
    if not (folder / "config.json").exists():
        model = more_pretraining(world, chosen[number].places, 100 + number, STEPS)
        aside = folder.with_name(f"{folder.name}.part")
        model.save_pretrained(aside)
        aside.rename(folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def outcome(world: World, chosen: Sequence[Chosen], number: int, seed: int) -> dict[str, Floats]:
    """Pass probabilities (items,) `before`, after the pretraining on a cluster, and `final`."""
    name = str(number) if seed == SEEDS[0] else f"{number}-{seed}"
    file = world.folder / "gaps" / f"{name}.json"
    if not file.exists():
        start = time.process_time()
        file.parent.mkdir(exist_ok=True)
        model = pretrained(world, chosen, number)
        before = pass_probability(model, world.questions)
        run = Run(world, seed, model, [problem(each) for each in world.questions], {}, {})
        run.grpo()
        found = {
            "before": before.tolist(),
            "final": pass_probability(model, world.questions).tolist(),
            "seconds": time.process_time() - start,
        }
        write_atomically(file, json.dumps(found) + "\n")
        print(f"{world.folder.name} {name}: {found['seconds']:.0f} s of a processor", flush=True)
    read = json.loads(file.read_text(encoding="utf-8"))
    return {each: np.array(read[each]) for each in ("before", "final")}


@dataclass(frozen=True)
class Row:
    """A cluster: means over its items."""

    world: str
    cluster: Chosen
    start: float
    own_before: float
    others_before: float
    none: float
    others: float
    own: float


def rows_of(world: World) -> list[Row]:
    """All chosen clusters of a world."""
    chosen = choose(world, clusters_of(world))
    found = {
        number: [outcome(world, chosen, number, seed) for seed in SEEDS]
        for number in range(-1, len(chosen))
    }
    rows = []
    for number, cluster in enumerate(chosen):

        def mean(which: int, what: str, places: NDArray[np.intp] = cluster.places) -> float:
            return float(np.mean([each[what][places] for each in found[which]]))

        others = [n for n in range(len(chosen)) if n != number]
        rows.append(
            Row(
                world.folder.name,
                cluster,
                mean(-1, "before"),
                mean(number, "before"),
                float(np.mean([mean(n, "before") for n in others])),
                mean(-1, "final"),
                float(np.mean([mean(n, "final") for n in others])),
                mean(number, "final"),
            )
        )
    return rows


def text(rows: Sequence[Row]) -> str:
    """The table, and what the rule makes of it."""
    lines = [
        "| world | cluster | skills | items | before | own pretraining | others' "
        "| GRPO alone | others', GRPO | own, GRPO |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = (row.start, row.own_before, row.others_before, row.none, row.others, row.own)
        lines.append(
            f"| {row.world} | {row.cluster.verdict} | {', '.join(row.cluster.skills)} "
            f"| {len(row.cluster.places)} | {' | '.join(f'{each:.3f}' for each in numbers)} |"
        )
    named = [row for row in rows if row.cluster.is_named]
    taught = [row for row in rows if not row.cluster.is_named]
    lines.append("")
    for kind, part in (("named", named), ("taught", taught)):
        if len(part) < 2:
            lines.append(f"- {kind}: {len(part)} clusters, too few to compare.")
            continue
        for name, values in (
            ("own less others', after GRPO", [row.own - row.others for row in part]),
            ("others' less none, after GRPO", [row.others - row.none for row in part]),
            ("own less none, after GRPO", [row.own - row.none for row in part]),
            ("own less none beyond the pretraining", [_beyond(row) for row in part]),
            ("own less others', before GRPO", [r.own_before - r.others_before for r in part]),
        ):
            found = Interval.of(np.array(values))
            lines.append(f"- {kind}, {len(part)} clusters: {name}: {found.text()}.")
    if min(len(named), len(taught)) > 1:
        for name, one, other in (
            ("own less none", [r.own - r.none for r in named], [r.own - r.none for r in taught]),
            ("beyond the pretraining", [*map(_beyond, named)], [*map(_beyond, taught)]),
        ):
            low, high = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
            found = Interval(float(np.mean(one) - np.mean(other)), float(low), float(high))
            lines.append(f"- named less taught, {name}: {found.text()}.")
    return "\n".join(lines)


def _beyond(row: Row) -> float:
    return (row.own - row.none) - (row.own_before - row.start)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/interventions-grown"))
    folder: Path = parser.parse_args(arguments).folder
    torch.set_num_threads(1)
    rows = [row for name in NAMES for row in rows_of(open_world(folder / name, WORLDS[name]))]
    print(text(rows))


if __name__ == "__main__":
    main()
