"""Log-probabilities of kept rollouts: of sampling, by a pass of our own, by prompt_logprobs.

The last is vLLM's.

One process, one loaded vLLM that draws rollouts of the example's prompts. What is asked of each way
is log pi(y | x) of every completion at temperature 1, summed over its tokens:

    sampling          what the engine kept of every drawn token while it drew it
    own pass          `probes.rescoring.teacher_forcing`, which pilots and checkpoints are read by
    prompt_logprobs   vLLM given prompt and completion as a prompt, and asked for its tokens'

    OMP_NUM_THREADS=1 python -m benchmarks.speed.scoring [--dtype bfloat16] [--items 12]

Prints for the last two how many positions went through the layers and through the output head and
the CPU seconds of the process, best of `--turns`; and for all three how far they are from the own
pass in float32, in nats a completion. Positions depend on the rollouts alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.speed.sampling import EXAMPLES, default_model, rendered_prompts
from curate.config import config_from_mapping, read_config_file
from probes.engines.base import SampleRequest
from probes.engines.vllm import VllmEngine
from probes.gradients.batch import TokenizedRollout
from probes.models.files import resolve_model
from probes.models.load import load_policy
from probes.rescoring.teacher_forcing import _Batch, _next_batch, log_probabilities

Floats = NDArray[np.float64]


def main() -> None:
    """Print positions, seconds and distances of each way."""
    settings = config_from_mapping(read_config_file(EXAMPLES / "arithmetic.toml"), "the example")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()

    files = resolve_model(options.model or default_model())
    dtype = getattr(torch, options.dtype)
    policy, exact = load_policy(files, dtype=dtype), load_policy(files, dtype=torch.float32)
    prompts = rendered_prompts(policy, options.items, settings)
    engine = VllmEngine(files, seed=0, temperature=1.0, max_tokens=options.max_tokens, dtype=dtype)
    requests = [SampleRequest(str(i), ids, 0, options.rollouts) for i, ids in enumerate(prompts)]
    drawn = list(engine.sample(requests))
    rollouts = [TokenizedRollout(prompts[int(r.item_id)], r.completion_token_ids) for r in drawn]
    kept = np.array([r.log_probability for r in drawn], dtype=np.float64)

    ways: dict[str, Callable[[], Floats]] = {
        "own pass": lambda: log_probabilities(policy, rollouts),
        "prompt_logprobs": lambda: by_prompt_logprobs(engine, rollouts),
    }
    found, seconds = {}, {}
    for name, way in ways.items():
        found[name], seconds[name] = fastest(way, options.turns)
    found["sampling"] = kept
    found["own pass, smaller"] = log_probabilities(policy, rollouts, batch_tokens=400)
    engine.close()
    truth = log_probabilities(exact, rollouts)

    tokens = sum(len(one.completion_token_ids) for one in rollouts)
    print(f"{len(rollouts)} rollouts, {tokens:,} completion tokens, {options.dtype}")
    positions = {
        "own pass": positions_of_own_pass(rollouts),
        "prompt_logprobs": 2 * (sum(one.tokens for one in rollouts),),
    }
    for name in ways:
        layers, head = positions[name]
        print(f"{name:18} {layers:8,} positions, {head:8,} of the head, {seconds[name]:6.1f} s")
    for name, values in found.items():
        apart = values - truth
        worst = np.abs(apart).max()
        print(f"{name:18} {np.sqrt(np.mean(apart**2)):.4f} nats from float32, at most {worst:.4f}")
    apart = found["sampling"] - found["own pass"]
    print(f"sampling less own pass: {apart.std():.4f} nats, mean {apart.mean():+.4f}")


def fastest(way: Callable[[], Floats], turns: int) -> tuple[Floats, float]:
    """What a call gives, and the CPU seconds of the fastest of some."""
    taken = []
    for _ in range(turns):
        start = time.process_time()
        found = way()
        taken.append(time.process_time() - start)
    return found, min(taken)


def by_prompt_logprobs(engine: VllmEngine, rollouts: Sequence[TokenizedRollout]) -> Floats:
    """Ask vLLM; it skips its cache of prefixes for such requests, and draws a token after each."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    llm: Any = engine._loaded(max(one.tokens for one in rollouts))
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    asked = [
        tokens_input([*map(int, one.prompt_token_ids), *map(int, one.completion_token_ids)])
        for one in rollouts
    ]
    outputs = llm.generate(asked, wanted, use_tqdm=False)
    sums = []
    for one, output in zip(rollouts, outputs, strict=True):
        places = range(len(one.prompt_token_ids), one.tokens)
        ids = output.prompt_token_ids
        sums.append(sum(output.prompt_logprobs[place][ids[place]].logprob for place in places))
    return np.array(sums)


def positions_of_own_pass(rollouts: Sequence[TokenizedRollout]) -> tuple[int, int]:
    """Positions that our pass computes: in the layers, and in the output head."""
    keys = {
        (tuple(map(int, one.prompt_token_ids)), tuple(map(int, one.completion_token_ids)))
        for one in rollouts
    }
    waiting = sorted(keys, key=lambda key: (len(key[0]), key[0], len(key[1]), key[1]))
    layers = head = 0
    while waiting:
        some = _next_batch(waiting, 1024)
        batch = _Batch(some, torch.device("cpu"))
        layers, head = layers + len(batch.prefixes), head + len(batch.heads)
        del waiting[: len(some)]
    return layers, head


if __name__ == "__main__":
    main()
