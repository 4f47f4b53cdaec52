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
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
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
from tests.stand_ins.hub import OWNER, TOKEN, HubStandIn
from tests.stand_ins.language_model import MODEL, language_model, parts, score
from tests.tiny import save_tiny_model

EXPECTED = Path(__file__).parent / "data" / "golden"
ROOT = Path(__file__).resolve().parent.parent
CRASHED = 99
COMMANDS = (
    *("tag", "import", "verify", "merge", "forecast", "join", "filter", "select", "order"),
    *("validate", "confirm", "score", "calibrate", "compare", "judge", "augment", "card", "push"),
    *("report", "doctor"),
)
GROUPS = (
    *("tag", "verify", "import", "merge", "forecast", "validate", "confirm", "score", "compare"),
    "calibrate",
    *("judge", "augment", "join", "filter", "select", "order", "report", "card", "push"),
    *("mistakes", "help"),
)
REWARDS = '''
def right(completion, answer):
    """A last word that is small enough, or the answer: rates of several sizes."""
    last = completion.split()[-1:]
    return int(last == [answer] or (last != [] and last[0] in "0123456789"[: 12 - 3 * int(answer)]))
'''
TAG = (
    "--model model --instruction '' --engine transformers --max-tokens 12 --batch-tokens 4096 "
    "--gradient-dim 256 --verifier-workers 1"
)
FIXED_SETTINGS = (
    f"{TAG} --verifier golden_rewards:right --tau 0.1 --min-rollouts 32 --max-rollouts 32"
)
FIXED = f"tag sums.jsonl {FIXED_SETTINGS} --run-dir fixed --out fixed.jsonl"
IN_ROUNDS = (
    f"tag sums.csv {TAG} --verifier numeric --tau 0.1 --k 1 4 --min-rollouts 8 --max-rollouts 32"
)
PARTS = f"{IN_ROUNDS} --target target.jsonl --min-rollouts 16 --run-dir parts --out parts.parquet"
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
    unfinished: list[str] = field(default_factory=list)
    """Why commands could not be run at all."""
    seconds: dict[str, float] = field(default_factory=dict)
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    _contents: dict[str, Any] = field(default_factory=dict)

    def run(
        self,
        name: str,
        line: str,
        *,
        group: str = "",
        environment: dict[str, str] | None = None,
        after: Callable[[], object] = lambda: None,
        with_files: bool = True,
    ) -> None:
        """Run one command line, in a process of its own where it has an environment of its own.

        Args:
            name: what is tried, for the reader.
            line: the arguments, as for a shell.
            group: the file of the expectation; the command's where it is empty.
            environment: variables beside those of this process.
            after: writes what is to be looked at beside the command's own files.
            with_files: whether the files that changed are kept.
        """
        command = shlex.split(line)
        group = group or command[0]
        self._changes()
        self.before[group, name] = dict(self._contents)
        start = time.monotonic()
        if environment is None:
            status, out, err = _in_process(command)
        else:
            status, out, err = _child(command, environment)
        after()
        self.seconds[f"{group}: {name}"] = time.monotonic() - start
        record = {
            "command": self.reader.text(line),
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
        except Exception as error:  # noqa: BLE001 - The other commands are told of all the same.
            status = CRASHED
            last = traceback.extract_tb(error.__traceback__)[-1]
            print(f"{error!r} in {last.filename}, line {last.lineno}", file=err)
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
    """In the folder, with one thread of the CPU, float32 and wide lines, and without keys."""
    variables = {"COLUMNS": "10000", "NO_COLOR": "1", "TERM": "dumb", "OPENAI_API_KEY": ""}
    before, threads = Path.cwd(), torch.get_num_threads()
    with (
        mock.patch("torch.cuda.is_available", lambda: False),
        mock.patch("torch.cpu._is_avx512_bf16_supported", lambda: False),
        mock.patch("os.getloadavg", lambda: (0.0, 0.0, 0.0)),
        # A slow machine would tell the estimate earlier, of fewer rollouts.
        mock.patch("probes.opening.SECONDS", math.inf),
        mock.patch("torch.cpu._is_amx_tile_supported", lambda: False),
        mock.patch.dict(os.environ, variables),
    ):
        os.chdir(folder)
        # More are not faster here, and much slower where other processes want them.
        torch.set_num_threads(1)
        try:
            yield
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)


