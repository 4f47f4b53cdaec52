"""What is shipped, and what `--help` says and costs."""

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from curate import __version__
from curate.cli import _parser
from tests.tag_runs import ROOT, run_curate

LAYERS = ["curate", "probes", "recipes", "cards"]
TOP_LEVEL = {
    *LAYERS,
    *("tests", "benchmarks", "examples", "docs"),
    *("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "pyproject.toml", "constraints.txt"),
}


def test_the_wheel_has_the_four_packages_and_one_command(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        info = f"rl_curate-{__version__}.dist-info"
        names = archive.namelist()
        assert {name.partition("/")[0] for name in names} == {*LAYERS, info}
        commands = archive.read(f"{info}/entry_points.txt").decode().split("\n")
    assert [line for line in commands if line] == ["[console_scripts]", "curate = curate.cli:main"]
    for ending in (".py", ".toml", ".html", ".css", ".js", ".md", ".txt"):
        shipped = {n for n in names if n.endswith(ending) and not n.startswith(info)}
        files = [path for layer in LAYERS for path in (ROOT / layer).rglob(f"*{ending}")]
        assert shipped == {str(path.relative_to(ROOT)) for path in files}
    assert {
        "recipes/baseline.toml",
        "cards/report/page/report.html",
        "curate/constraints.txt",
    } <= set(names)


def test_the_top_level_holds_what_a_newcomer_looks_for_and_nothing_else() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    top = {name.partition("/")[0] for name in listed}
    assert {name for name in top if not name.startswith(".")} == TOP_LEVEL


def test_the_version_is_that_of_the_distribution() -> None:
    assert metadata.version("rl-curate") == __version__
    assert run_curate("--version").stdout == f"curate {__version__}\n"


# --- Help ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *(["--help"], ["--version"], ["tag", "--help"], ["compare", "--help"]),
        *(["judge", "--help"], ["augment", "--help"], ["forecast", "--help"]),
        *(["filter", "--help"], ["report", "--help"], ["push", "--help"], ["doctor", "--help"]),
    ],
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys\n"
        "from curate.cli import main\n"
        "try:\n"
        f"    main({command!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'numpy', 'datasets', 'scipy'}\n"
        "heavy |= {'httpx', 'huggingface_hub', 'yaml'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stderr == "set()\n"
    assert ran.stdout


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert {choice.dest for choice in action._choices_actions} == set(action.choices)
            assert all(choice.help for choice in action._choices_actions)
            for command in action.choices.values():
                yield from _parsers(command)


def test_every_command_and_option_has_help() -> None:
    parsers = list(_parsers(_parser()))
    assert len(parsers) > 1
    for parser in parsers:
        assert parser.description
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                said = (action.help or "").partition("(default")[0].strip()
                assert said and said != argparse.SUPPRESS, action


def test_the_options_that_users_meet_first_are_there() -> None:
    text = run_curate("tag", "--help").stdout
    for option in (
        *("--out", "--run-dir", "--engine", "--min-rollouts", "--max-rollouts"),
        *("--temperature", "--max-tokens"),
        *("--tau", "--verifier", "--prompt-field", "--answer-field", "--limit", "--seed"),
        *("--executor", "--ray-address", "--workers", "--shard"),
        *("--config", "--model", "DATASET"),
    ):
        assert option in text.split() or f"{option} " in text, option
