"""How fast are per-rollout gradients, against the pass they cannot do without and against rivals?

On the correct rollouts of a finished run, in turn, `--repeats` times, the median counting:

    curate        the gradient probe: LoRA on every linear layer of the blocks, rank 16, sketched to
                  4,096 coordinates
    bare pass     a forward and backward pass through the same model for the same rollouts, 8 of
                  like length at a time, loss on the completions: gradients of no parameter, no
                  feature, nothing shared between rollouts
    one by one    the same LoRA through PEFT, a backward pass a rollout, its gradients flattened
    bergson       bergson 2.5.1's `build`, same LoRA, same token ids, its default batches; only its
                  collection is timed, not its start

    python -m benchmarks.speed.gradients --run runs/demo [--bergson PYTHON] [--rollouts 96]

`--bergson` is the Python of an environment with bergson, which has needs of its own:

    python -m venv /tmp/bergson && /tmp/bergson/bin/pip install bergson==2.5.1

Without it, that row is left out. The rows agree on what they compute: the cosines between rollouts
by `curate` are compared with those of `one by one`. Exit status 1 when curate is below 2 x bergson
in rollouts/s, or below 0.85 of the bare pass in tokens/s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curate.run.folder import read_run_config
from curate.run.tables import read_parquet
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.tap import Adapter
from probes.gradients.targets import find_targets
from probes.models.files import ModelFiles, resolve_model
from probes.models.load import Policy, load_policy

# Runs `bergson build` and prints the seconds of its collection alone.
_TIMED_BUILD = """
import sys, time
from bergson.__main__ import main
from bergson.collector.collector import CollectorComputer
collect = CollectorComputer.run_with_collector_hooks
def timed(self, *args, **options):
    start = time.perf_counter()
    collect(self, *args, **options)
    print("seconds", time.perf_counter() - start, flush=True)
CollectorComputer.run_with_collector_hooks = timed
sys.exit(main())
"""


def correct_rollouts(run: Path, most: int, per_item: int = 16) -> list[TokenizedRollout]:
    """Read the first `per_item` correct rollouts of every item, without repeats, `most` in all."""
    items = read_parquet(run / "items.parquet", ["item_id", "prompt_token_ids"]).to_pylist()
    prompts = {item["item_id"]: item["prompt_token_ids"] for item in items}
    taken: Counter[str] = Counter()
    distinct: dict[tuple[str, tuple[int, ...]], TokenizedRollout] = {}
    columns = ["item_id", "reward", "completion_token_ids"]
    for file in sorted((run / "rollouts").glob("*.parquet")):
        for row in read_parquet(file, columns).to_pylist():
            item, completion = row["item_id"], tuple(row["completion_token_ids"])
            if row["reward"] == 1 and taken[item] < per_item:
                taken[item] += 1
                distinct[item, completion] = TokenizedRollout(prompts[item], completion)
    return list(distinct.values())[:most]


def curate(policy: Policy, rollouts: list[TokenizedRollout]) -> np.ndarray:
    """Compute the gradient probe's features."""
    probe = GradientProbe(policy)
    features = np.zeros((len(rollouts), probe.dim), dtype=np.float32)
    for positions, batch in probe.gradients(rollouts):
        features[positions] = batch
    return features


