"""Which similarity tells the planted world's learnable items from those answered by chance?

Builds the world of `tests/planted_world.py` once a seed, samples every item 256 times, takes the
gradients of up to 16 correct rollouts an item, and prints the AUROC of each estimator for learnable
against chance among the items whose measured pass rate is above 0 and below τ. Then it proves the
construction: GRPO (64 prompts x 8, AdamW at 1e-4, all parameters, no KL term), and the share of
each kind whose exact pass probability ends at τ or more.

    python benchmarks/planted_estimators.py                    one seed: about 3 minutes
    python benchmarks/planted_estimators.py --seeds 0 1 2

For the unit gradients u_r of an item's rollouts, their mean m_i, and v̂ = v / ‖v‖:

    mean direction      mean over r of u_r · d,  d the direction of the sum of the other items' m_j
                        (`probes.similarity`); `easy`: of the other easy items'
    mean cosine         mean over the other items j of cos(m_i, m_j) (the paper's)
    plain k nearest     the same over the k easy items of highest cosine, chosen and measured on the
                        same rollouts
    halves k nearest    neighbours chosen on one half of the rollouts, u_r · d of the other half,
                        d the direction of the sum of the neighbours' m̂_j; both ways, 4 splits
    one out k nearest   neighbours chosen on all rollouts but r, mean over r of u_r · d
    one out span        ridge regression of the item's other rollouts on the easy items' m̂_j in
                        place of a choice: d = Σ_j w_j m̂_j, (C + λI) w = M̂ m_{−r}, C = M̂ M̂ᵀ

`agreement` is how well the stated standard errors fit: the mean of (x1 − x2)² / (se1² + se2²) for
two independent samples of an item's rollouts against the same easy items; 1 is right, more is
overconfident. `few` is the mean similarity from the first 4 of 16 gradients over that from all 16;
1 is no bias from having few rollouts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from probes.engine import SampleRequest
from probes.similarity import measure_similarity
from probes.transformers_engine import TransformersEngine
from tests.planted_probe import ProbedWorld, load_world_policy, probe_world, prompt_token_ids
from tests.planted_world import (
    CHANCE,
    EASY,
    LEARNABLE,
    MAX_TOKENS,
    NEVER,
    PlantedWorld,
    build_world,
    pass_probability,
)

Floats = NDArray[np.float64]

TAU = 0.1
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {
    "q, v": ("q_proj", "v_proj"),
    "attention": ATTENTION,
    "all linear": (*ATTENTION, "gate_proj", "up_proj", "down_proj"),
}
SPLITS = 4


def auroc(positive: Floats, negative: Floats) -> float:
    """Probability that a value of the first is above one of the second, ties counted half."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.mean() - (len(positive) + 1) / 2) / len(negative))


