"""What the files and folders in a run folder are called that are no tables."""

from __future__ import annotations

from pathlib import Path

from curate.errors import UsageError
from curate.settings import did_you_mean

# Files.
MANIFEST = "manifest.json"
CONFIG = "config.toml"
REJECTS = "rejects.jsonl"
LIFT_FACTS = "lift.json"
REPORT = "report.html"
CARD = "README.md"
# Folders.
TARGET = "target"
"""A run folder of its own: the items of `--target`."""
SHARDS = "shards"
"""Where `--shard` keeps the parts of a run, each a run folder."""
IMPORTED = "imported"
"""The prompts that `curate import` found in the files of rollouts, as a dataset."""
GRADIENTS = "gradients"
RESCORING = "rescoring"
PILOTS = "pilot"
VALIDATION = "validation"
JUDGING = "judging"
AUGMENTATION = "augmentation"
COMPARISONS = "comparison"
JOIN = ".join.json"
"""How the summary ends that `curate join` writes beside a file of several models."""
# In folders.
ROLLOUT_FEATURES = f"{GRADIENTS}/rollouts.npy"
ITEM_FEATURES = f"{GRADIENTS}/features.npy"
EMBEDDINGS = f"{VALIDATION}/prompt_embeddings.npy"
CONFIRMATION = f"{VALIDATION}/summary.json"
PREDICTOR = f"{VALIDATION}/predictor.json"
JUDGEMENT = f"{JUDGING}/summary.json"
ANSWERS = "answers.jsonl"
"""What language models answered, in the folder of the command that asked."""
# In the folder of a training, which is that of a seed; the recipe lies beside the seeds.
TRAINING = "run.json"
METRICS = "metrics.jsonl"
POLICY = "policy"
RECIPE = "recipe.toml"


def runs_here(path: str | Path) -> str:
    """What to say of run folders to somebody who named one that is none: those in `./runs`."""
    runs = sorted(str(each.parent) for each in Path("runs").glob(f"*/{MANIFEST}"))
    if not runs:
        return ""
    some = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
    return f"{did_you_mean(str(path), runs)}; runs here: {some}".replace("?; ", "? ")


def join_summary(file: str | Path) -> Path:
    """Where the summary of a file of several models lies: beside it, with an ending more."""
    return Path(f"{file}{JOIN}")


def is_joined(path: str | Path) -> bool:
    """Whether this is a file that `curate join` wrote, with its summary beside it."""
    return Path(path).is_file() and join_summary(path).is_file()


def check_run_folder(path: str | Path) -> None:
    """Refuse a folder without a manifest, before what takes seconds to import is imported.

    Raises:
        UsageError: it is no run folder.
    """
    if is_joined(path):
        raise UsageError(
            f"{Path(path)} is of several models, and this takes one: the run folder of its "
            "`curate tag`"
        )
    if not (Path(path) / MANIFEST).exists():
        raise UsageError(f"{Path(path)} is no run folder: it has no {MANIFEST}{runs_here(path)}")
