r"""A run of a million items through every stage and command, with all real but the policy.

    python -m benchmarks.speed.million_items                       10,000, 100,000, 1,000,000 items
    python -m benchmarks.speed.million_items --items 10000 100000  other sizes
    python -m benchmarks.speed.million_items --folder /big/disk    where the files go for a while

The dataset asks for sums. In place of the policy an engine writes completions of about 30 tokens
that end in `\boxed{...}`, right as often as the item's pass rate says, and a probe makes gradients
of `--dim` dimensions. All else is real: reading, rendering (a tokenizer of bytes), verifying,
rounds of `--rollouts` to `--max-rollouts`, joining, similarity, tags and writing, with files of as
many rollouts as on a GPU; then the commands `filter`, `order`, `report`, `card`, `push --dry-run`.
Half of the items are easy; the gradients of most hard ones share a direction with the easy items of
their skill, those of some share none, and an eighth of the items is never right.

Engine and probe take the place of the two attributes in which `probes.tag` keeps its own; the
product has no switch for it. `tag` and each command run in processes of their own. Seconds are by
the clock; `CPU` is processor time of the process and its workers, which a busy machine changes
less. Peaks are resident sets as the kernel saw them, of each stage by itself; to those of `tag` the
largest verifier worker is added once for each worker, which is more than they held at any one time.

Exit status 1 when anything passes 6 GB; when a further item costs a stage of more than 5 s 1.5
times as much processor time as at the size before (`growth`, from the third size on); when not
every row has a tag; or when fewer than nine in ten easy items are tagged easy, or of those never
right no_positive.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from curate.config import TagConfig
from curate.run.folder import RunFolder, read_manifest
from curate.tags import Trainability
from probes import tagging
from probes.engines.base import Rollout, SampleRequest, uniform_draws
from probes.engines.choose import LoadedModel
from probes.gradients.batch import TokenizedRollout
from probes.tag import tag_dataset
from probes.verifiers import pool as judging

MOST_BYTES, MOST_GROWTH, LEAST_SECONDS = 6e9, 1.5, 5.0
LEAST_AS_MADE = 0.9
# With so few rollouts, hard items with several positives need a τ far above the paper's 0.1.
TAU, MAX_TOKENS = 0.3, 256
SKILLS, SUMS_OF_SKILL = 50, 20
EASY, LEARNABLE, CHANCE, NEVER = range(4)
KINDS = (EASY, LEARNABLE, EASY, CHANCE, EASY, LEARNABLE, EASY, NEVER)
RATES = {EASY: (0.6, 1.0), LEARNABLE: (0.1, 0.25), CHANCE: (0.1, 0.25), NEVER: (0.0, 0.0)}
PAD, END = 0, 1

# A command, and then VmHWM in KiB.
_COMMAND = """
import re, sys
from curate.cli import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(status)
"""


@dataclass(frozen=True)
class Cost:
    """What a stage of `tag`, or a command, took."""

    name: str
    seconds: float
    """By the clock."""
    cpu: float
    """Seconds of processor time, of the process and its workers."""
    peak: int
    """Largest resident set, in bytes."""


# --- The policy's stand-ins ------------------------------------------------------------------


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


class Bytes:
    """The token ids of a tokenizer whose tokens are bytes, without the tokenizer's overhead."""

    def __init__(self) -> None:
        vocabulary = byte_vocabulary()
        letters = (chr(byte) for byte in range(128))
        self._id_of = np.array(
            [vocabulary.get("Ġ" if letter == " " else letter, PAD) for letter in letters]
        )
        self._letter_of = {
            int(token): chr(byte) for byte, token in enumerate(self._id_of) if token != PAD
        }

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in ASCII."""
        token_ids: list[int] = self._id_of[np.frombuffer(text.encode("ascii"), np.uint8)].tolist()
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text, without what is no ASCII."""
        return "".join(map(self._letter_of.get, map(int, token_ids), " " * len(token_ids)))