def unit(vectors: Floats) -> Floats:
    """Vectors scaled to length 1; those of length 0 stay 0."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)


@dataclass(frozen=True)
class Gradients:
    """Unit gradients and the easy items that they are compared with."""

    rows: list[Floats]
    """For each item (rollouts, dim), unit length or raw."""
    means: Floats
    """m_i, (items, dim); 0 where there are none."""
    easy: NDArray[np.intp]
    references: Floats
    """m̂_j of the easy items, (easy, dim)."""

    @property
    def items(self) -> int:
        """How many items there are, with or without gradients."""
        return len(self.rows)


def gradients_of(
    probed: ProbedWorld, name: str, *, normalise: bool = True, most: int | None = None
) -> Gradients:
    """The first `most` gradients of every item."""
    features = probed.features[name].astype(np.float64)
    if normalise:
        features = unit(features)
    items = len(probed.correct_rollouts)
    rows = [features[probed.item_index == item][:most] for item in range(items)]
    means = np.array([r.mean(axis=0) if len(r) else np.zeros(features.shape[1]) for r in rows])
    easy = np.flatnonzero(probed.correct_rollouts >= TAU * probed.total_rollouts)
    return Gradients(rows, means, easy, unit(means[easy]))


# An estimator gives one alignment a row, whose mean is the item's similarity.
Estimator = Callable[[Gradients, int], Floats]


def mean_direction(gradients: Gradients, item: int, *, easy_only: bool = False) -> Floats:
    """Alignment of each rollout with the other items."""
    others = gradients.easy if easy_only else np.arange(gradients.items)
    total = gradients.means[others[others != item]].sum(axis=0)
    return unit(gradients.rows[item]) @ unit(total)


def mean_cosine(gradients: Gradients, item: int, *, easy_only: bool = False) -> Floats:
    """Mean pairwise cosine of item means."""
    others = gradients.easy if easy_only else np.flatnonzero(gradients.means.any(axis=1))
    cosines = unit(gradients.means[others[others != item]]) @ unit(gradients.means[item])
    return np.array([cosines.mean()])


def plain_nearest(gradients: Gradients, item: int, *, k: int) -> Floats:
    """Mean cosine to the k nearest easy items."""
    cosines = gradients.references[gradients.easy != item] @ unit(gradients.means[item])
    return np.array([np.sort(cosines)[-k:].mean()])


def halves_nearest(gradients: Gradients, item: int, *, k: int, easy_only: bool = True) -> Floats:
    """Alignment with neighbours chosen on the other half, a mean for each half."""
    rows = gradients.rows[item]
    if len(rows) < 2:
        return np.array([np.nan])
    references = gradients.references[gradients.easy != item]
    if not easy_only:
        has_rows = gradients.means.any(axis=1)
        has_rows[item] = False
        references = unit(gradients.means[has_rows])
    scores = references @ rows.T  # (references, rows)
    rng = np.random.default_rng(item)
    similarities = []
    for _ in range(SPLITS):
        order = rng.permutation(len(rows))
        half = len(rows) // 2
        for choose, measure in ((order[:half], order[half:]), (order[half:], order[:half])):
            nearest = np.argsort(-scores[:, choose].mean(axis=1))[:k]
            direction = unit(references[nearest].sum(axis=0))
            similarities.append((unit(rows[measure]) @ direction).mean())
    return np.array([np.mean(similarities)])


def one_out_nearest(gradients: Gradients, item: int, *, k: int) -> Floats:
    """Alignment of each rollout with the neighbours that the others choose."""
    rows = gradients.rows[item]
    if len(rows) < 2:
        return np.array([np.nan])
    references = gradients.references[gradients.easy != item]
    scores = rows @ references.T  # (rows, references)
    without = scores.sum(axis=0) - scores
    nearest = np.argpartition(-without, k - 1, axis=1)[:, :k]
    directions = unit(references[nearest].sum(axis=1))  # (rows, dim)
    return np.einsum("rd,rd->r", unit(rows), directions)


def one_out_span(gradients: Gradients, item: int, *, ridge: float) -> Floats:
    """Alignment of each rollout with the others' projection on the easy items."""
    rows = gradients.rows[item]
    if len(rows) < 2:
        return np.array([np.nan])
    references = gradients.references[gradients.easy != item]
    scores = rows @ references.T
    without = (scores.sum(axis=0) - scores) / (len(rows) - 1)
    gram = references @ references.T
    weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), without.T).T
    return np.einsum("rd,rd->r", unit(rows), unit(weights @ references))


ESTIMATORS: dict[str, Estimator] = {
    "mean direction": mean_direction,
    "mean direction, easy": partial(mean_direction, easy_only=True),
    "mean cosine (paper)": mean_cosine,
    "mean cosine, easy": partial(mean_cosine, easy_only=True),
    **{f"plain {k} nearest": partial(plain_nearest, k=k) for k in (1, 3, 5, 10)},
    **{f"halves {k} nearest": partial(halves_nearest, k=k) for k in (1, 3, 5, 10)},
    **{
        f"halves {k} nearest of all": partial(halves_nearest, k=k, easy_only=False)
        for k in (1, 3, 5, 10)
    },
    **{f"one out {k} nearest": partial(one_out_nearest, k=k) for k in (1, 3, 5, 10)},
    **{f"one out span, λ = {x}": partial(one_out_span, ridge=x) for x in (0.3, 1.0, 3.0)},
}
WITH_STANDARD_ERROR = ("mean direction, easy", "one out")


