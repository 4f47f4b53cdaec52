"""The golden run: every command once on a tiny model, and all that it wrote and said.

The commands run through the command line alone, so that files may move behind it. What is expected
lies in tests/data/golden, a file a command; tests/test_golden.py compares. After a change that is
meant, write it anew, and read the difference before it is committed:

    OMP_NUM_THREADS=1 python -m tests.golden --write

Without --write it compares, as the test does. Models run on the CPU in float32, whatever the
machine has: the same seed then draws the same rollouts there, only last digits of floats differ.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from curate.cli import main
from tests.golden_contents import (
    Difference,
    Reader,
    compare,
    restored,
    shortened,
    write_json,
)
from tests.hub_stand_in import OWNER, TOKEN, HubStandIn
from tests.language_model import MODEL, language_model, parts, score
from tests.tiny import save_tiny_model

EXPECTED = Path(__file__).parent / "data" / "golden"
ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    *("tag", "merge", "forecast", "filter", "order", "validate", "confirm", "calibrate"),
    *("compare", "judge", "augment", "card", "push", "report", "doctor"),
)
REWARDS = '''
def right(completion, answer):
    """A last word that is small enough, or the answer: rates of several sizes."""
    last = completion.split()[-1:]
    return int(last == [answer] or (last != [] and last[0] in "0123456789"[: 12 - 3 * int(answer)]))
'''
TAG = (
    *("--model", "model", "--instruction", "", "--engine", "transformers", "--max-tokens", "12"),
    *("--batch-tokens", "4096", "--gradient-dim", "256", "--verifier-workers", "1"),
)
FIXED = (
    *("tag", "sums.jsonl", *TAG, "--verifier", "golden_rewards:right", "--tau", "0.1"),
    *("--min-rollouts", "32", "--max-rollouts", "32", "--run-dir", "fixed"),
    *("--out", "fixed.jsonl"),
)
IN_ROUNDS = (
    *("tag", "sums.csv", *TAG, "--verifier", "numeric", "--tau", "0.1", "--k", "1", "4"),
    *("--min-rollouts", "8", "--max-rollouts", "32", "--target", "target.jsonl"),
)
RECIPE = """
extends = "baseline"
max_steps = 4
prompts_per_step = 4
updates_per_step = 2
learning_rate = 1e-3
max_completion_length = 12
evaluation_temperature = 1.0
max_sampling_rounds = 3
save_every = 2
evaluate_every = 2
held_out_rollouts = 4
evaluation_rollouts = 8
"""
PILOT = """
extends = "pilot"
max_steps = 2
prompts_per_step = 4
num_generations = 8
learning_rate = 1e-2
lora_rank = 4
dynamic_sampling = false
"""


# --- Running -------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """Runs commands in the current folder and keeps what each wrote and said."""

    reader: Reader
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By command, then by what was tried."""
    before: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """All files before it, by the same two."""
    seconds: dict[str, float] = field(default_factory=dict)
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    _contents: dict[str, Any] = field(default_factory=dict)

    def run(
        self,
        group: str,
        name: str,
        *arguments: object,
        environment: dict[str, str] | None = None,
        after: Callable[[], object] = lambda: None,
        with_files: bool = True,
    ) -> None:
        """Run one command, in a process of its own where it has an environment of its own."""
        self._changes()
        self.before[group, name] = dict(self._contents)
        command = [str(argument) for argument in arguments]
        start = time.monotonic()
        status, out, err = (
            _in_process(command) if environment is None else _child(command, environment)
        )
        after()
        self.seconds[f"{group}: {name}"] = time.monotonic() - start
        record = {
            "command": " ".join(
                self.reader.text(repr(each) if " " in each or not each else each)
                for each in command
            ),
            "status": status,
            "stdout": self.reader.output(out),
            "stderr": self.reader.lines(err),
        }
        changes = self._changes()
        if with_files:
            record |= changes
        self.found.setdefault(group, {})[name] = record

    def _changes(self) -> dict[str, Any]:
        """The files that are not as they were at the last call, by their contents."""
        stamps = {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size)
            for path in sorted(Path().rglob("*"), key=str)
            if path.is_file() and path.parts[0] not in ("model", "__pycache__")
        }
        files = {}
        for name, stamp in stamps.items():
            if self._stamps.get(name) != stamp:
                contents = self.reader.file(Path(name))
                if self._contents.get(name) != contents:
                    files[name] = self._contents[name] = contents
        gone = sorted(self._stamps.keys() - stamps.keys())
        for name in gone:
            del self._contents[name]
        self._stamps = stamps
        return {"files": files} | ({"gone": gone} if gone else {})


