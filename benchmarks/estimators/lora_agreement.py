"""How well do LoRA features agree with full-parameter gradients on real rollouts?

Takes `--items` items of a run folder with two or more distinct correct completions, spread over the
run, and the mean gradient of two completions of each. The full gradient is that of
-(1/|y|) sum_t log pi(y_t | x, y_<t) with respect to the weights of the blocks' linear layers, in
float32; the features are those of `probes.gradients.lora.GradientProbe` in the policy's own dtype.
Compared are the cosines of all pairs of items.

    python -m benchmarks.estimators.lora_agreement --run RUN            RUN: of `curate tag`
    python -m benchmarks.estimators.lora_agreement --run RUN --model M  where the model has moved

`q, v` are the query and value projections, which `curate tag` differentiates by default, `linear`
all linear layers of the blocks. Every adapter is compared with the full gradient of the layers that
it sits on, and with that of all linear layers. `difference` is the mean of |cosine − cosine|.

For B = 0 the gradient of B is the full gradient times A transposed (times alpha / rank). Exit
status 1 when the probe's features of one rollout in float32 do not fulfil this within 0.1 %.

Memory: the full gradients lie in a temporary file (`--scratch`) in bfloat16, two bytes an item and
weight: 5 GB for 24 items of SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

from curate.run.folder import read_run_config
from curate.run.tables import read_parquet
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.tap import Adapter
from probes.gradients.targets import find_targets
from probes.models.files import ModelFiles, resolve_model
from probes.models.load import Policy, load_policy

Floats = NDArray[np.float64]
Modules = dict[str, Any]  # linear layers by name

# Rank and coordinates after the sketch (None: all of them, exactly).
ADAPTERS = ((16, None), (16, 4096), (4, 4096))
TOLERANCE = 1e-3
_CHUNK = 1 << 20


def chosen_rollouts(run: Path, items: int, each: int) -> list[list[TokenizedRollout]]:
    """The first `each` distinct correct completions of `items` items, spread over the run."""
    table = read_parquet(run / "items.parquet", ["item_id", "prompt_token_ids"])
    prompts = dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    correct: dict[str, dict[tuple[int, ...], None]] = {}
    for file in sorted((run / "rollouts").glob("*.parquet"), key=lambda file: int(file.stem)):
        table = read_parquet(file, ["item_id", "completion_token_ids", "reward"])
        table = table.filter(pc.equal(table["reward"], 1))
        ids, completions = table["item_id"], table["completion_token_ids"]
        for item_id, completion in zip(ids.to_pylist(), completions.to_pylist(), strict=True):
            correct.setdefault(item_id, {})[tuple(completion)] = None
    enough = [item_id for item_id in prompts if len(correct.get(item_id, ())) >= each]
    if len(enough) < items:
        raise SystemExit(f"{run}: {len(enough)} items with {each} distinct correct completions")
    return [
        [TokenizedRollout(prompts[item_id], y) for y in list(correct[item_id])[:each]]
        for item_id in (enough[i * len(enough) // items] for i in range(items))
    ]


def linear_layers(policy: Policy) -> Modules:
    """The linear layers of the blocks: all but the one that makes the logits."""
    output = policy.model.get_output_embeddings()
    return {
        name: module
        for name, module in policy.model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    }


def attention(policy: Policy) -> Modules:
    """The queries' and values' layers, as the paper's adapter."""
    targets = find_targets(policy.model, ("q_proj", "v_proj"))
    return {name: target.module for name, target in targets.items()}


def leaves(modules: Modules) -> tuple[str, ...]:
    """Last parts of the modules' names, as adapters name their targets."""
    return tuple(sorted({name.rpartition(".")[2] for name in modules}))


def add_gradient(policy: Policy, rollout: TokenizedRollout, weight: float) -> None:
    """Add the gradient of `weight` times the loss of a rollout to the weights' own."""
    completion = len(rollout.completion_token_ids)
    ids = torch.tensor([[*rollout.prompt_token_ids, *rollout.completion_token_ids]])
    ids = ids.to(policy.device)
    logits = policy.model(ids, use_cache=False, logits_to_keep=completion + 1).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits.float(), ids[0, -completion:])
    torch.autograd.backward(weight * loss)


def full_cosines(
    policy: Policy,
    modules: Modules,
    subsets: dict[str, Modules],
    rollouts: Sequence[Sequence[TokenizedRollout]],
    scratch: str | None,
) -> dict[str, Floats]:
    """Cosines of the items' mean gradients, (items, items), with respect to each set of layers."""
    sizes = [module.weight.numel() for module in modules.values()]
    with tempfile.NamedTemporaryFile(dir=scratch) as file:
        size = len(rollouts) * sum(sizes)
        stored = torch.from_file(file.name, shared=True, size=size, dtype=torch.bfloat16)
        stored = stored.view(len(rollouts), -1)
        for row, of_item in enumerate(rollouts):
            policy.model.zero_grad()
            for rollout in of_item:
                add_gradient(policy, rollout, 1 / len(of_item))
            stored[row] = torch.cat([m.weight.grad.flatten() for m in modules.values()])
            print(".", end="", flush=True, file=sys.stderr)
        print(file=sys.stderr)
        parts = torch.split(stored, sizes, dim=1)
        grams = dict(zip(modules, map(_gram, parts), strict=True))
    return {
        name: _cosines(np.sum([grams[module] for module in subset], axis=0))
        for name, subset in subsets.items()
    }