def similarities(gradients: Gradients, estimator: Estimator, items: Iterable[int]) -> Floats:
    """One value for each item, (all items,), nan where there is none."""
    result = np.full(gradients.items, np.nan)
    for item in items:
        if len(gradients.rows[item]):
            result[item] = estimator(gradients, item).mean()
    return result


def judged(values: Floats, kinds: NDArray[np.str_], hard: NDArray[np.bool_]) -> float:
    """AUROC over the hard items; one without a value counts as below all others."""
    filled = np.where(np.isnan(values), -np.inf, values)
    return auroc(filled[hard & (kinds == LEARNABLE)], filled[hard & (kinds == CHANCE)])


def agreement(left: Gradients, right: Gradients, estimator: Estimator, items: list[int]) -> float:
    """Variance of standardised differences between two samples of the same items' rollouts."""
    scores = []
    for item in items:
        first = estimator(left, item)
        # The same neighbours to choose from: an interval is conditional on the easy items.
        swapped = Gradients(right.rows, left.means, left.easy, left.references)
        second = estimator(swapped, item)
        error = first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)
        scores.append((first.mean() - second.mean()) / np.sqrt(error))
    return float(np.mean(np.square(scores)))


def few_rollouts(many: Gradients, few: Gradients, estimator: Estimator, items: list[int]) -> float:
    """Mean similarity from few rollouts over that from many, against the same easy items."""
    few = Gradients(few.rows, many.means, many.easy, many.references)
    first = [estimator(few, item).mean() for item in items]
    return float(np.mean(first) / np.mean([estimator(many, item).mean() for item in items]))


