"""Which similarity tells hard items that are learned from hard items that are not, and how surely?

In a planted world (`tests/worlds/planted.py`), where the truth is known:

    python -m benchmarks.estimators.similarity --planted 0 1 2        about 4 minutes a seed

samples every item 256 times, takes the gradients of up to 16 correct rollouts an item, and prints
the AUROC of each estimator for learnable against chance, among the items whose measured pass rate
is above 0 and below τ, from 4 and from all draws of an item. It also proves the construction: GRPO
(64 prompts x 8, AdamW at 1e-4, all parameters, no KL term), and the share of each kind whose exact
pass probability ends at τ or more.

On the real rollouts of a run folder, with many rollouts of each item:

    python -m benchmarks.estimators.similarity --run RUN --model MODEL --lucky letter_counting gcd

prints, from 2, 4 and 8 draws an item, the split-half reliability (correlation over all items, and
over the hard ones, of the estimates from disjoint halves of their draws), the AUROC of the other
tasks against those named lucky (which this model answers by guessing), and the coverage of the
interval: how often the nominal 95 % interval from 8 bootstrap draws holds the mean estimate of
such samples.

`soft 2, halves` is the product's, `mean cosine` the paper's, `plain 5 nearest` the simplest that
looks for neighbours. docs/benchmarks.md has their formulas, and the figures of eleven others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from probes.engines.base import SampleRequest
from probes.engines.transformers import TransformersEngine
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.similarity import halves, measure_similarity
from probes.gradients.tap import Adapter
from probes.models.files import resolve_model
from probes.models.load import load_policy
from probes.statistics.pass_rates import pass_rate_interval
from tests.worlds.planted import (
    CHANCE,
    EASY,
    LEARNABLE,
    MAX_TOKENS,
    NEVER,
    PlantedWorld,
    build_world,
    pass_probability,
)
from tests.worlds.planted_probe import load_world_policy, probe_world, prompt_token_ids

Floats = NDArray[np.float64]
Gradients = list[Floats]
"""For each item its unit gradients, (draws, dim)."""

TAU = 0.1
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
ADAPTERS = {
    "all linear": Adapter(targets=ALL_LINEAR),
    "q, v": Adapter(targets=("q_proj", "v_proj")),
    "attention": Adapter(targets=ATTENTION),
}
MOST_DRAWS, DRAWS = 16, (2, 4, 8)
REPEATS, BOOTSTRAPS = 8, 40


def auroc(positive: Floats, negative: Floats) -> float:
    """Probability that a value of the first is above one of the second, ties counted half."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.mean() - (len(positive) + 1) / 2) / len(negative))


def unit(vectors: Floats) -> Floats:
    """Vectors scaled to length 1; those of length 0 stay 0."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)


# An estimator gives one alignment a draw, whose mean is the item's similarity, from the item's
# draws, (draws, dim), and the references' unit mean gradients, (references, dim).
Estimator = Callable[[Floats, Floats], Floats]


def mean_cosine(draws: Floats, references: Floats) -> Floats:
    """Mean cosine of the item's mean gradient."""
    return np.array([(references @ unit(draws.mean(axis=0))).mean()])


def aligned(shares: Floats, scores: Floats, gram: Floats) -> Floats:
    """Cosine of each draw with its own weighted sum of references; all (draws, references)."""
    squares = np.einsum("rj,rj->r", shares @ gram, shares)
    return np.einsum("rj,rj->r", shares, scores) / np.sqrt(np.maximum(squares, 1e-12))


def nearest(draws: Floats, references: Floats) -> Floats:
    """Alignment with the 5 nearest references, chosen and measured on the same draws."""
    scores = draws @ references.T
    chosen = np.argsort(-scores.sum(axis=0))[:5]
    shares = np.zeros_like(scores)
    shares[:, chosen] = 1.0
    return aligned(shares, scores, references @ references.T)