def _in_process(command: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            status = main(command)
        except SystemExit as stop:  # --help and --version
            status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


def _child(command: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ran = subprocess.run(
        [sys.executable, "-m", "curate", *command],
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return ran.returncode, ran.stdout, ran.stderr


@contextlib.contextmanager
def _same_on_every_machine(folder: Path) -> Iterator[None]:
    """In the folder, with the CPU, float32 and wide lines, and without keys."""
    variables = {"COLUMNS": "10000", "NO_COLOR": "1", "TERM": "dumb", "OPENAI_API_KEY": ""}
    before = Path.cwd()
    with (
        mock.patch("torch.cuda.is_available", lambda: False),
        mock.patch("torch.cpu._is_avx512_bf16_supported", lambda: False),
        mock.patch("torch.cpu._is_amx_tile_supported", lambda: False),
        mock.patch.dict(os.environ, variables),
    ):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def record() -> Recorder:
    """Run everything in a new folder."""
    with tempfile.TemporaryDirectory() as name, language_model(_answer) as server:
        folder = Path(name).resolve()
        recorder = Recorder(Reader({str(folder): "<folder>", server.url: "<server>"}))
        with _same_on_every_machine(folder):
            _write_inputs()
            for part in (_tag, _train, _confirm, _ask, _choose, _publish, _fail, _help):
                part(recorder, server.url)
    return recorder


# --- The inputs ----------------------------------------------------------------------------------


def _additions(count: int) -> list[dict[str, Any]]:
    """Different questions with one-digit answers, in the tiny model's words."""
    pairs = [(a, b) for a in range(10) for b in range(10) if a + b < 10]
    return [
        {"question": f"what is {a} + {b} ?", "answer": str(a + b), "kind": f"of {a}"}
        for a, b in pairs[:count]
    ]


def _write_lines(path: str, rows: list[Any]) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _write_inputs() -> None:
    save_tiny_model(Path("model"))
    Path("golden_rewards.py").write_text(REWARDS, encoding="utf-8")
    Path("quick.toml").write_text(RECIPE, encoding="utf-8")
    Path("quick_pilot.toml").write_text(PILOT, encoding="utf-8")
    rows = _additions(54)
    odd = [
        rows[1],
        '{"question": "what is 8 + 1 ?",  "answer": "9", "kind": "ü", "big": 12345678901234567890}',
        {"question": "what is 9 + 9 ?", "answer": "18", "kind": "of 9"},
        {"question": "what is no answer"},
        '{"question": "what',
    ]
    _write_lines("sums.jsonl", [*rows[:42], *odd])
    _write_lines("target.jsonl", rows[40:52])
    _write_lines("held_out.jsonl", rows[48:])
    table = pa.Table.from_pylist([*rows[:24], {"question": "what is ?", "answer": "x"}])
    lines = [table.column_names, *(list(row.values()) for row in table.to_pylist())]
    _write_lines("sums.csv", [",".join(cell or "" for cell in line) for line in lines])


def _answer(messages: list[dict[str, str]]) -> object:
    """The judge counts words; the writer adds 1 to a sum, and who checks does not know 9."""
    system = messages[0]["content"]
    if "marker" in system:
        return score(len(parts(messages)["solution"].split()) % 6)
    numbers = [int(number) for number in re.findall(r"\b\d\b", messages[1]["content"])]
    if system.startswith("Write"):
        a, b = numbers[:2]
        problem = {"problem": f"what is {a} + {b} + 1 ?", "answer": str(a + b + 1)}
        return json.dumps({"problems": [problem, {"problem": f"{a}", "answer": "nothing"}]})
    total = sum(numbers)
    return json.dumps({"solution": "so", "answer": "8" if total == 9 else str(total)})


# --- The commands --------------------------------------------------------------------------------


def _tag(recorder: Recorder, _: str) -> None:
    recorder.run("tag", "fixed", *FIXED)
    recorder.run("tag", "finished already", *FIXED, "--json")
    recorder.run(
        "tag", "in rounds", *IN_ROUNDS, "--run-dir", "rounds", "--out", "rounds.csv", "--json"
    )
    for number in (1, 2):
        recorder.run("merge", f"rounds {number}, shard 1", *IN_ROUNDS, *_PARTS, "--shard", "1/2")
        recorder.run("merge", f"rounds {number}, shard 2", *IN_ROUNDS, *_PARTS, "--shard", "2/2")
        recorder.run("merge", f"rounds {number}", "merge", "parts", *(["--json"] * (number > 1)))


_PARTS = ("--min-rollouts", "16", "--run-dir", "parts", "--out", "parts.parquet")


def _train(recorder: Recorder, _: str) -> None:
    recorder.run(
        "forecast", "gradients", "forecast", "fixed", "--lift", "gradients", "--horizon", 2
    )
    recorder.run(
        "forecast",
        "pilot",
        "forecast",
        "fixed",
        "--lift",
        "pilot",
        "--recipe",
        "./quick_pilot.toml",
        "--json",
    )
    recorder.run(
        *("validate", "two seeds", "validate", "fixed", "--recipe", "./quick.toml"),
        *("--seeds", "1,2", "--keep", "policy", "--held-out", "held_out.jsonl", "--json"),
    )
    recorder.run("validate", "list", "validate", "--list")
    policy = "fixed/validation/quick/1/policy"
    recorder.run(
        "tag",
        "what was trained",
        *FIXED,
        "--model",
        policy,
        "--run-dir",
        "after",
        "--out",
        "after.parquet",
        with_files=False,
    )


def _confirm(recorder: Recorder, _: str) -> None:
    recorder.run("confirm", "as trained", "confirm", "fixed")
    recorder.run(
        "compare", "groups as confirmed", "compare", "fixed", "after", "-o", "moved.parquet"
    )
    _plant_outcomes()
    recorder.run("confirm", "planted outcomes", "confirm", "fixed", "--recipe", "planted", "--json")
    recorder.run("calibrate", "a file", "calibrate", "fixed", "-o", "predictor.json")
    recorder.run(
        *("tag", "with a predictor", *IN_ROUNDS[:-2], "--run-dir", "predicted"),
        *("--out", "predicted.jsonl", "--predictor", "predictor.json", "--gold-prefixes", "0"),
    )


def _plant_outcomes() -> None:
    """Outcomes that a calibration can use: hard items that are right more often are learned.

    But of each, every fourth is not as it should be.
    """
    tau = 0.1
    for seed in ("1", "2"):
        trained, folder = (
            Path("fixed/validation") / recipe / seed for recipe in ("quick", "planted")
        )
        shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("policy"))
        shutil.copy(trained.parent / "recipe.toml", folder.parent)
        facts = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(facts | {"recipe": "planted"}))
        table = pq.read_table(folder / "outcomes.parquet")
        rows = table.to_pylist()
        hard = [row for row in rows if 0 < row["initial_pass_rate"] < tau]
        hard.sort(key=lambda row: row["initial_correct"])
        for place, row in enumerate(hard):
            is_learned = (place >= len(hard) // 2) != (place % 4 == 3)
            rate = 0.5 if is_learned else 0.0
            row |= {"final_pass_rate": rate, "final_correct": int(rate * row["final_rollouts"])}
            row |= {"positive_in_training": True, "ever_positive": True}
        pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "outcomes.parquet")


def _ask(recorder: Recorder, url: str) -> None:
    asked = (
        "--base-url",
        url,
        "--judge-model",
        MODEL,
        "--concurrency",
        1,
        "--price-in",
        1,
        "--price-out",
        10,
    )
    recorder.run("judge", "dry run", "judge", "fixed", *asked, "--dry-run")
    recorder.run("judge", "scores", "judge", "fixed", *asked, "--per-item", 2, "--limit", 9)
    recorder.run(
        "judge", "kept answers", "judge", "fixed", *asked, "--per-item", 2, "--limit", 9, "--json"
    )
    recorder.run(
        "augment",
        "similar",
        "augment",
        "fixed",
        "--mode",
        "similar",
        *asked,
        "--limit",
        6,
        "--per-item",
        2,
    )
    recorder.run(
        "augment",
        "subproblems",
        "augment",
        "fixed",
        "--mode",
        "subproblems",
        *asked,
        "--limit",
        2,
        "--dry-run",
        "--json",
    )


def _choose(recorder: Recorder, _: str) -> None:
    recorder.run(
        "filter",
        "by tag",
        "filter",
        "fixed",
        "--keep",
        "easy",
        "--keep",
        "unlearnable",
        "--max-pass-rate",
        0.9,
        "--sample",
        12,
        "--dropped",
        "dropped.jsonl",
        "-o",
        "chosen.jsonl",
    )
    recorder.run(
        "filter",
        "by an expression",
        "filter",
        "rounds.csv",
        "--expr",
        'pass_rate > 0 and kind != "of 1"',
        "--json",
        "-o",
        "chosen.csv",
    )
    recorder.run(
        "filter",
        "balanced for verl",
        "filter",
        "fixed",
        "--by",
        "confirmed",
        "--balance",
        "--sample",
        8,
        "--seed",
        3,
        "--format",
        "verl",
        "--data-source",
        "sums",
        "-o",
        "verl.parquet",
    )
    recorder.run(
        "filter",
        "from Parquet",
        "filter",
        "parts.parquet",
        "--min-forecast",
        0.01,
        "--sample",
        4,
        "-o",
        "chosen.json",
    )
    recorder.run("order", "curriculum", "order", "chosen.jsonl", "-o", "ordered.jsonl")
    recorder.run(
        "order",
        "similarity for TRL",
        "order",
        "chosen.jsonl",
        "--by",
        "similarity",
        "--format",
        "trl",
        "-o",
        "trl.jsonl",
    )
    recorder.run(
        "order",
        "interleave",
        "order",
        "chosen.csv",
        "--by",
        "interleave",
        "--seed",
        2,
        "--json",
        "-o",
        "ordered.parquet",
    )


def _publish(recorder: Recorder, _: str) -> None:
    recorder.run("report", "everything", "report", "fixed")
    recorder.run(
        "report", "numbers", "report", "rounds", "-o", "rounds.html", "--json", with_files=False
    )
    recorder.run(
        "card",
        "everything",
        "card",
        "fixed",
        "--repo",
        "me/sums",
        "--language",
        "en",
        "--license",
        "mit",
    )
    recorder.run("card", "metadata", "card", "rounds", "-o", "rounds.md", "--json")
    recorder.run(
        "push", "dry run", "push", "fixed", "--repo", "me/sums", "--dry-run", "--with-rollouts"
    )
    recorder.run(
        "push", "dry run of CSV", "push", "rounds", "--repo", "me/rounds", "--dry-run", "--json"
    )
    with HubStandIn().running() as hub:
        environment = {
            **{"HF_ENDPOINT": hub.url, "HF_HOME": str(Path("hf").resolve()), "HF_TOKEN": TOKEN},
            **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        }
        recorder.reader.replaced[hub.url] = "<hub>"

        def fetch() -> None:
            for path, blob in hub.repositories[f"{OWNER}/sums"].files.items():
                file = Path("pushed") / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(blob.data)

        recorder.run(
            *("push", "to a stand-in", "push", "fixed", "--repo", f"{OWNER}/sums", "--private"),
            environment=environment,
            after=fetch,
        )


def _fail(recorder: Recorder, url: str) -> None:
    """Typical mistakes: each is one line."""
    Path("empty").mkdir()
    Path("wrong.toml").write_text("temprature = 1.0\n", encoding="utf-8")
    tag = ("tag", "sums.jsonl", "--model", "model")
    asked = ("--base-url", url, "--judge-model", MODEL)
    to = ("-o", "x.jsonl")
    mistakes: dict[str, tuple[object, ...]] = {
        "no command": (),
        "an unknown command": ("tagg", "sums.jsonl"),
        "an unknown option": ("tag", "sums.jsonl", "--modle", "model"),
        "an unknown choice": (*tag, "--engine", "nope"),
        "no number": (*tag, "--seed", "x"),
        "out of bounds": (*tag, "--tau", 2),
        "an option without its value": ("tag", "sums.jsonl", "--model"),
        "no model": ("tag", "sums.jsonl"),
        "no dataset file": ("tag", "nowhere.jsonl", "--model", "model"),
        "no model folder": ("tag", "sums.jsonl", "--model", "./nowhere"),
        "an unknown setting in a file": (*tag, "--config", "wrong.toml"),
        "an unknown verifier": (*tag, "--verifier", "maths"),
        "no such function": (*tag, "--verifier", "golden_rewards:no"),
        "an unknown column": (*tag, "--prompt-field", "qestion"),
        "a changed setting of a finished run": (*FIXED, "--max-tokens", 13),
        "another dataset for a finished run": ("tag", "target.jsonl", *FIXED[2:]),
        "an impossible shard": (*IN_ROUNDS, "--shard", "3/2"),
        "columns that are there already": ("tag", "fixed.jsonl", *FIXED[2:], "--run-dir", "again"),
        "no run folder": ("report", "nowhere"),
        "a folder without a run": ("report", "empty"),
        "a card of no run": ("card", "empty"),
        "no shards": ("merge", "empty"),
        "a lift from nowhere": ("forecast", "rounds", "--lift", "./nowhere"),
        "an unknown recipe": ("validate", "rounds", "--recipe", "baselin"),
        "no seed": ("validate", "rounds", "--recipe", "./quick.toml", "--seeds", "x"),
        "nothing validated": ("confirm", "rounds"),
        "nothing confirmed": ("calibrate", "rounds"),
        "one run twice": ("compare", "fixed", "fixed"),
        "a comparison as CSV": ("compare", "fixed", "after", "-o", "moved.csv"),
        "an unknown tag to judge": ("judge", "fixed", *asked, "--tags", "wizard"),
        "no server": ("judge", "fixed"),
        "nothing to augment": ("augment", "rounds", *asked, "--mode=similar", "--tags=learnable"),
        "an unknown column in --expr": ("filter", "fixed", "--expr", "pas_rate > 0", *to),
        "an --expr that is none": ("filter", "fixed", "--expr", "pass_rate >", *to),
        "an unknown tag": ("filter", "fixed", "--keep", "learnabel", *to),
        "no row left": ("filter", "fixed", "--min-pass-rate", 1.0, *to),
        "an unknown suffix": ("filter", "fixed", "-o", "x.txt"),
        "an unknown format": ("order", "fixed", "--format", "tlr", *to),
        "an unknown order": ("order", "fixed", "--by", "curriculun", *to),
        "no name for the Hub": ("push", "fixed", "--repo", "a b", "--dry-run"),
        "an unknown option of doctor": ("doctor", "--itemss", 3),
    }  # fmt: skip
    for name, arguments in mistakes.items():
        recorder.run("mistakes", name, *arguments)
    recorder.run("mistakes", "in a process of its own", "card", "nowhere", environment={})


def _help(recorder: Recorder, _: str) -> None:
    """The options of every command, whatever the layout of its help."""
    found: dict[str, Any] = {}
    for command in ("", *COMMANDS):
        status, out, err = _in_process([*command.split(), "--help"])
        found[f"curate {command}".strip()] = {
            "status": status,
            "options": _options(out),
            "stderr": err,
        }
    recorder.found["help"] = found
    recorder.run("help", "version", "--version", environment={})


def _options(text: str) -> list[str]:
    """Option names: of lines that begin with one, all before its explanation."""
    names = set()
    for line in text.splitlines():
        for part in re.split(r"\s{2,}", line.strip(" │*")):
            if re.match(r"--?[a-zA-Z]", part):
                names |= set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", part))
            elif not re.fullmatch(r"[A-Z*][A-Z_]*|\*", part):
                break
    return sorted(names)


# --- Comparing and writing -----------------------------------------------------------------------


def expected_groups() -> list[str]:
    return sorted(path.stem for path in EXPECTED.glob("*.json"))


def differences(group: str, recorder: Recorder) -> list[Difference]:
    """How one group of what was recorded is not what the committed file says."""
    expected = json.loads((EXPECTED / f"{group}.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps(recorder.found[group]))
    for name, record in expected.items():
        if "files" in record and "files" in found.get(name, {}):
            before = recorder.before[group, name]
            record["files"] = restored(record["files"], found[name]["files"], before)
    return list(compare(expected, found, f"curate {group}"))


def told(different: list[Difference], most: int = 25) -> str:
    """The differences, a line each."""
    lines = [str(each) for each in different[:most]]
    if len(different) > most:
        lines.append(f"... and {len(different) - most:,} more")
    lines.append("If this is meant: python -m tests.golden --write, and read the difference")
    return "\n".join(lines)


def _write(recorder: Recorder) -> None:
    EXPECTED.mkdir(parents=True, exist_ok=True)
    for path in EXPECTED.glob("*.json"):
        path.unlink()
    for group, records in recorder.found.items():
        short = {
            name: record
            | (
                {"files": shortened(record["files"], recorder.before[group, name])}
                if "files" in record
                else {}
            )
            for name, record in records.items()
        }
        (EXPECTED / f"{group}.json").write_text(write_json(short), encoding="utf-8")


def _main() -> int:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    start = time.monotonic()
    recorder = record()
    slowest = sorted(recorder.seconds.items(), key=lambda each: -each[1])[:8]
    print(f"{time.monotonic() - start:.0f} s;", ", ".join(f"{n} {s:.1f}" for n, s in slowest))
    if "--write" in sys.argv[1:]:
        _write(recorder)
        return 0
    different = [each for group in expected_groups() for each in differences(group, recorder)]
    print(told(different) if different else "as expected")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(_main())