def train_grpo(world: PlantedWorld, steps: int, seed: int) -> Floats:
    """Final exact pass probability of every item, (items,), 0 for those with impossible golds."""
    policy = load_world_policy(world)
    model, tokenizer = policy.model, policy.tokenizer
    prompts, golds = prompt_token_ids(world, policy), [str(q.gold) for q in world.questions]
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        engine = TransformersEngine(
            policy, seed=1_000 * seed + step, temperature=1.0, max_tokens=MAX_TOKENS, max_rows=512
        )
        items = rng.choice(len(prompts), size=64, replace=False)
        rollouts = list(engine.sample([SampleRequest(str(i), prompts[i], 0, 8) for i in items]))
        rewards = {int(i): np.zeros(8) for i in items}
        for rollout in rollouts:
            item = int(rollout.item_id)
            words = tokenizer.decode(rollout.completion_token_ids, skip_special_tokens=True).split()
            numbers = [word for word in words if word.isdigit()]
            rewards[item][rollout.sample] = numbers[-1:] == [golds[item]]
        advantages = {
            item: (r - r.mean()) / r.std(ddof=1) for item, r in rewards.items() if r.std() > 0
        }
        used = [rollout for rollout in rollouts if int(rollout.item_id) in advantages]
        loss = torch.zeros(())
        for rollout_set in _by_length(used):
            ids = torch.tensor(
                [[*prompts[int(r.item_id)], *r.completion_token_ids] for r in rollout_set]
            )
            tokens = len(rollout_set[0].completion_token_ids)
            log_p = model(input_ids=ids[:, :-1]).logits[:, -tokens:].log_softmax(-1)
            chosen = log_p.gather(-1, ids[:, -tokens:, None])[..., 0].mean(dim=1)
            weights = [advantages[int(r.item_id)][r.sample] for r in rollout_set]
            loss = loss - (torch.tensor(weights, dtype=torch.float32) * chosen).sum()
        optimizer.zero_grad()
        (loss / len(rollouts)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    final = np.zeros(len(prompts))
    possible = np.flatnonzero(world.kinds != NEVER)
    final[possible] = pass_probability(model, [world.questions[i] for i in possible])
    return final


def _by_length(rollouts: list) -> list[list]:
    groups: dict[int, list] = {}
    for rollout in rollouts:
        groups.setdefault(len(rollout.completion_token_ids), []).append(rollout)
    return list(groups.values())


def run(seed: int, folder: Path, grpo_steps: int) -> dict[tuple[str, str], float]:
    """Print what the world of this seed is like; return the AUROC of every estimator."""
    start = time.perf_counter()
    world = build_world(folder, seed)
    print(
        f"seed {seed}: trained {world.training_steps} steps in {time.perf_counter() - start:.0f} s"
    )
    probed, again = (probe_world(world, TARGETS, seed=s) for s in (seed, seed + 1_000))
    for stage, seconds in probed.seconds.items():
        print(f"  {stage:12s} {seconds:5.1f} s")
    rates = probed.correct_rollouts / probed.total_rollouts
    final = train_grpo(world, grpo_steps, seed)
    print(f"  {'kind':10s} items  exact  measured rate  10 %, 90 %    ≥ τ now, after GRPO")
    for kind in (EASY, LEARNABLE, CHANCE, NEVER):
        of = world.kinds == kind
        low, high = np.quantile(rates[of], [0.1, 0.9])
        print(
            f"  {kind:10s} {of.sum():5d}  {world.pass_probabilities[of].mean():.3f}  "
            f"{rates[of].mean():13.3f}  {low:.3f}, {high:.3f}  {(rates[of] >= TAU).mean():6.0%}, "
            f"{(final[of] >= TAU).mean():.0%}"
        )
    hard = (rates > 0) & (rates < TAU)
    result = {("pass rate", ""): judged(rates, world.kinds, hard)}
    measured = np.flatnonzero(hard)
    full = [int(i) for i in measured if probed.correct_rollouts[i] >= 16]
    several = [int(i) for i in measured if min(x.correct_rollouts[i] for x in (probed, again)) >= 4]
    for name in TARGETS:
        gradients, other = gradients_of(probed, name), gradients_of(again, name)
        now = measure_similarity(
            probed.features[name],
            probed.item_index,
            np.ones(len(probed.item_index), dtype=np.int64),
            rates >= TAU,
        )
        result["probes.similarity", name] = judged(now.similarity, world.kinds, hard)
        few = gradients_of(probed, name, most=4)
        for label, estimator in ESTIMATORS.items():
            values = similarities(gradients, estimator, measured)
            result[label, name] = judged(values, world.kinds, hard)
            if label.startswith(WITH_STANDARD_ERROR):
                result[f"  agreement: {label}", name] = agreement(
                    gradients, other, estimator, several
                )
                result[f"  few: {label}", name] = few_rollouts(gradients, few, estimator, full)
    raw = gradients_of(probed, "all linear", normalise=False)
    for label, estimator in ESTIMATORS.items():
        values = similarities(raw, estimator, measured)
        result[label, "all, raw"] = judged(values, world.kinds, hard)
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--grpo-steps", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            results.append(run(seed, Path(folder), arguments.grpo_steps))
    columns = ["", *TARGETS, "all, raw"]
    print(f"\nAUROC, learnable against chance, seeds {arguments.seeds}")
    width = 6 * len(arguments.seeds) + 2
    print(f"{'':36s}" + "".join(f"{column:{width}s}" for column in columns[1:]))
    for label in dict.fromkeys(label for label, _ in results[0]):
        cells = []
        for column in columns if label == "pass rate" else columns[1:]:
            values = [r.get((label, column)) for r in results]
            cells.append(" ".join(f"{v:5.3f}" if v is not None else "     " for v in values))
        print(f"{label:36s}" + "".join(f"{cell:{width}s}" for cell in cells))


if __name__ == "__main__":
    main()
