r"""Memory and time of `curate tag` on 200,000 items, with all real but the policy.

    python benchmarks/large_run.py                        the whole of it
    python benchmarks/large_run.py --items 2000           a quick look
    python benchmarks/large_run.py --verifier numeric     a cheaper verifier than math
    python benchmarks/large_run.py --folder /big/disk     where the run's files go for a while

The dataset asks for sums. In place of the policy an engine writes completions of about 75 tokens
that end in `\boxed{...}`, right as often as the item's pass rate says, and a probe makes gradients
of `--dim` dimensions. Reading, rendering (a tokenizer of bytes), verifying, planning, joining,
similarity, tags and writing are those of `probes.tagging`, in rounds of `--rollouts` to
`--max-rollouts`, with files of as many rollouts as on a GPU. Half of the items are easy; the
gradients of most hard ones share a direction with the easy items of their skill, those of some
share none, and an eighth of the items is never right.

Memory is VmHWM, the largest resident set that the kernel saw. `peak` is this process's at the end
of the stage (of its last round), so a stage that stays below those before it repeats their peak.
The verifier's workers are processes of their own; `a worker` is the largest of them.

Exit status 1 when this process passes 3 GB, when not every row of the tagged file has a tag, or
when fewer than nine in ten easy items are tagged easy, or of those never right no_positive.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from curate.config import TagConfig
from curate.run_folder import RunFolder, read_manifest
from curate.tags import Trainability
from probes import judging, tagging
from probes.engine import Rollout, SampleRequest, uniform_draws
from probes.gradients import Adapter, TokenizedRollout
from probes.models import Policy

MOST_BYTES = 3e9
LEAST_AS_MADE = 0.9
# With so few rollouts, hard items with several positives need a τ far above the paper's 0.1.
TAU, MAX_TOKENS = 0.3, 256
SKILLS, SUMS_OF_SKILL = 50, 20
EASY, LEARNABLE, CHANCE, NEVER = range(4)
KINDS = (EASY, LEARNABLE, EASY, CHANCE, EASY, LEARNABLE, EASY, NEVER)
RATES = {EASY: (0.5, 1.0), LEARNABLE: (0.1, 0.25), CHANCE: (0.1, 0.25), NEVER: (0.0, 0.0)}


def question(item: int) -> str:
    """The question of an item, different for each."""
    return f"What is {item // 1000} + {item % 1000}?"


def terms(prompt: str) -> tuple[int, int]:
    """The two numbers that a prompt asks to add."""
    found = re.search(r"(\d+) \+ (\d+)", prompt)
    assert found, prompt
    return int(found[1]), int(found[2])


def kind_of(prompt: str) -> int:
    """EASY, LEARNABLE, CHANCE or NEVER."""
    return KINDS[terms(prompt)[1] % len(KINDS)]


class GeneratedRollouts:
    """An engine whose completions are right as often as an item's pass rate says."""

    name = "generated"

    def __init__(self, policy: Policy, *, seed: int, **_: Any) -> None:
        self._tokenizer, self._seed = policy.tokenizer, seed

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        """Yield every rollout asked for."""
        end = self._tokenizer.eos_token_id
        for request in requests:
            texts = self._completions(request)
            for number, token_ids in enumerate(self._tokenizer(texts)["input_ids"]):
                sample = request.first_sample + number
                yield Rollout(request.item_id, sample, [*token_ids, end], "stop")

    def _completions(self, request: SampleRequest) -> list[str]:
        prompt = self._tokenizer.decode(request.prompt_token_ids)
        a, b = terms(prompt)
        low, high = RATES[kind_of(prompt)]
        rate = low + (high - low) * int(request.item_id[:8], 16) / 16**8
        draws = uniform_draws(
            self._seed, request.item_id, request.first_sample, 2 * request.samples
        ).reshape(-1, 2)
        return [
            f"A first guess is {int(1000 * guess)}. In steps, {a} + {b} = {value}. "
            f"So the final answer is \\boxed{{{value}}}."
            for luck, guess in draws
            for value in [a + b if luck < rate else a + b + 1 + int(10 * guess)]
        ]


