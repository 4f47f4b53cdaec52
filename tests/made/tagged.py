"""A tiny model's finished run, and recipes that extend one beside it."""

import json
import shutil
from pathlib import Path

from tests.tag_runs import additions, tag, write_jsonl
from tests.tiny import save_tiny_model


def tagged_additions(folder: Path, *more: object, count: int = 20) -> Path:
    """Tag so many additions: `model`, `items.jsonl`, `run` and `tagged.jsonl` in the folder."""
    model, out = save_tiny_model(folder / "model"), folder / "tagged.jsonl"
    items = write_jsonl(folder / "items.jsonl", additions(count))
    ran = tag(items, "--model", model, "--run-dir", folder / "run", "--out", out, *more)
    assert ran.status == 0, ran.stderr
    return folder


def run_with_recipe(tagged: Path, folder: Path, recipe: str) -> Path:
    """A copy of the run in `tagged`; the recipe `quick.toml` lies beside it."""
    (folder / "quick.toml").write_text(recipe, encoding="utf-8")
    return Path(shutil.copytree(tagged / "run", folder / "run"))


def recipe_file(name: str, **changes: object) -> str:
    """`quick.toml` of the current folder with some changes, as a recipe beside it."""
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in changes.items()]
    text = 'extends = "./quick.toml"\n' + "".join(lines)
    Path(f"{name}.toml").write_text(text, encoding="utf-8")
    return f"./{name}.toml"