def record() -> Recorder:
    """Run everything in a new folder."""
    with tempfile.TemporaryDirectory() as name, language_model(_answer) as server:
        folder = Path(name).resolve()
        recorder = Recorder(Reader({str(folder): "<folder>", server.url: "<server>"}))
        with _same_on_every_machine(folder):
            _write_inputs()
            for part in (_tag, _train, _confirm, _ask, _choose, _join, _publish, _fail, _help):
                try:
                    part(recorder, server.url)
                except OSError:  # A command before it did not write what it needs.
                    recorder.unfinished.append(traceback.format_exc())
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
    recorder.run("fixed", FIXED)
    recorder.run("finished already", f"{FIXED} --json")
    recorder.run(
        "in rounds",
        f"{IN_ROUNDS} --target target.jsonl --run-dir rounds --out rounds.csv --json",
    )
    _verify(recorder)
    _import(recorder)
    for number, options in (("1", ""), ("2", " --json")):
        for shard in ("1/2", "2/2"):
            recorder.run(
                f"rounds {number}, shard {shard}", f"{PARTS} --shard {shard}", group="merge"
            )
        recorder.run(f"rounds {number}", f"merge parts{options}")


def _import(recorder: Recorder) -> None:
    told = [
        {"prompt": f"what is {a} + 1 ?", "completion": str(a + 1), "reward": int(right)}
        for a in range(3)
        for right in [False] * (10 - a) + [True] * a
    ]
    _write_lines("told.jsonl", told)
    recorder.run(
        "a table without a policy",
        "import told.jsonl --rollouts-by 'a 7B' --max-tokens 64 --tau 0.15 --run-dir told",
    )
    recorder.run("its card", "card told", group="import")
    recorder.run(
        "a run", "import fixed --run-dir taken --out taken.jsonl --verifier numeric --json"
    )


def _verify(recorder: Recorder) -> None:
    rows = [
        {"completion": r"so \boxed{7 * 8}", "answer": "56", "reward": 0},
        {"completion": ["it is 0.5", r"\boxed{\frac{1}{2}}"], "answer": "#### 1/2", "reward": 1},
        {"completion": "well", "answer": "5"},
        {"completion": "5"},
    ]
    _write_lines("answers.jsonl", rows)
    recorder.run("two strings", r"verify --answer 'it is \boxed{7}' --gold 7")
    recorder.run("a file", "verify answers.jsonl --verifier-workers 1 --json")
    recorder.run("numeric", "verify answers.jsonl --verifier numeric --out verdicts.csv")
    recorder.run("golds", "verify sums.jsonl --show 3 --verifier-workers 1")
    recorder.run("a run", "verify rounds --limit 40 --show 5 --verifier-workers 1")


def _train(recorder: Recorder, _: str) -> None:
    recorder.run("gradients", "forecast fixed --lift gradients --horizon 2")
    recorder.run("pilot", "forecast fixed --lift pilot --recipe ./quick_pilot.toml --json")
    recorder.run(
        "two seeds",
        "validate fixed --recipe ./quick.toml --seeds 1,2 --keep policy "
        "--held-out held_out.jsonl --json",
    )
    recorder.run("list", "validate --list")
    policy = "fixed/validation/quick/1/policy"
    recorder.run(
        "what was trained",
        f"{FIXED} --model {policy} --run-dir after --out after.parquet",
        with_files=False,
    )