def soft_halves(draws: Floats, references: Floats) -> Floats:
    """`probes.gradients.similarity`, in double precision."""
    parts = [(unit(draws[:, h]), unit(references[:, h])) for h in halves(draws.shape[1])]
    scores = [rows @ directions.T for rows, directions in parts]
    shares = [np.maximum(s.sum(axis=0) - s, 0) ** 2 for s in scores]
    grams = [directions @ directions.T for _, directions in parts]
    return (aligned(shares[0], scores[1], grams[1]) + aligned(shares[1], scores[0], grams[0])) / 2


DEFAULT = "soft 2, halves (curate)"
ESTIMATORS: dict[str, Estimator] = {
    "mean cosine (the paper's)": mean_cosine,
    "plain 5 nearest": nearest,
    DEFAULT: soft_halves,
}


@dataclass(frozen=True)
class Setting:
    """What estimators are compared on."""

    gradients: Gradients
    references: NDArray[np.intp]
    """Items that are easy beyond doubt."""

    def directions(self, item: int) -> Floats:
        """Unit mean gradients of the references other than the item, (references, dim)."""
        return self._means[self.references != item]

    @cached_property
    def _means(self) -> Floats:
        return unit(np.array([self.gradients[j].mean(axis=0) for j in self.references]))

    def estimate(self, estimator: Estimator, item: int, draws: Floats) -> float:
        """The item's similarity from some draws."""
        return float(estimator(draws, self.directions(item)).mean())


def firm_references(correct: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.intp]:
    """Items whose 95 % interval lies at or above τ."""
    return np.flatnonzero(pass_rate_interval(correct, total)[0] >= TAU)


# --- Planted -------------------------------------------------------------------------------------


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


def planted(seed: int, folder: Path, grpo_steps: int) -> dict[tuple[str, str], float]:
    """Print what the world of this seed is like; return the AUROC of every estimator."""
    start = time.perf_counter()
    world = build_world(folder, seed)
    seconds = time.perf_counter() - start
    print(f"seed {seed}: trained {world.training_steps} steps in {seconds:.0f} s")
    probed = probe_world(world, {name: a.targets for name, a in ADAPTERS.items()}, seed=seed)
    rates = probed.correct_rollouts / probed.total_rollouts
    final = train_grpo(world, grpo_steps, seed)
    print(f"  {'kind':10s} items  exact  measured  >= tau now, after GRPO")
    for kind in (EASY, LEARNABLE, CHANCE, NEVER):
        of = world.kinds == kind
        print(
            f"  {kind:10s} {of.sum():5d}  {world.pass_probabilities[of].mean():.3f}  "
            f"{rates[of].mean():8.3f}  {(rates[of] >= TAU).mean():10.0%}, "
            f"{(final[of] >= TAU).mean():.0%}"
        )
    totals = np.full(len(rates), probed.total_rollouts)
    references = firm_references(probed.correct_rollouts, totals)
    hard = np.flatnonzero((probed.correct_rollouts >= 2) & (rates < TAU))
    kinds = world.kinds[hard]
    by_rate = auroc(rates[hard][kinds == LEARNABLE], rates[hard][kinds == CHANCE])
    result = {("pass rate", "all linear"): by_rate}
    for name in ADAPTERS:
        rows = unit(probed.features[name].astype(np.float64))
        setting = Setting(
            [rows[probed.item_index == item] for item in range(len(rates))], references
        )
        for label, estimator in ESTIMATORS.items():
            for most, column in ((4, f"{name}, 4 draws"), (16, name)):
                values = np.array(
                    [setting.estimate(estimator, i, setting.gradients[i][:most]) for i in hard]
                )
                found = auroc(values[kinds == LEARNABLE], values[kinds == CHANCE])
                result[label, column] = found
        exact = measure_similarity(
            probed.features[name],
            probed.item_index,
            np.ones(len(probed.item_index), dtype=np.int64),
            rates >= TAU,
            is_reference=np.isin(np.arange(len(rates)), references),
        ).similarity[hard]
        found = auroc(exact[kinds == LEARNABLE], exact[kinds == CHANCE])
        # The benchmark's own formula must be the product's.
        assert abs(found - result[DEFAULT, name]) < 1e-3, (found, result[DEFAULT, name])
    return result


