"""Does the forecast tell better than the pass rate what training will do to an item?

    python -m benchmarks.forecast fit d1 d2 d3                constants, on design worlds
    python -m benchmarks.forecast show d1 d2 d3               figures of design worlds
    python -m benchmarks.forecast judge k1 k2 k3 --out FILE   figures of judging worlds

reads worlds that `benchmarks/forecast/grown_worlds.py` has made in `--folder`. `fit` prints the
constants of greatest likelihood of each world and of all (`benchmarks/forecast/fit.py`), which
stand in `probes/stages/forecast.py`. `judge` takes what stands there as it is and writes the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from benchmarks.forecast.calibrated import calibrated_world
from benchmarks.forecast.data import BUDGETS, World, probe_at, read_world
from benchmarks.forecast.figures import WorldFigures, auroc_within, measure_world
from benchmarks.forecast.fit import LiftOf, evidence, fit_constants, mean_loss
from benchmarks.forecast.grown_worlds import WORLDS
from benchmarks.forecast.page import calibrated_table, page, world_tables
from benchmarks.forecast.pilot import pilot_folders, pilot_lift
from benchmarks.forecast.scores import KIN_WEIGHT, KIN_WEIGHTS, with_kin
from probes.forecast.model import Constants
from probes.stages.forecast import CONSTANTS
from probes.stages.lift import GRADIENTS, PILOT
from recipes.statistics.agreement import auroc


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, show or judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("fit", "show", "judge"))
    parser.add_argument("names", nargs="+", metavar="WORLD")
    parser.add_argument("--folder", type=Path, default=Path("runs/worlds"))
    parser.add_argument("--out", type=Path, help="of judge: the page, with a .json beside it")
    chosen = parser.parse_args(arguments)
    judging = {world.name for world in WORLDS if world.judges}
    if chosen.what == "judge" and not chosen.out:
        parser.error("judge needs --out FILE")
    for name in chosen.names:
        if (name in judging) != (chosen.what == "judge"):
            parser.error(f"{chosen.what} {name}: design worlds choose, judging worlds judge")
    worlds = [read_world(chosen.folder / name) for name in chosen.names]
    if chosen.what == "fit":
        fit(worlds)
    elif chosen.what == "show":
        for world in worlds:
            found = _measured(world)
            print(f"{world_tables(found)}\n\n{calibrated_table([found])}", flush=True)
    else:
        judge(worlds, chosen.out)


def fit(worlds: Sequence[World]) -> None:
    """Print the constants of each world and of all, by source, and the weights of kin."""
    sources: dict[str, tuple[list[World], LiftOf]] = {
        GRADIENTS: (
            list(worlds),
            lambda probe: probe.lift,
        ),
        PILOT: (
            [world for world in worlds if pilot_folders(world)],
            lambda probe: pilot_lift(probe, pilot_folders(probe.world)),
        ),
    }
    for source, (known, lift_of) in sources.items():
        if not known:
            print(f"{source}: no world has it")
            continue
        found = {
            world.name: evidence(world, lift_of, source, CONSTANTS[GRADIENTS]) for world in known
        }
        print(f"{source}, constants; loss in nats an item and seed, and that of the present ones")
        for names in [*([name] for name in found), list(found)][: 1 if len(found) == 1 else None]:
            each = [found[name] for name in names]
            constants = fit_constants(each, CONSTANTS[source])
            losses = [
                np.mean([mean_loss(one, some) for one in each])
                for some in (constants, CONSTANTS[source])
            ]
            print(f"  {'+'.join(names):12} {_words(constants)}   {losses[0]:.4f}  {losses[1]:.4f}")
        print(f"  {'present':12} {_words(CONSTANTS[source])}", flush=True)
    print(f"kin, mean AUROC (within skills) over worlds and budgets; present weight {KIN_WEIGHT}")
    rows = [_kin_aurocs(world) for world in worlds]
    for place, weight in enumerate(KIN_WEIGHTS):
        overall, within = np.mean([row[place] for row in rows], axis=0)
        print(f"  {weight:<5g} {overall:.3f} ({within:.3f})")


def _words(constants: Constants) -> str:
    return "  ".join(f"{name} {value:6.3f}" for name, value in asdict(constants).items())


def _kin_aurocs(world: World) -> list[tuple[float, float]]:
    """By weight: mean over the budgets of AUROC and AUROC within skills."""
    judged = world.is_judged
    outcome, skills = world.learned_by_all[judged], world.skills[judged]
    rates = [probe_at(world, budget, CONSTANTS[GRADIENTS]).pass_rate for budget in BUDGETS]
    found = []
    for weight in KIN_WEIGHTS:
        scores = [with_kin(rate, world.skills, weight)[judged] for rate in rates]
        measures = [(auroc(outcome, s), auroc_within(outcome, s, skills)) for s in scores]
        overall, within = np.mean(np.array(measures, dtype=np.float64), axis=0)
        found.append((float(overall), float(within)))
    return found


def _measured(world: World) -> WorldFigures:
    return replace(measure_world(world, CONSTANTS), calibrated=calibrated_world(world, CONSTANTS))


def judge(worlds: Sequence[World], out: Path) -> None:
    """Write the page and its figures."""
    found = [_measured(world) for world in worlds]
    out.write_text(page(found, CONSTANTS), encoding="utf-8")
    figures = {
        "constants": {source: asdict(constants) for source, constants in CONSTANTS.items()},
        "worlds": [each.plain() for each in found],
    }
    out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {out} and {out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
