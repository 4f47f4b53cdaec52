"""How much of what a LoRA adapter has learned arrives where the model computes in bfloat16.

An adapter of rank 32 on all linear layers of a model takes the first step of AdamW up the policy
gradient of some rollouts, by several learning rates. Compared is how far the log-probability of
each token moves with how far it moves in float32: `arrives` is the slope of a regression through 0.

    python -m benchmarks.estimators.adapter_rounding --model MODEL

`as PEFT adds it`: to the layer's output in bfloat16, the adapter in float32. `before rounding`:
as `probes.models.adapters` does. `merged, to the nearest`: into weights in bfloat16, as PEFT does.
`merged, at random`: rounded up or down at random. Exit status 1 when `before rounding` is further
than three standard errors from 1 at the largest rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model

from probes.engines.base import SampleRequest
from probes.engines.transformers import TransformersEngine
from probes.models.adapters import adapted_layers, add_before_rounding, merged_weight
from probes.models.files import ModelFiles, resolve_model
from probes.models.load import Policy, forget_quantization, load_policy

QUESTIONS = ("What is 7 * 8?", "What is the gcd of 12 and 18?", "Add 13 and 29.", "Name a colour.")
RATES = (5e-6, 5e-5, 2e-4, 1e-3)
Change = NDArray[np.float64]


class _Rollouts:
    """Rollouts side by side, padded on the right, and the advantage of each."""

    def __init__(self, policy: Policy, each: int, tokens: int) -> None:
        prompts = [
            policy.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            for text in QUESTIONS
        ]
        requests = [SampleRequest(str(n), prompt, 0, each) for n, prompt in enumerate(prompts)]
        engine = TransformersEngine(policy, seed=1, temperature=1.0, max_tokens=tokens)
        drawn = sorted(engine.sample(requests), key=lambda one: (one.item_id, one.sample))
        rows = [(prompts[int(one.item_id)], list(one.completion_token_ids)) for one in drawn]
        width = max(len(prompt) + len(completion) for prompt, completion in rows)
        self.ids = torch.zeros(len(rows), width, dtype=torch.long)
        self.counts = torch.zeros(len(rows), width - 1, dtype=torch.bool)
        for row, (prompt, completion) in enumerate(rows):
            end = len(prompt) + len(completion)
            self.ids[row, :end] = torch.tensor([*prompt, *completion])
            self.counts[row, len(prompt) - 1 : end - 1] = True
        self.advantages = torch.tensor([1.0, -1.0]).repeat(len(rows) // 2)

    def log_probabilities(self, model: Any) -> torch.Tensor:
        """Of each completion token, (rollouts, columns), 0 elsewhere."""
        logits = model(input_ids=self.ids[:, :-1], use_cache=False).logits.float()
        drawn = logits.gather(2, self.ids[:, 1:, None])[..., 0]
        return torch.where(self.counts, drawn - torch.logsumexp(logits, -1), 0.0)

    def of_tokens(self, model: Any) -> Change:
        """Of each completion token, (tokens,)."""
        with torch.no_grad():
            found = self.log_probabilities(model)[self.counts]
        return found.double().numpy()


def _adapted(files: ModelFiles, dtype: torch.dtype) -> Any:
    policy = load_policy(files, device=torch.device("cpu"), dtype=dtype)
    forget_quantization(policy.model)
    torch.manual_seed(1)
    config = LoraConfig(
        r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0
    )
    return get_peft_model(policy.model, config)


def _set(model: Any, signs: dict[str, torch.Tensor], rate: float) -> None:
    """Put B where one step of AdamW puts it: each number moves by the rate."""
    for name, parameter in model.named_parameters():
        if name in signs:
            parameter.data = rate * signs[name]


def _merged(model: Any, weight_of: Callable[[Any], torch.Tensor]) -> dict[Any, torch.Tensor]:
    """Merge the adapter and switch it off; give the weights as they were."""
    layers = adapted_layers(model).values()
    before = {layer: layer.base_layer.weight.data for layer in layers}
    for layer in layers:
        layer.base_layer.weight.data = weight_of(layer)
    return before


def _to_nearest(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.base_layer.weight.data
    added: torch.Tensor = layer.get_delta_weight("default")
    return (weight.float() + added).to(weight.dtype)


def _line(label: str, moved: Change, exact: Change) -> tuple[str, float, float]:
    slope = float(moved @ exact / (exact @ exact))
    rest = moved - slope * exact
    error = float(np.sqrt((rest @ rest) / (len(exact) - 1) / (exact @ exact)))
    return f"{label:24} {slope:6.2f} ± {error:.2f}", slope, error


def main() -> int:
    """Measure, print, and tell by the exit status whether adapters arrive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--rollouts", type=int, default=4, help="of each of four prompts")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    files = resolve_model(options.model)
    policy = load_policy(files, device=torch.device("cpu"), dtype=torch.float32)
    rollouts = _Rollouts(policy, options.rollouts, options.tokens)
    exact = _adapted(files, torch.float32)
    start = rollouts.of_tokens(exact)
    means = rollouts.log_probabilities(exact).sum(1) / rollouts.counts.sum(1)
    (-(rollouts.advantages * means).mean()).backward()  # type: ignore[no-untyped-call]
    signs = {
        name: -parameter.grad.sign()
        for name, parameter in exact.named_parameters()
        if "lora_B" in name
    }
    moved = {}
    for rate in RATES:
        _set(exact, signs, rate)
        moved[rate] = rollouts.of_tokens(exact) - start
    del exact
    low = _adapted(files, torch.bfloat16)
    kinds = {each.dtype for name, each in low.named_parameters() if "lora_" in name}
    print(f"{len(start)} tokens; adapters that PEFT makes on bfloat16 weights: {kinds}")
    before = rollouts.of_tokens(low)
    lines: dict[float, list[str]] = {rate: [] for rate in RATES}
    slope = error = 0.0

    def compare(rate: float, label: str) -> None:
        nonlocal slope, error
        text, slope, error = _line(label, rollouts.of_tokens(low) - before, moved[rate])
        lines[rate].append(text)

    for rate in RATES:
        _set(low, signs, rate)
        compare(rate, "as PEFT adds it")
        for label, weight_of in (
            ("merged, to the nearest", _to_nearest),
            ("merged, at random", merged_weight),
        ):
            weights = _merged(low, weight_of)
            with low.disable_adapter():
                compare(rate, label)
            for layer, weight in weights.items():
                layer.base_layer.weight.data = weight
    add_before_rounding(low)
    for rate in RATES:
        _set(low, signs, rate)
        compare(rate, "before rounding")
    for rate in RATES:
        size = float(np.sqrt(np.mean(moved[rate] ** 2)))
        print(f"\nlearning rate {rate:g}: a token moves by {size:.4f} nats in float32; arrives")
        print("\n".join(lines[rate]))
    return int(abs(slope - 1) > 3 * error)


if __name__ == "__main__":
    sys.exit(main())