# --- Real rollouts -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealRollouts:
    """What a run folder holds; lists have an entry an item."""

    tasks: NDArray[np.str_]
    total: NDArray[np.int64]
    correct: NDArray[np.int64]
    prompts: list[list[int]]
    right: list[list[tuple[int, ...]]]
    """The first correct completions, repeats and all."""


def read_rollouts(run: Path, dataset: Path) -> RealRollouts:
    """Read a run whose dataset names each row's `task`."""
    items = pq.read_table(run / "items.parquet").to_pylist()
    tasks = [json.loads(line)["task"] for line in dataset.read_text("utf-8").splitlines()]
    row_of = {item["item_id"]: row for row, item in enumerate(items)}
    total, correct = np.zeros((2, len(items)), dtype=np.int64)
    right: list[list[tuple[int, ...]]] = [[] for _ in items]
    columns = ["item_id", "reward", "completion_token_ids"]
    for file in sorted((run / "rollouts").glob("*.parquet")):
        for rollout in pq.read_table(file, columns=columns).to_pylist():
            row, completion = row_of[rollout["item_id"]], tuple(rollout["completion_token_ids"])
            total[row] += rollout["reward"] is not None
            correct[row] += rollout["reward"] == 1
            if rollout["reward"] == 1 and len(right[row]) < MOST_DRAWS:
                right[row].append(completion)
    return RealRollouts(
        np.array([tasks[item["row"] - 1] for item in items]),
        total,
        correct,
        [item["prompt_token_ids"] for item in items],
        right,
    )


def differentiate(probe: GradientProbe, real: RealRollouts) -> Gradients:
    """Unit gradients of the correct rollouts of each item; a repeated one is computed once."""
    place: dict[tuple[int, tuple[int, ...]], int] = {}
    for item, completions in enumerate(real.right):
        for completion in completions:
            place.setdefault((item, completion), len(place))
    rollouts = [TokenizedRollout(real.prompts[item], completion) for item, completion in place]
    features = np.zeros((len(rollouts), probe.dim))
    for positions, gradients in probe.gradients(rollouts):
        features[positions] = gradients
    features = unit(features)
    return [
        features[[place[item, completion] for completion in completions]]
        for item, completions in enumerate(real.right)
    ]


def compare(
    setting: Setting, estimator: Estimator, real: RealRollouts, lucky: Sequence[str]
) -> dict[str, float]:
    """Reliability and separation by the number of draws; the same splits for every estimator."""
    rng = np.random.default_rng(0)
    is_hard = real.correct < TAU * real.total
    is_lucky = np.isin(real.tasks, lucky)
    result = {}
    for count in DRAWS:
        items = [i for i, rows in enumerate(setting.gradients) if len(rows) >= 2 * count]
        splits = np.empty((2, REPEATS, len(items)))
        for repeat in range(REPEATS):
            for column, item in enumerate(items):
                order = rng.permutation(len(setting.gradients[item]))
                for half in (0, 1):
                    draws = setting.gradients[item][order[half * count : (half + 1) * count]]
                    splits[half, repeat, column] = setting.estimate(estimator, item, draws)
        hard = is_hard[items]
        result[f"all {count}"] = _correlation(splits)
        result[f"hard {count}"] = _correlation(splits[:, :, hard])
        # Of single estimates, not of their mean: that is what a user has.
        found = [
            auroc(x[~is_lucky[items]], x[is_lucky[items]]) for x in splits.reshape(-1, len(items))
        ]
        result[f"apart {count}"] = float(np.mean(found))
    return result