class GeneratedGradients:
    """A probe whose gradients are noise and, but for CHANCE items, a direction of the skill."""

    def __init__(self, policy: Policy, adapter: Adapter) -> None:
        assert adapter.dim is not None
        self._tokenizer, self.dim = policy.tokenizer, adapter.dim
        self._rng = np.random.default_rng(adapter.seed)
        self._skills = self._normal(SKILLS)

    def gradients(
        self, rollouts: Sequence[TokenizedRollout]
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield positions and gradients batch by batch."""
        for first in range(0, len(rollouts), 1024):
            positions = list(range(first, min(first + 1024, len(rollouts))))
            prompts = self._tokenizer.batch_decode(
                [rollouts[position].prompt_token_ids for position in positions]
            )
            gradients = self._normal(len(positions))
            for gradient, prompt in zip(gradients, prompts, strict=True):
                if kind_of(prompt) != CHANCE:
                    gradient += self._skills[terms(prompt)[1] // SUMS_OF_SKILL]
            yield positions, gradients

    def _normal(self, rows: int) -> NDArray[np.float32]:
        return self._rng.standard_normal((rows, self.dim), dtype=np.float32)


def save_model(folder: Path) -> Path:
    """Save a tiny random Llama whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def write_dataset(path: Path, items: int) -> Path:
    """Write the questions and answers of all items."""
    with path.open("w", encoding="utf-8") as file:
        for item in range(items):
            answer = str(sum(terms(question(item))))
            file.write(json.dumps({"question": question(item), "answer": answer}) + "\n")
    return path


def peak_bytes(process: int | str = "self") -> int:
    """VmHWM of a process; 0 once it has ended."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def tag_and_watch(config: TagConfig) -> tuple[dict[str, int], int]:
    """Run `curate tag` without its policy; peaks after each stage, and of the largest worker."""
    peaks: dict[str, int] = {}
    worker_peak = 0
    stage, kill = RunFolder.stage, judging._Worker.kill

    @contextmanager
    def watched_stage(run: RunFolder, name: str) -> Iterator[dict[str, Any]]:
        with stage(run, name) as entry:
            yield entry
        peaks[name] = peak_bytes()

    def watched_kill(worker: judging._Worker) -> None:
        nonlocal worker_peak
        worker_peak = max(worker_peak, peak_bytes(worker.process.pid))
        kill(worker)

    with (
        patch.object(RunFolder, "stage", watched_stage),
        patch.object(judging._Worker, "kill", watched_kill),
        patch.object(tagging, "TransformersEngine", GeneratedRollouts),
        patch.object(tagging, "GradientProbe", GeneratedGradients),
        patch.dict(tagging._SHARD_TOKENS, cpu=tagging._SHARD_TOKENS["cuda"]),
    ):
        tagging.tag_dataset(config)
    return peaks, worker_peak


def count_tags(tagged: Path) -> Counter[tuple[int, str | None]]:
    """Rows of the tagged file by kind and tag."""
    with tagged.open(encoding="utf-8") as file:
        rows = (json.loads(line) for line in file)
        return Counter((kind_of(row["question"]), row["trainability"]) for row in rows)


def failures(items: int, peak: int, tags: Counter[tuple[int, str | None]]) -> list[str]:
    """What is not as it should be."""
    broken = []
    if peak > MOST_BYTES:
        broken.append(f"peak of {peak / 1e9:.2f} GB, not {MOST_BYTES / 1e9:g}")
    with_tag = sum(count for (_, tag), count in tags.items() if tag in list(Trainability))
    if not with_tag == tags.total() == items:
        broken.append(f"{items:,} items, {tags.total():,} rows, {with_tag:,} of them with a tag")
    for kind, tag in ((EASY, Trainability.EASY), (NEVER, Trainability.NO_POSITIVE)):
        made = sum(count for (each, _), count in tags.items() if each == kind)
        if tags[kind, tag] < LEAST_AS_MADE * made:
            broken.append(f"only {tags[kind, tag]:,} of {made:,} items are tagged {tag}")
    return broken


def main() -> int:
    """Run it, print the table; 1 when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--max-rollouts", type=int, default=16)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--verifier", choices=("math", "numeric"), default="math")
    parser.add_argument("--workers", type=int, default=0, help="of the verifier; 0: one a core")
    parser.add_argument("--folder", help="for the run's files; default: the temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        config = TagConfig(
            dataset=str(write_dataset(folder / "sums.jsonl", arguments.items)),
            model=str(save_model(folder / "model")),
            out=str(folder / "tagged.jsonl"),
            run_dir=str(folder / "run"),
            profile=True,
            min_rollouts=arguments.rollouts,
            max_rollouts=max(arguments.rollouts, arguments.max_rollouts),
            max_tokens=MAX_TOKENS,
            verifier=arguments.verifier,
            verifier_workers=arguments.workers,
            gradient_dim=arguments.dim,
            tau=TAU,
        )
        peaks, worker_peak = tag_and_watch(config)
        peak = peak_bytes()
        manifest = read_manifest(folder / "run")
        tags = count_tags(folder / "tagged.jsonl")
        on_disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    counts = manifest["counts"]
    print(
        f"\n{arguments.items:,} items, {counts['rollouts_drawn']:,} rollouts in "
        f"{counts['rounds']} rounds, {counts['rollouts_correct']:,} correct, {arguments.dim:,} "
        f"dimensions, verifier {arguments.verifier}, {on_disk / 1e9:.2f} GB on disk at the end"
    )
    print(", ".join(f"{count:,} {tag}" for tag, count in counts["tags"].items()) + "\n")
    print(f"{'stage':<12}{'seconds':>10}{'share':>8}{'peak':>12}")
    for row in manifest["profile"]:
        after = f"{peaks[row['stage']] / 1e9:9.2f} GB" if row["stage"] in peaks else ""
        print(f"{row['stage']:<12}{row['seconds']:>10,.1f}{row['share']:>8.1%}{after}")
    seconds = sum(row["seconds"] for row in manifest["profile"])
    print(f"{'all':<12}{seconds:>10,.1f}{1:>8.1%}{peak / 1e9:9.2f} GB")
    print(f"{'a worker':<30}{worker_peak / 1e9:9.2f} GB")
    broken = failures(arguments.items, peak, tags)
    for text in broken:
        print(f"failed: {text}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
