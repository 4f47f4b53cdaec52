"""How the words of a command line are read, and how a command ends."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import curate
from curate.cli import main, read
from curate.commands import command_class
from curate.errors import UsageError
from tests.tag_runs import ROOT, run_curate


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tag x.jsonl --k 1 8 --tau 0.2", {"dataset": "x.jsonl", "k": [1, 8], "tau": 0.2}),
        ("tag --k 1 8 --k 4", {"k": [4]}),
        ("tag --k=2 x.jsonl", {"dataset": "x.jsonl", "k": [2]}),
        ("tag --gradient-targets q_proj v_proj --profile", {
            "gradient_targets": ["q_proj", "v_proj"], "profile": True,
        }),
        ("tag --seed 1 --seed 2", {"seed": 2}),
        ("tag --limit -1", {"limit": -1}),
        ("tag --base-url http://a --base-url http://b", {"base_url": ["http://a", "http://b"]}),
        ("tag --config a.toml --json x", {"config": "a.toml", "json": True, "dataset": "x"}),
        ("calibrate a b -o c.json d", {"runs": ["a", "b", "d"], "out": "c.json"}),
        ("report a -oc.html", {"run": "a", "out": "c.html"}),
        ("report -- -a", {"run": "-a"}),
        ("merge a --from b --from c", {"run": "a", "shards": ["b", "c"]}),
        ("validate --seeds 1,42", {"seeds": [1, 42]}),
        ("validate a --recipe b --recipe c", {"path": "a", "recipe": ["b", "c"]}),
        ("filter a -o b --min-lift -.5", {"tagged": "a", "out": "b", "min_lift": -0.5}),
    ],
)  # fmt: skip
def test_a_command_line_gives_settings(line: str, found: dict[str, Any]) -> None:
    name, *words = line.split()
    assert read(words, name) == found


def test_a_value_may_be_empty_or_a_sentence_that_begins_with_a_dash() -> None:
    assert read(["--instruction", ""], "tag") == {"instruction": ""}
    assert read(["--instruction="], "tag") == {"instruction": ""}
    assert read(["--instruction", "- think"], "tag") == {"instruction": "- think"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tag x --modle m", "unknown argument '--modle'; did you mean --model? (see curate tag "),
        ("tag x --mod m", "unknown argument '--mod'; did you mean --model?"),
        ("tag x y", "unknown argument 'y' (see curate tag --help)"),
        ("tag x --model --json", "--model needs a value (see curate tag --help)"),
        ("tag x --profile=yes", "--profile takes no value"),
        ("tag x --k", "--k needs a value"),
        ("tag x --k 1 eight", "--k is 'eight'; it must be a whole number"),
        ("push", "the following arguments are required: RUN, --repo (see curate push --help)"),
        ("validate a --seeds 1,x", "--seeds is '1,x'; it must be whole numbers, such as 1,42,37"),
    ],
)
def test_what_is_wrong_is_said(line: str, said: str) -> None:
    name, *words = line.split()
    with pytest.raises(UsageError) as refused:
        read(words, name)
    assert str(refused.value).startswith(said)


def test_words_before_a_command_are_checked() -> None:
    for words, said in (
        (["--verson"], "curate: unknown argument '--verson'; did you mean --version?"),
        (["merg", "x"], "curate: unknown command 'merg'; did you mean merge?"),
        ([], "curate: the following arguments are required: COMMAND"),
    ):
        ran = run_curate(*words)
        assert ran.status == 2 and ran.stderr.startswith(said) and ran.stderr.count("\n") == 1
        assert ran.stdout == ""


@pytest.mark.parametrize(
    "line",
    ["report nowhere", "card nowhere", "push nowhere --repo a/b --dry-run", "confirm nowhere",
     "calibrate nowhere", "compare nowhere elsewhere", "merge nowhere", "forecast nowhere --lift x",
     "judge nowhere --base-url http://localhost:1/v1 --judge-model m"],
)  # fmt: skip
def test_a_folder_that_is_none_is_refused_before_torch_is_imported(line: str) -> None:
    script = (
        "import sys\n"
        "from curate.cli import main\n"
        f"status = main({line.split()!r})\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "sys.exit(status + 10 * bool(heavy))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 2, ran.stderr
    assert "nowhere" in ran.stderr and ran.stderr.count("\n") == 1


def test_an_interruption_ends_with_130_and_one_line() -> None:
    script = (
        "import os, sys\n"
        "from probes.doctor import command\n"
        "number = int(sys.argv.pop(1))\n"
        "command.doctor = lambda *a, **b: os.kill(os.getpid(), number)\n"
        "from curate.cli import main\n"
        "sys.exit(main())\n"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        ran = subprocess.run(
            [sys.executable, "-c", script, str(int(number)), "doctor"],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert ran.returncode == 130, ran.stderr
        assert ran.stderr == "curate: interrupted; nothing was kept\n"


@pytest.mark.parametrize(
    ("error", "words", "said"),
    [
        (KeyboardInterrupt(), "merge runs", "the same command continues"),
        (KeyboardInterrupt("3 rollouts are kept"), "tag x --model m", "3 rollouts are kept"),
        (KeyboardInterrupt("3 rollouts are kept"), "tag x --model m --dry-run", "nothing was kept"),
        (KeyboardInterrupt(), "verify x", "nothing was kept"),
    ],
)
def test_an_interruption_says_what_is_kept(
    error: KeyboardInterrupt,
    words: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(self: object, started: float) -> None:
        raise error

    monkeypatch.setattr(command_class(words.split()[0]), "since", interrupted)
    assert main(words.split()) == 130
    assert capsys.readouterr().err == f"curate: interrupted; {said}\n"


def test_without_any_output_it_works_all_the_same() -> None:
    """Where a shell closed it, Python has no `sys.stdout` at all."""
    command = f"{sys.executable} -m curate --version >&-"
    ran = subprocess.run(
        ["sh", "-c", command], stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-m", "curate", "order", "--help"],
        stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    os.close(writing)
    assert ran.returncode == 1 and ran.stderr == ""


def test_the_functions_take_settings_by_place_and_by_name() -> None:
    with pytest.raises(UsageError, match="nowhere is no run folder"):
        curate.report("nowhere", "x.html")
    with pytest.raises(UsageError, match="--by is 'x'; it must be predicted or confirmed"):
        curate.filter("a.jsonl", "b.jsonl", by="x")
    with pytest.raises(TypeError):
        curate.judge("nowhere")
    with pytest.raises(TypeError):
        curate.card("nowhere", None, "merge.md")