def _correlation(splits: Floats) -> float:
    return float(
        np.mean([np.corrcoef(left, right)[0, 1] for left, right in zip(*splits, strict=True)])
    )


def coverage(setting: Setting, count: int) -> float:
    """Share of the intervals of `measure_similarity` that hold the mean over bootstrap samples."""
    rng = np.random.default_rng(0)
    items = [i for i, rows in enumerate(setting.gradients) if len(rows) >= 2 * count]
    references = [setting.gradients[j] for j in setting.references]
    features, index, place = list(references), [], len(references)
    index = [np.full(len(rows), j) for j, rows in enumerate(references)]
    for item in items:
        if item in setting.references:
            continue
        for _ in range(BOOTSTRAPS):
            rows = setting.gradients[item]
            features.append(rows[rng.integers(len(rows), size=count)])
            index.append(np.full(count, place))
            place += 1
    stacked = np.concatenate(features)
    found = measure_similarity(
        stacked,
        np.concatenate(index),
        np.ones(len(stacked), dtype=np.int64),
        np.arange(place) < len(references),
    )
    low, high, similarity = (
        x[len(references) :].reshape(-1, BOOTSTRAPS)
        for x in (found.low, found.high, found.similarity)
    )
    truth = similarity.mean(axis=1, keepdims=True)
    return float(np.mean((low <= truth) & (truth <= high)))


def real_rollouts(run: Path, dataset: Path, model: str, lucky: Sequence[str]) -> None:
    """Print the comparison on a run folder."""
    real = read_rollouts(run, dataset)
    references = firm_references(real.correct, real.total)
    hard = (real.correct > 0) & (real.correct < TAU * real.total)
    print(
        f"{len(real.tasks)} items, {real.total.sum():,} rollouts, {real.correct.sum():,} correct; "
        f"{len(references)} references, {hard.sum()} hard items with a positive"
    )
    probe = GradientProbe(load_policy(resolve_model(model)), ADAPTERS["all linear"])
    setting = Setting(differentiate(probe, real), references)
    for count in DRAWS:
        print(f"coverage of nominal 95 % from {count} draws: {coverage(setting, count):.3f}")
    columns = [f"{what} {count}" for what in ("all", "hard", "apart") for count in DRAWS]
    print(f"{'':28s}" + "".join(f"{column:>9s}" for column in columns))
    for label, estimator in ESTIMATORS.items():
        values = compare(setting, estimator, real, lucky)
        print(f"{label:28s}" + "".join(f"{values[column]:9.2f}" for column in columns))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--planted", type=int, nargs="+", default=[], metavar="SEED")
    parser.add_argument("--grpo-steps", type=int, default=60)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--dataset", type=Path, default=Path("examples/arithmetic.jsonl"))
    parser.add_argument("--model")
    parser.add_argument("--lucky", nargs="+", default=["letter_counting", "gcd"])
    arguments = parser.parse_args()
    if arguments.run:
        real_rollouts(arguments.run, arguments.dataset, arguments.model, arguments.lucky)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = []
    for seed in arguments.planted:
        with tempfile.TemporaryDirectory() as folder:
            results.append(planted(seed, Path(folder), arguments.grpo_steps))
    torch.set_num_threads(threads)
    if results:
        print(f"\nAUROC, learnable against chance, seeds {arguments.planted}")
        columns = list(dict.fromkeys(column for _, column in results[0]))
        width = max(20, 6 * len(results) + 2)
        print(f"{'':28s}" + "".join(f"{column:{width}s}" for column in columns))
        for label in dict.fromkeys(label for label, _ in results[0]):
            cells = (
                " ".join(f"{r[label, c]:.3f}" if (label, c) in r else "" for r in results)
                for c in columns
            )
            print(f"{label:28s}" + "".join(f"{cell:{width}s}" for cell in cells))


if __name__ == "__main__":
    main()
