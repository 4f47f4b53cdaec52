"""The paper's ablation table in the planted world: every intervention of `all-small`, three seeds.

    .venv/bin/python -m benchmarks.study.planted_interventions [--folder runs/planted]

builds the world of `tests/worlds/planted.py` (seed 0), tags it, trains, confirms against
`baseline-small`, and prints what `curate confirm` says of the interventions. What is done already
is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.study.smollm2 import run_curate
from curate import confirm
from recipes.confirm.interventions_text import interventions_text
from tests.worlds.planted import MAX_TOKENS, build_world

ROLLOUTS = "512"


def main() -> None:
    """Do what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/planted"))
    folder: Path = parser.parse_args().folder
    run = folder / "run"
    if not (folder / "items.jsonl").exists():
        build_world(folder, seed=0)
    if not (folder / "tagged.jsonl").exists():
        run_curate(
            *("tag", str(folder / "items.jsonl"), "--model", str(folder / "model")),
            *("--out", str(folder / "tagged.jsonl"), "--run-dir", str(run), "--instruction", ""),
            *("--verifier", "numeric", "--max-tokens", str(MAX_TOKENS)),
            *("--min-rollouts", ROLLOUTS, "--max-rollouts", ROLLOUTS),
        )
    run_curate("validate", str(run), "--recipe", "all-small", "--seeds", "1,42,37")
    summary = confirm(run, "baseline-small")
    print(interventions_text(summary["interventions"]))


if __name__ == "__main__":
    main()