def _gram(rows: torch.Tensor) -> Floats:
    """Inner products of the rows, (rows, rows)."""
    total = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], _CHUNK):
        chunk = rows[:, start : start + _CHUNK].float()
        total += (chunk @ chunk.T).numpy()
    return total


def _cosines(gram: Floats) -> Floats:
    norms = np.sqrt(np.diag(gram))
    return np.asarray(gram / np.outer(norms, norms))


def feature_cosines(
    policy: Policy, adapter: Adapter, rollouts: Sequence[Sequence[TokenizedRollout]]
) -> Floats:
    """Cosines of the items' mean features, (items, items)."""
    probe = GradientProbe(policy, adapter)
    owner = np.repeat(np.arange(len(rollouts)), [len(of_item) for of_item in rollouts])
    means: NDArray[np.float32] | None = None
    for positions, features in probe.gradients([r for of_item in rollouts for r in of_item]):
        if means is None:
            means = np.zeros((len(rollouts), features.shape[1]), dtype=np.float32)
        for position, feature in zip(positions, features, strict=True):
            means[owner[position]] += feature / len(rollouts[owner[position]])
    assert means is not None
    return _cosines(_gram(torch.from_numpy(means)))


def identity_error(policy: Policy, modules: Modules, rollout: TokenizedRollout) -> float:
    """Relative error of the probe's exact features against the full gradient times A transposed."""
    adapter = Adapter(targets=leaves(modules), dim=None)
    probe = GradientProbe(policy, adapter)
    [(_, features)] = probe.gradients([rollout])
    policy.model.zero_grad()
    add_gradient(policy, rollout, 1.0)
    full = [(modules[tap.name].weight.grad, tap) for tap in probe._taps.values()]
    of_b = [gradient @ tap.lora_a(gradient.shape[1]).T for gradient, tap in full]
    expected = torch.cat([part.flatten() for part in of_b]).numpy() * adapter.alpha / adapter.rank
    return float(np.linalg.norm(features[0] - expected) / np.linalg.norm(expected))


def line(name: str, mine: Floats, full: Floats, of_all: Floats) -> str:
    """One line of the table: an adapter's cosines against both full gradients."""
    pairs = np.triu_indices(len(mine), 1)
    text = f"{name:26s} {mine[pairs].mean():6.3f}"
    for other in (full, of_all):
        a, b = mine[pairs], other[pairs]
        text += (
            f"   {pearsonr(a, b).statistic:8.3f} {spearmanr(a, b).statistic:9.3f} "
            f"{np.abs(a - b).mean():11.3f}"
        )
    return text


def load(files: ModelFiles, dtype: torch.dtype | None = None) -> Policy:
    """Load the policy on the CPU, where the full gradients fit."""
    return load_policy(files, device=torch.device("cpu"), dtype=dtype)


def main() -> int:
    """Print the table; 1 when the probe's features are not those of the full gradient."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--rollouts", type=int, default=2)
    parser.add_argument("--scratch", help="folder of the temporary file")
    options = parser.parse_args()
    if options.items < 3:
        parser.error("--items must be 3 or more: two pairs have no correlation")
    rollouts = chosen_rollouts(options.run, options.items, options.rollouts)
    files = resolve_model(options.model or read_run_config(options.run).model)

    policy = load(files)
    dtype = str(policy.dtype).removeprefix("torch.")
    everything = linear_layers(policy)
    subsets = {"q, v": attention(policy), "linear": everything}
    features = {}
    for layers, modules in subsets.items():
        for rank, dim in ADAPTERS:
            name = f"{layers}: rank {rank}, {f'{dim:,}' if dim else 'exact'}"
            print(f"features: {name}", file=sys.stderr)
            adapter = Adapter(rank=rank, targets=leaves(modules), dim=dim)
            features[layers, name] = feature_cosines(policy, adapter, rollouts)

    del policy, everything, subsets
    policy = load(files, torch.float32)
    everything = linear_layers(policy)
    subsets = {"q, v": attention(policy), "linear": everything}
    for module in everything.values():
        module.requires_grad_(True)
    error = identity_error(policy, subsets["q, v"], rollouts[0][0])
    print("full gradients: an item a dot ", end="", file=sys.stderr)
    full = full_cosines(policy, everything, subsets, rollouts, options.scratch)

    pairs = np.triu_indices(options.items, 1)
    print(
        f"\n{files.name}: {options.items} items of {options.run} with {options.rollouts} correct "
        f"rollouts each, {len(pairs[0])} pairs; features in {dtype}, full gradients in float32"
    )
    print(f"{'':26s} {'mean':>6s}   {'against the full gradient, same layers':^30s}   "
          f"{'of all linear layers':^30s}")  # fmt: skip
    head = f"{'Pearson':>8s} {'Spearman':>9s} {'difference':>11s}"
    print(f"{'cosines of pairs':26s} {'cosine':>6s}   {head}   {head}")
    for (layers, name), cosines in features.items():
        print(line(name, cosines, full[layers], full["linear"]))
    for layers in subsets:
        print(line(f"full gradient, {layers}", full[layers], full[layers], full["linear"]))
    print(f"\nfeatures against the full gradient times A transposed: relative error {error:.1e}")
    if error > TOLERANCE:
        print("the features are not those of the full gradient", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
