"""What is shipped, and what `--help` says and costs."""

import dataclasses
import inspect
import os
import pty
import re
import shlex
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import curate
from curate import __version__
from curate.cli import _settings
from curate.command import description
from curate.commands import COMMANDS, command_class, command_function
from tests.tag_runs import ROOT, run_curate

LAYERS = ["curate", "probes", "recipes", "cards"]
TOP_LEVEL = {
    *LAYERS,
    *("tests", "benchmarks", "examples", "docs"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *("Makefile", "pyproject.toml", "constraints.txt"),
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


def test_make_study_first_installs_what_its_items_are_made_by() -> None:
    # `make test` runs this too, and a make within make tells which folder it is in.
    words = ["make", "--no-print-directory", "-n", "study"]
    dry = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    installing = ".venv/bin/pip install --quiet --constraint constraints.txt reasoning-gym\n"
    assert dry.endswith(f"{installing}.venv/bin/python -m benchmarks.study.smollm2\n")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^reasoning_gym==[\d.]+$", pins, re.MULTILINE)


# --- Help ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
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


def test_the_library_is_imported_when_it_is_used() -> None:
    script = (
        "import sys, curate\n"
        "assert set(curate.__all__) <= {*dir(curate), *curate.FUNCTIONS, 'Run'}\n"
        "print({'torch', 'pyarrow', 'numpy', 'transformers'} & set(sys.modules))\n"
        "from curate import Run\n"
        "print({'torch', 'scipy', 'transformers', 'datasets'} & set(sys.modules))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\nset()\n"


def test_every_command_of_the_table_is_there_with_its_function_and_its_help() -> None:
    functions = {name for name in curate.__all__ if not name.startswith("__")}
    assert {entry.function or name for name, entry in COMMANDS.items()} == functions - {"Run"}
    stub = Path(curate.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    assert set(re.findall(r" as (\w+)$", stub, re.MULTILINE)) == set(curate.__all__)
    for command, entry in COMMANDS.items():
        name = entry.function or command
        cls, function = command_class(command), command_function(name)
        assert f"from {entry.place.partition(':')[0]} import {name} as {name}\n" in stub
        assert function is getattr(curate, name) and function.__name__ == name
        assert entry.help and function.__doc__
        about, _ = description(cls)
        assert about.endswith(".")
        assert {field.name for field in dataclasses.fields(cls)} >= set(
            {each.name for each in _settings(cls)} - {"config", "json"}
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help_that_no_terminal_reads_as_markup(command: str) -> None:
    from rich.text import Text

    cls = command_class(command)
    texts = [COMMANDS[command].help, *description(cls), *(each.help for each in _settings(cls))]
    for each in _settings(cls):
        assert each.help.partition("(default")[0].strip(), each.name
    for text in texts:
        assert Text.from_markup(text).plain == text


@pytest.mark.parametrize(
    "command", sorted(set(COMMANDS) - {"tag", "verify", "doctor", "calibrate"})
)
def test_a_function_has_the_settings_of_its_command(command: str) -> None:
    function = command_function(COMMANDS[command].function or command)
    options = {each.name for each in _settings(command_class(command))} - {"json", "list"}
    assert set(inspect.signature(function).parameters) == options
    for part in ("Args:", "Returns:", "Raises:", *(f"    {name}: " for name in options)):
        assert part in function.__doc__


def test_help_is_plain_where_it_is_piped_and_framed_on_a_terminal() -> None:
    environment = {**os.environ, "GITHUB_ACTIONS": "true", "COLUMNS": "80"}
    command = [sys.executable, "-m", "curate", "judge", "--help"]
    piped = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "\x1b" not in piped.stdout and "│" not in piped.stdout
    assert "\nThe language model:\n  --base-url URL " in piped.stdout
    assert max(map(len, piped.stdout.splitlines())) <= 80
    shown, other = pty.openpty()
    with subprocess.Popen(command, stdout=other, env={**environment, "TERM": "xterm"}) as process:
        os.close(other)
        text = b""
        while process.poll() is None or b"example" not in text:
            try:
                text += os.read(shown, 65536)
            except OSError:  # All is read, and the other side is closed.
                break
    assert b"The language model" in text and "╭".encode() in text and b"\x1b[" in text


# --- Completion ------------------------------------------------------------------------------


def _completed(line: str) -> list[str]:
    """What the shell is told could stand where a command line ends."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    ran = subprocess.run(
        [sys.executable, "-m", "curate"],
        env={
            **os.environ,
            "_CURATE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr == ""
    return ran.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("curate a", ["augment"]),
        ("curate tag x.jsonl --model m --grad", [
            "--gradient-rollouts", "--gradient-wrong-rollouts", "--gradient-dim",
            "--gradient-rank", "--gradient-alpha", "--gradient-targets",
        ]),
        ("curate tag x.jsonl --k 1 8 --engine v", ["vllm"]),
        ("curate validate runs/x --recipe replay --recipe clip-higher-s", ["clip-higher-small"]),
        ("curate augment runs/x --mode ", ["similar", "subproblems"]),
    ],
)  # fmt: skip
def test_the_shell_completes_commands_options_and_choices(line: str, words: list[str]) -> None:
    assert _completed(line) == words


def test_completion_is_shown_for_a_shell_that_is_named() -> None:
    shown = run_curate("--show-completion", "bash")
    assert shown.status == 0 and "_CURATE_COMPLETE=complete_bash" in shown.stdout


def test_completion_is_installed(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "curate", "--install-completion", "bash"],
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "bash completion installed in" in ran.stdout
    assert any("complete_bash" in f.read_text() for f in tmp_path.rglob("*") if f.is_file())


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
