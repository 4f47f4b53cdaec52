"""What is trained on under one budget of rollouts: `select`, rivals, a schedule and the sampler.

    python -m benchmarks.selection.arms

In worlds of enumerable policies (`benchmarks.selection.worlds`) 400 items are probed with 64
rollouts each and arms train with 16 groups of 8 a step, all for as many steps. 300 held-out items
of the same kinds say what came of it. Each world is another seed, and arms are compared within it.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.selection.worlds import GROUP, World, train
from curate.run.rollouts import Outcomes
from curate.tagged.schedule import Aim, schedule_rows
from probes.forecast.pass_probability import fit_pass_probability
from probes.lift.gradients import LiftInputs, measure_lift
from probes.lift.item_gradients import item_gradients
from probes.stages.forecast import CONSTANTS, GRADIENTS, run_forecast
from probes.stages.lift import ItemLift
from recipes.sampler.items import ItemSampler, SamplerSettings
from recipes.select.choose import Candidates, choose_items
from recipes.select.teaching import Taught

ITEMS, HELD_OUT, BATCH, ROLLOUTS = 400, 300, 16, 64
Chosen = dict[str, NDArray[np.intp]]


def choose(probe: LiftInputs, share: float, rng: np.random.Generator) -> Chosen:
    """The items of each arm that trains on some of them, by what the probe saw."""
    found = Outcomes(probe.judged, probe.judged, probe.correct)
    raw = measure_lift(probe, ~found.is_easy(0.1), group_size=GROUP)
    known = np.isfinite(raw.lift)
    unit = raw.weight[known] @ raw.lift[known] / raw.weight[known].sum()
    forecast = run_forecast(
        found,
        ItemLift(raw.lift / unit, raw.standard_error / unit, raw.degrees_of_freedom),
        GRADIENTS,
        CONSTANTS[GRADIENTS],
        fit_pass_probability(found.judged, found.correct, None),
        tau=0.1,
        horizon=1.0,
    )
    rate = probe.correct / probe.judged
    kinds = [""] * ITEMS
    candidates = Candidates(forecast.pass_rate - rate, raw.teaching, rate, kinds)
    vectors = item_gradients(probe, group_size=GROUP, loss="grpo")
    size = round(share * ITEMS)

    def selected(by: str, from_gradients: bool) -> NDArray[np.intp]:
        taught = None
        if from_gradients:
            room = 1 - forecast.pass_rate
            taught = Taught(vectors.step, vectors.pupil, room, size, np.arange(ITEMS))
        return np.flatnonzero(choose_items(candidates, by, {"": size}, 0.05, taught).chosen)

    return {
        "full": np.arange(ITEMS),
        "random": rng.choice(ITEMS, size, replace=False),
        "band 0.1 to 0.9": np.flatnonzero((rate >= 0.1) & (rate <= 0.9)),
        "largest p(1 − p)": np.argsort(-rate * (1 - rate), kind="stable")[:size],
        "select --by gain": selected("gain", False),
        "select --by teaching, file": selected("teaching", False),
        "select --by teaching, run": selected("teaching", True),
        "select --by both, file": selected("both", False),
        "select --by both, run": selected("both", True),
    }


def one_world(seed: int, steps: int, kinds: int, share: float) -> dict[str, NDArray[np.float64]]:
    """The curve of every arm."""
    world = World.make(seed, ITEMS + HELD_OUT, kinds)
    held_out = np.arange(ITEMS, ITEMS + HELD_OUT)
    rng = np.random.default_rng([seed, 1])
    probe = world.probe(rng, ITEMS, ROLLOUTS)
    curves = {}

    def run(name: str, batch_of: Callable[[int], NDArray[np.intp]], told: Any = None) -> None:
        of_training = np.random.default_rng([seed, 2])
        curves[name] = train(world, batch_of, steps, held_out, of_training, told)

    for name, items in choose(probe, share, rng).items():
        shuffled = np.random.default_rng([seed, 3])
        epochs = -(-steps * BATCH // len(items))
        order = np.concatenate([shuffled.permutation(items) for _ in range(epochs)])
        run(name, lambda step, order=order: order[step * BATCH : (step + 1) * BATCH])
    epochs = max(1, -(-steps * BATCH // ITEMS))
    rate = probe.correct / probe.judged
    plan = schedule_rows(
        rate, [""] * ITEMS, Aim(), epochs=epochs, batch=BATCH, repeats=3 * epochs, seed=seed
    )
    # Its length is that of whole epochs; what is left over of the last one is passed over evenly.
    kept = plan.places[np.linspace(0, len(plan.places) - 1, steps * BATCH).astype(int)]
    run("order --by schedule", lambda step: kept[step * BATCH : (step + 1) * BATCH])
    sampler = ItemSampler(
        [str(item) for item in range(ITEMS)], probe.correct.tolist(), probe.judged.tolist(),
        SamplerSettings(group_size=GROUP, seed=seed),
    )  # fmt: skip

    def told(items: NDArray[np.intp], rewards: NDArray[np.float64]) -> None:
        ids = [str(item) for item in items for _ in range(GROUP)]
        sampler.observe(ids, [bool(reward) for reward in rewards.reshape(-1)])

    run("the sampler", lambda _: np.array(sampler.draw(BATCH)), told)
    return curves


def main() -> None:
    """Print a table for each of the budgets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=30, help="how many seeds (default: 30)")
    options = parser.parse_args()
    for steps, kinds, share in ((60, 8, 0.25), (60, 24, 0.1), (250, 8, 0.25)):
        found = [one_world(seed, steps, kinds, share) for seed in range(options.worlds)]
        print(f"\n{steps} steps, {kinds} kinds, {share:g} of the items, {len(found)} worlds\n")
        print("| arm | held-out, first half | at the end | less full, first half | at the end |")
        print("|---|---|---|---|---|")
        half = steps // 20
        values = {
            name: np.array([[each[name][:half].mean(), each[name][-1]] for each in found])
            for name in found[0]
        }
        for name, each in values.items():
            more = each - values["full"]
            error = 1.96 * more.std(axis=0, ddof=1) / np.sqrt(len(more))
            means = " | ".join(f"{value:.3f}" for value in each.mean(axis=0))
            less = " | ".join(
                f"{value:+.3f} ± {half_width:.3f}"
                for value, half_width in zip(more.mean(axis=0), error, strict=True)
            )
            print(f"| {name} | {means} | {' | ' if name == 'full' else less} |")


if __name__ == "__main__":
    main()
