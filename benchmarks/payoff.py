"""Does filtering pay? The arms of `pays-small` in a planted world, and on SmolLM2.

    .venv/bin/python -m benchmarks.payoff planted [--folder runs/payoff-planted] [--seeds 1,42,37]
    .venv/bin/python -m benchmarks.payoff smollm2 [--folder runs/payoff] [--seeds 1,42,37]

tags the items of `tests/planted_world.py` (seed 0), or the 64 of examples/arithmetic.jsonl, with
512 rollouts each, trains `full-small`, `filtered-small`, `ordered-small` and `random-small` under
one budget of rollouts, with held-out items of the same kinds evaluated on the way, and prints what
`curate confirm` says of it. The planted world takes minutes, SmolLM2 hours on two CPU cores; a run
that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.smollm2_study import run_curate, smollm2
from tests.planted_world import MAX_TOKENS, MODULUS, Question, build_world

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
HELD_OUT_PER_TASK = {"planted": 60, "smollm2": 12}
ARMS = ("full-small", "filtered-small", "random-small", "ordered-small")
PROBE = ("--min-rollouts", "512", "--max-rollouts", "512")
OPTIONS = {
    "planted": ("--instruction", "", "--verifier", "numeric", "--max-tokens", str(MAX_TOKENS)),
    "smollm2": (
        *("--instruction", r"Answer with just the final answer in \boxed{}."),
        *("--max-tokens", "32", "--seed", "3"),
    ),
}


def main() -> None:
    """Do what is missing, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("world", choices=sorted(OPTIONS))
    parser.add_argument("--folder", type=Path, help="(default: runs/payoff[-planted])")
    parser.add_argument("--seeds", default="1,42,37", help="of the training (default: %(default)s)")
    arguments = parser.parse_args()
    planted = arguments.world == "planted"
    folder: Path = arguments.folder or Path("runs/payoff-planted" if planted else "runs/payoff")
    items = folder / "items.jsonl" if planted else EXAMPLES / "arithmetic.jsonl"
    if planted and not items.exists():
        build_world(folder, seed=0)
    held_out, run = folder / "held_out.jsonl", folder / "run"
    rows = _planted_rows(items) if planted else _arithmetic_rows(items)
    held_out.parent.mkdir(parents=True, exist_ok=True)
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not (run / "tags.parquet").exists():
        model = str(folder / "model") if planted else smollm2()
        out = ("--out", str(folder / "tagged.jsonl"), "--run-dir", str(run))
        run_curate("tag", str(items), "--model", model, *PROBE, *OPTIONS[arguments.world], *out)
    # Seed by seed, so that what is there early compares all arms.
    for seed in arguments.seeds.split(","):
        recipes = [word for arm in ARMS for word in ("--recipe", arm)]
        run_curate("validate", str(run), *recipes, "--seeds", seed, "--held-out", str(held_out))
    run_curate("confirm", str(run), "--recipe", "full-small")


def _planted_rows(items: Path) -> list[dict[str, str]]:
    """Questions of each wording that the items do not have; the answers of `code` are drawn."""
    known = {json.loads(line)["prompt"] for line in items.read_text(encoding="utf-8").splitlines()}
    rng = np.random.default_rng(1)
    rows = []
    for wording in ("plus", "add", "code"):
        pairs = rng.permutation([(a, b) for a in range(MODULUS) for b in range(MODULUS)]).tolist()
        questions = [
            Question(wording, a, b, int(rng.integers(MODULUS)) if wording == "code" else
                     (a + b) % MODULUS)
            for a, b in pairs
        ]  # fmt: skip
        fresh = [question for question in questions if question.prompt not in known]
        rows += [
            {"prompt": question.prompt, "answer": str(question.gold), "task": wording}
            for question in fresh[: HELD_OUT_PER_TASK["planted"]]
        ]
    return rows


def _arithmetic_rows(items: Path) -> list[dict[str, str]]:
    """Items of the same tasks that examples/arithmetic.jsonl does not have."""
    import reasoning_gym  # Of the extra `demo`.

    sys.path.insert(0, str(EXAMPLES))
    from make_arithmetic import SEED, TASKS

    known = {
        json.loads(line)["question"] for line in items.read_text(encoding="utf-8").splitlines()
    }
    rows: list[dict[str, str]] = []
    for task, _, settings in TASKS:
        wanted = len(rows) + HELD_OUT_PER_TASK["smollm2"]
        for item in reasoning_gym.create_dataset(task, size=1_000, seed=SEED + 1, **settings):
            if len(rows) < wanted and item["question"] not in known:
                known.add(item["question"])
                rows.append({"question": item["question"], "answer": item["answer"], "task": task})
    return rows


if __name__ == "__main__":
    main()