def _confirm(recorder: Recorder, _: str) -> None:
    recorder.run("as trained", "confirm fixed")
    recorder.run("groups as confirmed", "compare fixed after -o moved.parquet")
    recorder.run("a checkpoint", "score after --model model --rollouts 8 --max-tokens 10")
    _plant_outcomes()
    recorder.run("planted outcomes", "confirm fixed --recipe planted --json")
    recorder.run("a file", "calibrate fixed -o predictor.json")
    recorder.run(
        "with a predictor",
        f"{IN_ROUNDS} --predictor predictor.json --gold-prefixes 0 --run-dir predicted "
        "--out predicted.jsonl",
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
    asked = f"--base-url {url} --judge-model {MODEL} --concurrency 1 --price-in 1 --price-out 10"
    recorder.run("dry run", f"judge fixed {asked} --dry-run")
    recorder.run("scores", f"judge fixed {asked} --per-item 2 --limit 6")
    recorder.run("kept answers", f"judge fixed {asked} --per-item 2 --limit 6 --json")
    recorder.run("beside CSV", f"judge rounds {asked} --per-item 1 --limit 2 --tags undetermined")
    recorder.run("similar", f"augment fixed --mode similar {asked} --limit 4 --per-item 2")
    recorder.run(
        "subproblems", f"augment fixed --mode subproblems {asked} --limit 2 --dry-run --json"
    )


def _choose(recorder: Recorder, _: str) -> None:
    recorder.run(
        "by tag",
        "filter fixed --keep easy --keep unlearnable --max-pass-rate 0.9 --sample 12 "
        "--dropped dropped.jsonl -o chosen.jsonl",
    )
    recorder.run(
        "by an expression",
        """filter rounds.csv --expr 'pass_rate > 0 and kind != "of 1"' --json -o chosen.csv""",
    )
    recorder.run(
        "balanced for verl",
        "filter fixed --by confirmed --balance --sample 8 --seed 3 --format verl "
        "--data-source sums -o verl.parquet",
    )
    recorder.run(
        "from Parquet", "filter parts.parquet --min-forecast 0.01 --sample 4 -o chosen.json"
    )
    recorder.run(
        "by value", "select fixed --budget 40% --quota kind --dropped left.jsonl -o selected.jsonl"
    )
    recorder.run(
        "gain from CSV", "select rounds.csv --rollouts 64 --by gain --json -o selected.parquet"
    )
    recorder.run("curriculum", "order chosen.jsonl -o ordered.jsonl")
    recorder.run(
        "similarity for TRL", "order chosen.jsonl --by similarity --format trl -o trl.jsonl"
    )
    recorder.run(
        "interleave", "order chosen.csv --by interleave --seed 2 --json -o ordered.parquet"
    )
    recorder.run(
        "schedule",
        "order fixed --by schedule --epochs 2 --batch 8 --repeats 3 --first-rate 0.5 --last-rate 0 "
        "--quota kind --weights weights.csv -o scheduled.jsonl",
    )


def _join(recorder: Recorder, _: str) -> None:
    """Two probes of the same items, by the policy before and after its training."""
    recorder.run("two models", "join fixed after -o both.jsonl")
    names = "--name before --name after"
    recorder.run("other rows", f"join rounds fixed {names} -o both.csv --json")
    choose = "before.pass_rate > 0 and after.trainability is not None"
    recorder.run("by both", f"filter both.csv --model before --expr '{choose}' -o two.csv")
    recorder.run("of several", "card both.jsonl --repo me/sums")


def _publish(recorder: Recorder, _: str) -> None:
    recorder.run("everything", "report fixed")
    recorder.run("numbers", "report rounds -o rounds.html --json", with_files=False)
    recorder.run("everything", "card fixed --repo me/sums --language en --license mit")
    recorder.run("metadata", "card rounds -o rounds.md --json")
    recorder.run("dry run", "push fixed --repo me/sums --dry-run --with-rollouts")
    with HubStandIn().running() as hub:
        environment = {
            **{"HF_ENDPOINT": hub.url, "HF_HOME": str(Path("hf").resolve()), "HF_TOKEN": TOKEN},
            **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        }
        recorder.reader.replaced[hub.url] = "<hub>"

        def fetch() -> None:
            for name, repository in hub.repositories.items():
                for path, blob in repository.files.items():
                    file = Path("pushed") / name / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(blob.data)

        for name, line in (
            ("everything", f"push fixed --repo {OWNER}/sums --private"),
            ("of CSV", f"push rounds --repo {OWNER}/rounds --with-rollouts --with-rewards --json"),
        ):
            recorder.run(name, line, environment=environment, after=fetch)


def _fail(recorder: Recorder, url: str) -> None:
    """Typical mistakes: each is one line."""
    Path("empty").mkdir()
    Path("wrong.toml").write_text("temprature = 1.0\n", encoding="utf-8")
    tag = "tag sums.jsonl --model model"
    asked = f"--base-url {url} --judge-model {MODEL}"
    again = f"{FIXED_SETTINGS} --run-dir again --out again.jsonl"
    mistakes = {
        "no command": "",
        "an unknown command": "tagg sums.jsonl",
        "an unknown option": "tag sums.jsonl --modle model",
        "an unknown choice": f"{tag} --engine nope",
        "no number": f"{tag} --seed x",
        "out of bounds": f"{tag} --tau 2",
        "an option without its value": "tag sums.jsonl --model",
        "no model": "tag sums.jsonl",
        "no dataset file": "tag nowhere.jsonl --model model",
        "no model folder": "tag sums.jsonl --model ./nowhere",
        "an unknown setting in a file": f"{tag} --config wrong.toml",
        "an unknown verifier": f"{tag} --verifier maths",
        "no such function": f"{tag} --verifier golden_rewards:no",
        "an unknown column": f"{tag} --prompt-field qestion",
        "a changed setting of a finished run": f"{FIXED} --max-tokens 13",
        "another dataset for a finished run": FIXED.replace("sums.jsonl", "target.jsonl"),
        "an impossible shard": f"{IN_ROUNDS} --shard 3/2",
        "the dataset itself as output": FIXED.replace("sums.jsonl", "fixed.jsonl"),
        "columns that are there already": f"tag chosen.jsonl {again}",
        "no run folder": "report nowhere",
        "a folder without a run": "report empty",
        "a card of no run": "card empty",
        "no shards": "merge empty",
        "a lift from nowhere": "forecast rounds --lift ./nowhere",
        "an unknown recipe": "validate rounds --recipe baselin",
        "no seed": "validate rounds --recipe ./quick.toml --seeds x",
        "nothing validated": "confirm rounds",
        "no checkpoint": "score fixed --model ./nowhere",
        "nothing confirmed": "calibrate rounds",
        "one run twice": "compare fixed fixed",
        "a comparison as CSV": "compare fixed after -o moved.csv",
        "an unknown tag to judge": f"judge fixed {asked} --tags wizard",
        "no server": "judge fixed",
        "nothing to augment": f"augment rounds {asked} --mode similar --tags learnable",
        "an unknown column in --expr": "filter fixed --expr 'pas_rate > 0' -o x.jsonl",
        "an --expr that is none": "filter fixed --expr 'pass_rate >' -o x.jsonl",
        "an unknown tag": "filter fixed --keep learnabel -o x.jsonl",
        "no row left": "filter fixed --min-pass-rate 1.0 -o x.jsonl",
        "an unknown suffix": "filter fixed -o x.txt",
        "an unknown format": "order fixed --format tlr -o x.jsonl",
        "rejected rows for a trainer": "order fixed --format trl -o x.jsonl",
        "one run to join": "join fixed -o x.jsonl",
        "an order of several models": "order both.jsonl -o x.jsonl",
        "several models to push": "push both.jsonl --repo me/x",
        "an unknown order": "order fixed --by curriculun -o x.jsonl",
        "no name for the Hub": "push fixed --repo 'a b' --dry-run",
        "an unknown option of doctor": "doctor --itemss 3",
    }
    for name, line in mistakes.items():
        recorder.run(name, line, group="mistakes")
    recorder.run("in a process of its own", "card nowhere", group="mistakes", environment={})


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
    recorder.run("version", "--version", group="help", environment={})


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
    """What there is a file of, in the order of the run: a later one may differ by an earlier."""
    order = [*GROUPS, *(path.stem for path in EXPECTED.glob("*.json"))]
    return sorted({path.stem for path in EXPECTED.glob("*.json")}, key=order.index)


def differences(group: str, recorder: Recorder) -> list[Difference]:
    """How one group of what was recorded is not what the committed file says."""
    expected = json.loads((EXPECTED / f"{group}.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps(recorder.found.get(group, {})))
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
    start = time.monotonic()
    recorder = record()
    slowest = sorted(recorder.seconds.items(), key=lambda each: -each[1])[:8]
    print(f"{time.monotonic() - start:.0f} s;", ", ".join(f"{n} {s:.1f}" for n, s in slowest))
    if recorder.unfinished:
        print(*recorder.unfinished, sep="\n")
        return 1
    if "--write" in sys.argv[1:]:
        _write(recorder)
        return 0
    different = [each for group in expected_groups() for each in differences(group, recorder)]
    print(told(different) if different else "as expected")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(_main())
