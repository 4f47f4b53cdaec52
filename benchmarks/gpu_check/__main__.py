"""Does what was built without a GPU hold on one? 18 checks in eight minutes, a JSON line each.

    python -m benchmarks.gpu_check
    python -m benchmarks.gpu_check --cpu --only 2 7

Weights are random, made from configurations: nothing is downloaded. It needs torch, transformers,
tokenizers and NumPy, and PEFT and accelerate for checks 4 and 18. A table with the device's name
comes last. Exit status 0: none failed; 1: one did; 2: there is no CUDA GPU. `--cpu` runs, small,
what makes sense on a CPU, so that the script itself can be tried.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import engine, gradients, memory, training
from benchmarks.gpu_check.models import Place
from benchmarks.gpu_check.result import Found, LeftOut
from probes.models.load import device_name, give_back_freed_memory

SECONDS = 480.0
Check = Callable[[Place], Found]
CHECKS: dict[int, tuple[str, Check]] = {
    1: ("device, dtype, loading", engine.loading),
    2: ("gradients against the CPU, float32", gradients.against_cpu),
    3: ("gradients in bfloat16", gradients.in_bfloat16),
    4: ("gradients against PEFT", gradients.against_peft),
    5: ("flash attention", gradients.flash_attention),
    6: ("memory by length", memory.by_length),
    7: ("recomputed blocks", memory.recomputed_blocks),
    8: ("out of memory in gradients", memory.out_of_memory),
    9: ("speed of gradients", gradients.speed),
    10: ("first tokens against softmax", engine.first_tokens),
    11: ("rollouts drawn again", engine.drawn_again),
    12: ("speed of sampling", engine.speed),
    13: ("engine and policy take turns", engine.turns),
    14: ("mixtures of experts", gradients.experts),
    15: ("quantised weights", gradients.quantised),
    16: ("embeddings of prompts", engine.embeddings),
    17: ("training in float32 under autocast", training.steps),
    18: ("process group of one", training.process_group),
}


def run(
    place: Place,
    numbers: Sequence[int],
    *,
    seconds: float = SECONDS,
    checks: dict[int, tuple[str, Check]] = CHECKS,
) -> Iterator[dict[str, Any]]:
    """Run checks in turn: a record each; one that raises has failed, and the others go on."""
    began = time.monotonic()
    for number in numbers:
        name, check = checks[number]
        start = time.monotonic()
        if start - began > seconds:
            found = Found(None, f"{seconds:.0f} s were over")
        else:
            found = _one(check, place)
        yield {
            "check": number, "name": name, "passed": found.passed,
            "seconds": round(time.monotonic() - start, 1), "text": found.text,
            "numbers": found.numbers,
        }  # fmt: skip


def _one(check: Check, place: Place) -> Found:
    try:
        return check(place)
    except LeftOut as reason:
        return Found(None, str(reason))
    except Exception as error:  # noqa: BLE001 (whatever a library raises is the finding)
        first = next(iter(str(error).strip().splitlines()), "")
        return Found(False, f"{type(error).__name__}: {first[:300]}")
    finally:
        give_back_freed_memory()
        if place.is_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def table(records: Sequence[dict[str, Any]], device: str) -> str:
    """A Markdown table of all records, under the device's name."""
    words = {True: "passed", False: "**failed**", None: "left out"}
    lines = [
        f"{device}, torch {torch.__version__}, {sum(r['seconds'] for r in records):.0f} s", "",
        "| # | check | | s | found |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for each in records:
        text = each["text"].replace("|", "\\|")
        lines.append(
            f"| {each['check']} | {each['name']} | {words[each['passed']]} | "
            f"{each['seconds']:.0f} | {text} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks that are asked for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="on the CPU, small")
    parser.add_argument("--only", type=int, nargs="+", choices=list(CHECKS), metavar="N")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all (%(default)s)")
    asked = parser.parse_args(arguments)
    if not asked.cpu and not torch.cuda.is_available():
        print("there is no CUDA GPU here; --cpu runs what makes sense without", file=sys.stderr)
        return 2
    device = torch.device("cpu" if asked.cpu else "cuda")
    records = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(device, asked.cpu, Path(folder))
        for record in run(place, asked.only or list(CHECKS), seconds=asked.seconds):
            print(json.dumps(record), flush=True)
            records.append(record)
    print(f"\n{table(records, device_name(device))}")
    return 1 if any(record["passed"] is False for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
