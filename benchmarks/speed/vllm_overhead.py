"""What does `--engine vllm` cost over a bare `LLM.generate` of the same requests?

One process, one loaded vLLM, and turns that alternate: curate's engine, then `LLM.generate` with
the same token ids, samples and sampling parameters, `--turns` times each after one that is not
counted. The prompts are those of `curate tag examples/arithmetic.jsonl --config
examples/arithmetic.toml`. Both begin each turn with the same random state, so that they draw the
same completions.

    python -m benchmarks.speed.vllm_overhead
    python -m benchmarks.speed.vllm_overhead --model MODEL --items 64 --rollouts 32 --max-tokens 512

Prints the seconds of every turn and the ratio of the sums. Exit status 1 when it is above `--most`,
or when the two did not draw the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable

from benchmarks.speed.sampling import EXAMPLES, default_model, rendered_prompts
from curate.config import config_from_mapping, read_config_file
from probes.engines.base import SampleRequest
from probes.engines.vllm import VllmEngine, _set_random_state, _state_after
from probes.models.files import resolve_model
from probes.models.load import load_policy

Completions = list[list[int]]


def timed(work: Callable[[], Completions]) -> tuple[float, Completions]:
    """Seconds that a call took, and what it gave."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def main() -> int:
    """Measure both in turns; 1 when the overhead is above what is allowed."""
    settings = config_from_mapping(read_config_file(EXAMPLES / "arithmetic.toml"), "the example")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--most", type=float, default=1.05)
    options = parser.parse_args()

    files = resolve_model(options.model or default_model())
    prompts = rendered_prompts(load_policy(files), options.items, settings)
    engine = VllmEngine(files, seed=0, temperature=1.0, max_tokens=options.max_tokens)
    requests = [SampleRequest(str(i), ids, 0, options.rollouts) for i, ids in enumerate(prompts)]

    def ours() -> Completions:
        drawn = {(r.item_id, r.sample): r.completion_token_ids for r in engine.sample(requests)}
        return [
            list(drawn[str(i), n]) for i in range(len(prompts)) for n in range(options.rollouts)
        ]

    ours()  # Loads vLLM.
    from vllm import SamplingParams, TokensPrompt

    wanted = SamplingParams(
        n=options.rollouts,
        temperature=1.0,
        max_tokens=options.max_tokens,
        ignore_eos=True,
        stop_token_ids=engine._stop_token_ids,
        detokenize=False,
    )
    inputs = [TokensPrompt(prompt_token_ids=list(map(int, ids))) for ids in prompts]

    def bare() -> Completions:
        outputs = engine._llm.generate(inputs, wanted, use_tqdm=False)
        return [list(completion.token_ids) for o in outputs for completion in o.outputs]

    sums, same = {"curate": 0.0, "LLM.generate": 0.0}, True
    for turn in range(options.turns + 1):
        seconds, drawn = timed(ours)
        # They are few enough to be handed over all at once.
        _set_random_state(None, _state_after(hashlib.sha256(b"0"), requests))
        bare_seconds, bare_drawn = timed(bare)
        same &= drawn == bare_drawn
        tokens = sum(map(len, drawn))
        print(
            f"curate {seconds:7.2f} s   LLM.generate {bare_seconds:7.2f} s   {tokens:,} tokens"
            f"{'' if turn else '  (not counted)'}"
        )
        if turn:
            sums["curate"] += seconds
            sums["LLM.generate"] += bare_seconds
    engine.close()
    ratio = sums["curate"] / sums["LLM.generate"]
    print(f"{files.name}: curate takes {ratio:.3f} times what LLM.generate takes")
    if not same:
        print("the two did not draw the same tokens", file=sys.stderr)
    return 0 if same and ratio <= options.most else 1


if __name__ == "__main__":
    sys.exit(main())
