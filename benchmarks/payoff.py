"""Does filtering pay on a real model? The arms of `pays-small` on SmolLM2 and examples/arithmetic.

    .venv/bin/python benchmarks/payoff.py [--folder runs/payoff] [--seeds 1,42,37]

tags the 64 items of examples/arithmetic.jsonl with 512 rollouts each, trains `full-small`,
`filtered-small`, `ordered-small` and `random-small` under one budget of rollouts, with 12 held-out
items of each task evaluated on the way, and prints what `curate confirm` says of it. It takes hours
on two CPU cores; a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.smollm2_study import smollm2

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
HELD_OUT_PER_TASK = 12
ARMS = ("full-small", "filtered-small", "random-small", "ordered-small")
PROBE = {
    "--instruction": r"Answer with just the final answer in \boxed{}.",
    "--max-tokens": "32",
    "--min-rollouts": "512",
    "--max-rollouts": "512",
    "--seed": "3",
}


def main() -> None:
    """Do what is missing, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/payoff"))
    parser.add_argument("--seeds", default="1,42,37", help="of the training (default: %(default)s)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    held_out, run = folder / "held_out.jsonl", folder / "run"
    if not held_out.exists():
        write_held_out(held_out)
    if not (run / "tags.parquet").exists():
        probe = [word for option in PROBE.items() for word in option]
        out = ["--out", str(folder / "tagged.jsonl"), "--run-dir", str(run)]
        _curate("tag", str(EXAMPLES / "arithmetic.jsonl"), "--model", smollm2(), *probe, *out)
    # Seed by seed, so that what is there early compares all arms.
    for seed in arguments.seeds.split(","):
        recipes = [word for arm in ARMS for word in ("--recipe", arm)]
        _curate("validate", str(run), *recipes, "--seeds", seed, "--held-out", str(held_out))
    _curate("confirm", str(run), "--recipe", "full-small")


def write_held_out(file: Path) -> None:
    """Write items of the same tasks that examples/arithmetic.jsonl does not have."""
    import reasoning_gym  # Of the extra `demo`.

    sys.path.insert(0, str(EXAMPLES))
    from make_arithmetic import SEED, TASKS

    known = {
        json.loads(line)["question"]
        for line in (EXAMPLES / "arithmetic.jsonl").read_text(encoding="utf-8").splitlines()
    }
    rows = []
    for task, _, settings in TASKS:
        wanted = len(rows) + HELD_OUT_PER_TASK
        for item in reasoning_gym.create_dataset(task, size=1_000, seed=SEED + 1, **settings):
            if len(rows) < wanted and item["question"] not in known:
                known.add(item["question"])
                rows.append({"question": item["question"], "answer": item["answer"], "task": task})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _curate(*arguments: str) -> None:
    print(f"curate {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "curate", *arguments], check=False)
    if done.returncode:
        sys.exit(f"curate {arguments[0]} failed; the same command goes on from there")


if __name__ == "__main__":
    main()
