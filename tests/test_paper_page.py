"""docs/paper.md: every command in it parses, every recipe exists, and every recipe is in it."""

import re
import shlex
from pathlib import Path

import pytest

from curate.cli import read
from recipes.recipe import read_recipes
from tests.tag_runs import ROOT

PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
# Two words, such as `curate judge`, name a command and are none.
COMMANDS = [
    line
    for line in (*BLOCKS.splitlines(), *re.findall(r"`([^`\n]+)`", PAGE))
    if re.match(r"(curate|python) \S+ \S", line)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_parses(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "python":
        assert arguments[0] == "-m"
        assert (ROOT / f"{arguments[1].replace('.', '/')}.py").is_file()
        return
    found = read(arguments[1:], arguments[0])
    if isinstance(found.get("recipe"), list):
        assert read_recipes(found["recipe"])


def test_no_recipe_of_the_paper_is_left_out() -> None:
    named = {name for command in COMMANDS for name in re.findall(r"--recipe (\S+)", command)}
    not_of_it = {"full", "filtered", "trimmed", "ordered", "random", "pilot", "lora-7b"}
    ours = {file.stem for file in Path(ROOT / "recipes").glob("*.toml")}
    assert named - {"pays"} == {n for n in ours if not n.endswith("-small")} - not_of_it


def test_what_the_page_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links and all((ROOT / "docs" / link).is_file() for link in links)
    assert "docs/paper.md" in (ROOT / "README.md").read_text(encoding="utf-8")