def bare_pass(policy: Policy, rollouts: list[TokenizedRollout], rows: int = 8) -> None:
    """Go forward and backward, rollouts of like length together."""
    ordered = sorted(rollouts, key=lambda rollout: rollout.tokens)
    for start in range(0, len(ordered), rows):
        batch = ordered[start : start + rows]
        width = max(rollout.tokens for rollout in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        labels = torch.full((len(batch), width), -100)
        for row, rollout in enumerate(batch):
            prompt = len(rollout.prompt_token_ids)
            tokens = [*rollout.prompt_token_ids, *rollout.completion_token_ids]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
        embedded = policy.model.get_input_embeddings()(ids).detach().requires_grad_()
        policy.model(
            inputs_embeds=embedded, attention_mask=mask, labels=labels, use_cache=False
        ).loss.backward()


def adapted_model(files: ModelFiles) -> Any:
    """Install the probe's LoRA through PEFT in a second copy of the model."""
    from peft import LoraConfig, get_peft_model

    policy = load_policy(files)
    taps = GradientProbe(policy)._taps
    adapter = Adapter()
    adapted = get_peft_model(
        policy.model,
        LoraConfig(
            r=adapter.rank,
            lora_alpha=int(adapter.alpha),
            lora_dropout=0.0,
            target_modules=sorted(
                {name.rpartition(".")[2] for name in find_targets(policy.model, ("auto",))}
            ),
        ),
        autocast_adapter_dtype=False,
    )
    for name, module in adapted.get_base_model().named_modules():
        if name in taps:
            weight = module.lora_A["default"].weight
            with torch.no_grad():
                weight.copy_(taps[name].lora_a(weight.shape[1]))
    return adapted


def one_by_one(model: Any, rollouts: list[TokenizedRollout]) -> np.ndarray:
    """Differentiate one rollout a pass; return the cosines between their gradients."""
    parameters = [p for name, p in model.named_parameters() if p.requires_grad and "lora_B" in name]
    gradients = []
    for rollout in rollouts:
        model.zero_grad()
        prompt = list(rollout.prompt_token_ids)
        tokens = torch.tensor([[*prompt, *rollout.completion_token_ids]])
        labels = tokens.clone()
        labels[0, : len(prompt)] = -100
        model(input_ids=tokens, labels=labels, use_cache=False).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
    return cosines(torch.stack(gradients).float().numpy())


def cosines(gradients: np.ndarray) -> np.ndarray:
    """Compute the cosine between every two rows."""
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    product: np.ndarray = unit @ unit.T
    return product


def bergson_command(
    python: str, folder: Path, adapted: Any, policy: Policy, rollouts: list[TokenizedRollout]
) -> list[str]:
    """Write base model, adapter and data set for bergson; return the command that builds."""
    base, adapter, data = folder / "base", folder / "adapter", folder / "rollouts.jsonl"
    # Weights read from a GGUF file count as quantized, which they no longer are.
    vars(policy.model.config).pop("quantization_config", None)
    policy.model.hf_quantizer = None
    policy.model.save_pretrained(base)
    for name in (base, adapter):
        policy.tokenizer.save_pretrained(name)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(adapter)
    with data.open("w") as file:
        for rollout in rollouts:
            prompt = [int(token) for token in rollout.prompt_token_ids]
            completion = [int(token) for token in rollout.completion_token_ids]
            labels = [-100] * len(prompt) + completion
            file.write(json.dumps({"input_ids": prompt + completion, "labels": labels}) + "\n")
    # A's gradient is zero: the filter spares bergson taking it. 4 x 4 coordinates a module are
    # 3,360 in all, near our 4,096.
    options = {
        "model": str(adapter),
        "dataset": str(data),
        "precision": "bf16" if policy.dtype == torch.bfloat16 else "fp32",
        "projection_dim": "4",
        "loss_reduction": "mean",
        "filter_modules": "*lora_A*",
        "nproc_per_node": "1",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [python, "-c", _TIMED_BUILD, "build", str(folder / "index"), *arguments, "--overwrite"]


def bergson_seconds(command: list[str]) -> float:
    """Run bergson; return the seconds of its collection."""
    threads = str(torch.get_num_threads())
    found = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    lines = [line for line in found.stdout.splitlines() if line.startswith("seconds ")]
    if found.returncode or not lines:
        raise SystemExit(f"bergson failed:\n{found.stderr[-2000:]}\n{found.stdout[-2000:]}")
    return float(lines[-1].split()[1])


def seconds(action: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> int:
    """Measure, print the table, compare with the goals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run")
    parser.add_argument("--model", default="", help="default: the run's own")
    parser.add_argument("--rollouts", type=int, default=96, help="how many at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bergson", default="", help="Python of an environment with bergson")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rollouts = correct_rollouts(options.run, options.rollouts)
    if not rollouts:
        raise SystemExit(f"{options.run} has no correct rollouts")
    files = resolve_model(options.model or read_run_config(options.run).model)
    policy, adapted = load_policy(files), adapted_model(files)
    tokens = sum(rollout.tokens for rollout in rollouts)
    prompts = len({tuple(rollout.prompt_token_ids) for rollout in rollouts})
    print(
        f"{len(rollouts)} rollouts of {prompts} items, {tokens:,} tokens, "
        f"{policy.dtype}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    # What the timed passes leave behind is what the check at the end compares.
    found: dict[str, np.ndarray] = {}
    rows: dict[str, Callable[[], float]] = {
        "curate": lambda: seconds(lambda: found.update(ours=curate(policy, rollouts))),
        "bare pass": lambda: seconds(lambda: bare_pass(policy, rollouts)),
        "one by one": lambda: seconds(lambda: found.update(theirs=one_by_one(adapted, rollouts))),
    }
    with tempfile.TemporaryDirectory() as folder:
        if options.bergson:
            command = bergson_command(options.bergson, Path(folder), adapted, policy, rollouts)
            rows["bergson"] = lambda: bergson_seconds(command)
        else:
            print("bergson is not measured: no --bergson PYTHON")
        curate(policy, rollouts[:8])
        bare_pass(policy, rollouts[:8])
        times: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(options.repeats):
            for name, measure in rows.items():
                times[name].append(measure())
                print(f"{name}: {times[name][-1]:.1f} s", file=sys.stderr, flush=True)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    # Of the ratio in each turn, so that a load that comes and goes falls on both alike.
    ratios = {
        name: float(np.median(np.divide(values, times["curate"]))) for name, values in times.items()
    }
    for name, median in medians.items():
        print(
            f"{name:10} {len(rollouts) / median:6.2f} rollouts/s {tokens / median:7.0f} tokens/s; "
            f"curate is {ratios[name]:.2f} x as fast"
            f"   (seconds: {', '.join(f'{value:.1f}' for value in times[name])})"
        )
    above = np.triu_indices(len(rollouts), 1)
    difference = (cosines(found["ours"]) - found["theirs"])[above]
    agreement = np.corrcoef(cosines(found["ours"])[above], found["theirs"][above])[0, 1]
    print(
        f"cosines between rollouts, against one by one: correlation {agreement:.4f}, "
        f"standard deviation of the difference {difference.std():.4f}"
    )
    return int(ratios["bare pass"] < 0.85 or ratios.get("bergson", 2.0) < 2)


if __name__ == "__main__":
    sys.exit(main())