class GeneratedRollouts:
    """An engine whose completions are right as often as an item's pass rate says."""

    name = "generated"
    has_own_weights = False

    def __init__(self, seed: int = 0) -> None:
        self._bytes, self._seed = Bytes(), seed
        self.stops_at = math.inf

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Yield every rollout asked for."""
        for request in requests:
            for number, text in enumerate(self._completions(request)):
                token_ids = [*self._bytes.encode(text), END]
                yield Rollout(request.item_id, request.first_sample + number, token_ids, "stop")

    def unfinished(self) -> list[int]:
        """None: a rollout is there at once."""
        return []

    def facts(self) -> dict[str, Any]:
        """Nothing is known of it but its name."""
        return {"name": self.name}

    def close(self) -> None:
        """It holds nothing."""

    def _completions(self, request: SampleRequest) -> list[str]:
        prompt = self._bytes.decode(request.prompt_token_ids)
        a, b = terms(prompt)
        low, high = RATES[kind_of(prompt)]
        rate = low + (high - low) * int(request.item_id[:8], 16) / 16**8
        draws = uniform_draws(
            self._seed, request.item_id, request.first_sample, 2 * request.samples
        ).reshape(-1, 2)
        return [
            f"From {int(100 * guess)}: {a} + {b} = \\boxed{{{value}}}."
            for luck, guess in draws.tolist()
            for value in [a + b if luck < rate else a + b + 1 + int(10 * guess)]
        ]


class GeneratedGradients:
    """A probe whose gradients are noise and, but for CHANCE items, a direction of the skill."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        self._bytes, self.dim = Bytes(), dim
        self._rng = np.random.default_rng(seed)
        self._skills = self._normal(SKILLS)

    def gradients(
        self, rollouts: Sequence[TokenizedRollout]
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield positions and gradients batch by batch."""
        for first in range(0, len(rollouts), 1024):
            positions = list(range(first, min(first + 1024, len(rollouts))))
            gradients = self._normal(len(positions))
            for gradient, position in zip(gradients, positions, strict=True):
                prompt = self._bytes.decode(rollouts[position].prompt_token_ids)
                if kind_of(prompt) != CHANCE:
                    gradient += self._skills[terms(prompt)[1] // SUMS_OF_SKILL]
            yield positions, gradients

    def _normal(self, rows: int) -> NDArray[np.float32]:
        return self._rng.standard_normal((rows, self.dim), dtype=np.float32)


def byte_vocabulary() -> dict[str, int]:
    """Every byte, as byte-level tokenizers write it, and its token id."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {token: number for number, token in enumerate(["<pad>", "<eos>", *alphabet])}


def save_model(folder: Path) -> Path:
    """Save a tiny random Llama whose tokens are bytes."""
    vocabulary = byte_vocabulary()
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
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def write_dataset(path: Path, items: int) -> Path:
    """Write the questions and answers of all items, and the skill that each asks for."""
    with path.open("w", encoding="utf-8") as file:
        for item in range(items):
            a, b = terms(question(item))
            skill = f"sums of {b // SUMS_OF_SKILL % 10}"
            row = {"question": question(item), "answer": str(a + b), "skill": skill}
            file.write(json.dumps(row) + "\n")
    return path


# --- Measuring -------------------------------------------------------------------------------


def peak_bytes(process: int | str = "self") -> int:
    """VmHWM of a process; 0 once it has ended."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def forget_peak() -> None:
    """Let VmHWM of this process begin again at what it holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def tag_and_watch(config: TagConfig) -> list[Cost]:
    """Run `curate tag` without its policy; what each stage cost, over all its rounds."""
    costs: dict[str, Cost] = {}
    worker_peak = 0
    stage, kill = RunFolder.stage, judging._Worker.kill

    @contextmanager
    def watched_stage(run: RunFolder, name: str) -> Iterator[dict[str, Any]]:
        before = costs.get(name, Cost(name, 0.0, 0.0, 0))
        forget_peak()
        seconds, cpu = time.monotonic(), cpu_seconds()
        with stage(run, name) as entry:
            yield entry
        costs[name] = Cost(
            name,
            before.seconds + time.monotonic() - seconds,
            before.cpu + cpu_seconds() - cpu,
            max(before.peak, peak_bytes()),
        )

    def watched_kill(worker: judging._Worker) -> None:
        nonlocal worker_peak
        worker_peak = max(worker_peak, peak_bytes(worker.process.pid))
        kill(worker)

    with (
        patch.object(RunFolder, "stage", watched_stage),
        patch.object(judging._Worker, "kill", watched_kill),
        patch.object(LoadedModel, "engine", return_value=GeneratedRollouts()),
        patch.object(LoadedModel, "probe", return_value=GeneratedGradients(config.gradient_dim)),
        patch.dict(tagging._SHARD_TOKENS, cpu=tagging._SHARD_TOKENS["cuda"]),
    ):
        tag_dataset(config)
    workers = max(config.verifier_workers, 1)
    return [
        Cost(c.name, c.seconds, c.cpu, c.peak + workers * worker_peak * (c.name == "verify"))
        for c in costs.values()
    ]


def commands(folder: Path) -> dict[str, list[str]]:
    """What a user does with a tagged dataset, by the name of the command."""
    run, chosen = str(folder / "run"), str(folder / "chosen.jsonl")
    return {
        "filter": ["filter", run, "--keep", "easy", "--keep", "learnable", "-o", chosen],
        "order": ["order", chosen, "--by", "curriculum", "-o", str(folder / "ordered.jsonl")],
        "report": ["report", run],
        "card": ["card", run, "-o", str(folder / "README.md")],
        "push": ["push", run, "--repo", "me/sums", "--dry-run"],
    }


def run_and_watch(name: str, arguments: Sequence[str]) -> Cost:
    """Run a command in a process of its own. Raises SystemExit where it fails."""
    start, cpu = time.monotonic(), cpu_seconds()
    # Not `-m curate`: what wait4 tells of a process's memory includes its parent's at the fork.
    command = [sys.executable, "-c", _COMMAND, *arguments]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        raise SystemExit(f"curate {' '.join(arguments)}: exit status {ran.returncode}")
    peak = 1024 * int(ran.stdout.split()[-1])
    return Cost(name, time.monotonic() - start, cpu_seconds() - cpu, peak)


def settings(folder: Path, items: int, arguments: argparse.Namespace) -> TagConfig:
    """Write dataset and model into a folder, and say how they are to be tagged."""
    return TagConfig(
        dataset=str(write_dataset(folder / "sums.jsonl", items)),
        model=str(save_model(folder / "model")),
        out=str(folder / "tagged.jsonl"),
        run_dir=str(folder / "run"),
        min_rollouts=arguments.rollouts,
        max_rollouts=max(arguments.rollouts, arguments.max_rollouts),
        max_tokens=MAX_TOKENS,
        instruction="",
        verifier=arguments.verifier,
        verifier_workers=arguments.workers,
        gradient_dim=arguments.dim,
        tau=TAU,
    )


def count_tags(tagged: Path) -> Counter[tuple[int, str | None]]:
    """Rows of the tagged file by kind and tag."""
    with tagged.open(encoding="utf-8") as file:
        rows = (json.loads(line) for line in file)
        return Counter((kind_of(row["question"]), row["trainability"]) for row in rows)


def bytes_by_kind(folder: Path) -> dict[str, int]:
    """Size of the run's files by what they hold, and of those written beside the run."""
    sizes: Counter[str] = Counter()
    for file in folder.rglob("*"):
        if file.is_file() and "model" not in file.parts:
            name = str(file.relative_to(folder))
            sizes[re.sub(r"/\d+\.parquet$", "/*.parquet", name)] += file.stat().st_size
    return {name: size for name, size in sizes.most_common() if size > 4096}


# --- The report ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A size, and what it cost."""

    items: int
    counts: dict[str, Any]
    """Of the run's manifest."""
    costs: list[Cost]
    sizes: dict[str, int]
    """Bytes on disk."""
    broken: list[str]
    """What is not as it should be."""


def measure(items: int, arguments: argparse.Namespace) -> Measured:
    """Tag so many items in a process of its own, then run the commands."""
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        here = [sys.executable, __file__, *sys.argv[1:], "--tag", str(items), "--in", name]
        subprocess.run(here, check=True)
        costs = [Cost(**cost) for cost in json.loads((folder / "costs.json").read_text())]
        costs += [run_and_watch(name, words) for name, words in commands(folder).items()]
        counts = read_manifest(folder / "run")["counts"]
        broken = wrong_tags(items, count_tags(folder / "tagged.jsonl"))
        return Measured(items, counts, costs, bytes_by_kind(folder), broken)


def wrong_tags(items: int, tags: Counter[tuple[int, str | None]]) -> list[str]:
    """Whether rows have no tag, or not the one that their item was made for."""
    broken = []
    with_tag = sum(count for (_, tag), count in tags.items() if tag in list(Trainability))
    if not with_tag == tags.total() == items:
        broken.append(f"{items:,} items, {tags.total():,} rows, {with_tag:,} of them with a tag")
    for kind, tag in ((EASY, Trainability.EASY), (NEVER, Trainability.NO_POSITIVE)):
        made = sum(count for (each, _), count in tags.items() if each == kind)
        if tags[kind, tag] < LEAST_AS_MADE * made:
            broken.append(f"only {tags[kind, tag]:,} of {made:,} items are tagged {tag}")
    return broken


def too_dear(earlier: Sequence[Measured], now: Measured) -> list[str]:
    """What holds too much memory, or grew faster than the items."""
    broken = []
    for cost in now.costs:
        if cost.peak > MOST_BYTES:
            broken.append(f"{now.items:,} items: {cost.name} held {cost.peak / 1e9:.2f} GB")
        growth = growth_of(earlier, now, cost)
        if growth is not None and cost.cpu > LEAST_SECONDS and growth > MOST_GROWTH:
            broken.append(f"{now.items:,} items: {cost.name} costs {growth:.2f} times an item")
    return broken


def growth_of(earlier: Sequence[Measured], now: Measured, cost: Cost) -> float | None:
    """How many times as much processor time a further item takes as at the size before.

    What a stage takes for no items at all, imports mostly, is in neither. None where there are no
    two sizes before, or where the stage took no time to speak of.
    """
    cpu = [
        (each.items, next((c.cpu for c in each.costs if c.name == cost.name), 0.0))
        for each in (*earlier[-2:], now)
    ]
    if len(cpu) < 3:
        return None
    (few, first), (some, second), (many, third) = cpu
    before = (second - first) / (some - few)
    return (third - second) / (many - some) / before if before > 0 else None


def print_size(earlier: Sequence[Measured], now: Measured) -> None:
    """Print the tables of one size."""
    counts = now.counts
    print(
        f"\n{now.items:,} items, {counts['rollouts_drawn']:,} rollouts in {counts['rounds']} "
        f"rounds, {counts['completion_tokens']:,} tokens, {counts['rollouts_correct']:,} correct"
    )
    print(", ".join(f"{count:,} {tag}" for tag, count in counts["tags"].items()))
    print(f"{'':<12}{'seconds':>10}{'CPU':>10}{'µs an item':>12}{'growth':>8}{'peak':>10}")
    whole = Cost(
        "all",
        sum(cost.seconds for cost in now.costs),
        sum(cost.cpu for cost in now.costs),
        max(cost.peak for cost in now.costs),
    )
    for cost in [*now.costs, whole]:
        growth = growth_of(earlier, now, cost)
        print(
            f"{cost.name:<12}{cost.seconds:>10.1f}{cost.cpu:>10.1f}"
            f"{1e6 * cost.cpu / now.items:>12.1f}"
            f"{'' if growth is None else f'{growth:.2f}':>8}{cost.peak / 1e9:>7.2f} GB"
        )
    print(f"{'bytes':>14}{'an item':>10}{'a rollout':>11}")
    for name, size in now.sizes.items():
        an_item, a_rollout = size / now.items, size / counts["rollouts_drawn"]
        print(f"{size:>14,}{an_item:>10.1f}{a_rollout:>11.2f}  {name}")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it, print the tables; 1 when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--max-rollouts", type=int, default=8)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--verifier", choices=("math", "numeric", "exact"), default="numeric")
    parser.add_argument("--workers", type=int, default=1, help="of the verifier")
    parser.add_argument("--folder", type=Path, help="for the files; default: the temporary one")
    parser.add_argument("--tag", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--in", type=Path, dest="inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.tag:
        costs = tag_and_watch(settings(arguments.inside, arguments.tag, arguments))
        (arguments.inside / "costs.json").write_text(json.dumps([asdict(cost) for cost in costs]))
        return 0
    done: list[Measured] = []
    broken = []
    for items in sorted(set(arguments.items)):
        now = measure(items, arguments)
        print_size(done, now)
        broken += [*now.broken, *too_dear(done, now)]
        done.append(now)
    for text in broken:
        print(f"failed: {text}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
