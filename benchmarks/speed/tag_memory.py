"""How much memory does `curate tag` take on a CPU, at its highest in each stage?

    python -m benchmarks.speed.tag_memory                    15,000 rollouts of 20 tokens, SmolLM2
    python -m benchmarks.speed.tag_memory --rollouts 3000    fewer
    python -m benchmarks.speed.tag_memory --folder runs/memory    kept there; once more goes on

tags items of examples/arithmetic.jsonl, repeated with other numbers, in a process of its own and
looks at its resident memory (VmRSS) ten times a second; the stage is the last one that the manifest
says was started. Exit status 1 where it was above `--limit`, which suits a model of 135M: 0.54 GB
are its weights in float32, and as much the interpreter with torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.study.smollm2 import smollm2

GB = 1e9
ROLLOUTS_AN_ITEM = 32


def main() -> int:
    """Tag, watch, print the highest of every stage; 1 where the limit was passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=15_000, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=20, metavar="N")
    parser.add_argument("--limit", type=float, default=1.5, metavar="GB")
    parser.add_argument("--model", default="", metavar="MODEL", help="default: SmolLM2-135M")
    parser.add_argument("--folder", type=Path, metavar="PATH", help="default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        highest = watch(options.folder or Path(temporary), options)
    for stage, size in highest.items():
        print(f"{stage:<12}{size / GB:>8.2f} GB")
    most = max(highest.values())
    print(f"{'highest':<12}{most / GB:>8.2f} GB, limit {options.limit:g} GB")
    return int(most > options.limit * GB)


def watch(folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """Resident bytes, at the highest, in each stage."""
    items = options.rollouts // ROLLOUTS_AN_ITEM
    rows = [
        {"question": f"What is {n % 97} + {n // 97}?", "answer": str(n % 97 + n // 97)}
        for n in range(items)
    ]
    dataset, run = folder / "sums.jsonl", folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = [
        *(sys.executable, "-m", "curate", "tag", str(dataset), "--model"),
        *(options.model or smollm2(), "--out", str(folder / "tagged.jsonl"), "--run-dir", str(run)),
        *("--min-rollouts", str(ROLLOUTS_AN_ITEM), "--max-rollouts", str(ROLLOUTS_AN_ITEM)),
        *("--max-tokens", str(options.max_tokens), "--instruction", "Just the answer."),
    ]
    highest: dict[str, int] = {}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            stage, size = _stage(run / "manifest.json"), _resident(process.pid)
            highest[stage] = max(highest.get(stage, 0), size)
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"curate tag ended with {process.returncode}")
    return highest


def _stage(manifest: Path) -> str:
    try:
        stages = json.loads(manifest.read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError):
        return "start"
    started = [name for name, entry in stages.items() if entry.get("state") == "started"]
    return started[-1] if started else next(reversed(stages), "start")


def _resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0][1]) * 1024 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
