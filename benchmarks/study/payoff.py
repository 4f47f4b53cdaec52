"""Does filtering pay? The arms of `pays-small` in a planted world, and on SmolLM2.

    python -m benchmarks.study.payoff planted [--folder runs/payoff-planted] [--seeds 1,42,37]
    python -m benchmarks.study.payoff smollm2 [--folder runs/payoff] [--seeds 1,42,37]
    python -m benchmarks.study.payoff study [--folder runs/smollm2-second] [--seeds 1,42,37]

tags the items of `tests/worlds/planted.py` (seed 0), or the 64 of examples/arithmetic.jsonl, with
512 rollouts each, trains `full-small`, `filtered-small`, `random-small`, `ordered-small` and
`trimmed-small` under one budget of rollouts, with held-out items of the same kinds evaluated on the
way, and prints what `curate confirm` says of it, then the pass rates on the way and task by task,
and of SmolLM2 the comparison on those tasks alone of which `filtered` keeps items. `study` does the
same with the items of the second SmolLM2 study, as `benchmarks/study/smollm2.py` tagged them; held
out are items of the first. The planted world takes minutes, SmolLM2 hours on two CPU cores; a run
that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.study.items import item_rows
from benchmarks.study.smollm2 import run_curate, smollm2
from curate.run.run import Run
from recipes.confirm.interventions_text import payoff_text
from recipes.confirm.payoff import payoff_table
from recipes.recipe import read_recipe
from tests.worlds.planted import MAX_TOKENS, MODULUS, Question, build_world

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HELD_OUT_PER_TASK = {"planted": 60, "smollm2": 12, "study": 10}
FOLDERS = {"planted": "payoff-planted", "smollm2": "payoff", "study": "smollm2-second"}
ARMS = ("full-small", "filtered-small", "random-small", "ordered-small", "trimmed-small")
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
    parser.add_argument("world", choices=sorted(FOLDERS))
    parser.add_argument("--folder", type=Path, help="(default: as above)")
    parser.add_argument("--seeds", default="1,42,37", help="of the training (default: %(default)s)")
    parser.add_argument("--arms", default=",".join(ARMS), help="(default: %(default)s)")
    arguments = parser.parse_args()
    world: str = arguments.world
    folder: Path = arguments.folder or Path("runs") / FOLDERS[world]
    held_out, run = folder / "held_out.jsonl", folder / "run"
    if world == "study" and not (run / "tags.parquet").exists():
        parser.error(f"{run} is not tagged: benchmarks/study/smollm2.py does it")
    items = EXAMPLES / "arithmetic.jsonl" if world == "smollm2" else folder / "items.jsonl"
    if world == "planted" and not items.exists():
        build_world(folder, seed=0)
    rows = HELD_OUT_ROWS[world](items)
    held_out.parent.mkdir(parents=True, exist_ok=True)
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not (run / "tags.parquet").exists():
        model = str(folder / "model") if world == "planted" else smollm2()
        out = ("--out", str(folder / "tagged.jsonl"), "--run-dir", str(run))
        run_curate("tag", str(items), "--model", model, *PROBE, *OPTIONS[world], *out)
    # Seed by seed, so that what is there early compares all arms.
    for seed in arguments.seeds.split(","):
        recipes = [word for arm in arguments.arms.split(",") for word in ("--recipe", arm)]
        run_curate("validate", str(run), *recipes, "--seeds", seed, "--held-out", str(held_out))
    run_curate("confirm", str(run), "--recipe", "full-small")
    print_curves(run)
    tasks = [row["task"] for row in rows]
    print_tasks(run, tasks)
    if world != "planted":
        print_kept_tasks(run, folder / "tagged.jsonl", tasks)


def print_curves(run: Path) -> None:
    """Print the held-out pass rate of each arm, mean over its seeds, on the way."""
    at = range(500, 3_001, 500)
    _print_line("held-out at rollouts", [f"{rollouts:,}" for rollouts in at])
    table = payoff_table(Run.open(run), "-small")
    assert table
    for name, arm in table["arms"].items():
        spent, rates = ([point[key] for point in arm["curve"]] for key in ("rollouts", "pass_rate"))
        _print_line(name, [f"{rate:.2f}" for rate in np.interp(at, spent, rates)])


def print_tasks(run: Path, tasks: list[str]) -> None:
    """Print the last held-out pass rate of each arm and seed, task by task.

    Args:
        run: the run folder.
        tasks: of the held-out items, in the order of their file.
    """
    task_of_item, names = np.array(tasks), list(dict.fromkeys(tasks))
    _print_line("last held-out pass rate", names)
    for arm in ARMS:
        for file in sorted((run / "validation" / arm).glob("*/held_out.parquet")):
            last = _last_evaluation(file)
            rates = last["total_correct_rollouts"].to_numpy() / last["total_rollouts"].to_numpy()
            means = [f"{rates[task_of_item == name].mean():.2f}" for name in names]
            _print_line(f"{arm}, seed {file.parent.name}", means)


def print_kept_tasks(run: Path, tagged: Path, tasks: list[str]) -> None:
    """Compare the arms on the held-out items of the tasks of which `filtered` keeps items.

    Args:
        run: the run folder.
        tagged: its tagged file.
        tasks: of the held-out items, in the order of their file.
    """
    kept = read_recipe("filtered-small")
    items = [json.loads(line) for line in tagged.read_text(encoding="utf-8").splitlines()]
    names = {
        item["task"]
        for item in items
        if item["trainability"] in kept.items and item["pass_rate"] <= kept.max_pass_rate
    }
    file = next((run / "validation" / "filtered-small").glob("*/held_out.parquet"))
    item_ids = _last_evaluation(file)["item_id"].to_pylist()
    chosen = {item_id for item_id, task in zip(item_ids, tasks, strict=True) if task in names}
    table = payoff_table(Run.open(run), "-small", chosen)
    assert table
    print(f"\non the tasks of which filtered keeps items ({', '.join(sorted(names))}):")
    print(payoff_text(table))


def _last_evaluation(file: Path) -> pa.Table:
    """The rows of the last evaluation; every one has the items in the order of their file."""
    table = pq.read_table(file)
    return table.filter(pc.equal(table["step"], pc.max(table["step"])))


def _print_line(head: str, cells: list[str]) -> None:
    print(f"{head:<24}" + "".join(f"{cell:>25}" for cell in cells))


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


def _rows_of_first_study(items: Path) -> list[dict[str, str]]:
    """Some items of each task of the first study, with which the second shares none."""
    known = {
        json.loads(line)["question"] for line in items.read_text(encoding="utf-8").splitlines()
    }
    by_task: dict[str, list[dict[str, str]]] = {}
    for row in item_rows("first"):
        assert row["question"] not in known
        by_task.setdefault(row["task"], []).append(row)
    return [row for each in by_task.values() for row in each[: HELD_OUT_PER_TASK["study"]]]


HELD_OUT_ROWS = {
    "planted": _planted_rows,
    "smollm2": _arithmetic_rows,
    "study": _rows_of_first_study,
}


if __name__ == "__main__":
    main()
