"""Running `curate tag` on the tiny model, and reading what it wrote without the code under test."""

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.cli import main
from probes.engines import transformers

ROOT = Path(__file__).resolve().parent.parent

# About 40 rollouts in 100 stop by themselves within 12 tokens, and few of them are right.
SMALL = (
    *("--verifier", "numeric", "--verifier-workers", "1", "--instruction", "", "--tau", "0.05"),
    *("--max-tokens", "12", "--gradient-dim", "256", "--min-rollouts", "32"),
)


@contextlib.contextmanager
def many_rows() -> Iterator[None]:
    """Decode 512 rows at once, which models far smaller than those of users have the memory for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(transformers._MOST_ROWS, "cpu", 512)
        patch.setattr(transformers, "_MOST_ROWS_OF_FLOAT32", 512)
        yield


@dataclass(frozen=True)
class Ran:
    """What one command gave."""

    status: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        return self.stderr.rstrip("\n").rpartition("\n")[2]


def run_curate(*arguments: object) -> Ran:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # --help and --version
            status = int(stop.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())


def tag(*arguments: object) -> Ran:
    """Run `curate tag` with the small settings; what comes in `arguments` overrides them."""
    return run_curate("tag", *_settled(arguments))


def _settled(arguments: Sequence[object]) -> list[object]:
    """The small settings and the others; one round of sampling unless they say otherwise."""
    settled = [*SMALL, *arguments]
    if "--max-rollouts" not in settled:
        last = len(settled) - settled[::-1].index("--min-rollouts")
        settled += ["--max-rollouts", settled[last]]
    return settled


def curate_command(*arguments: object) -> list[str]:
    """The same in a process of its own."""
    return [sys.executable, "-m", "curate", *map(str, arguments)]


def small_command(*arguments: object) -> list[str]:
    return curate_command("tag", *_settled(arguments))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """Write rows; one that is a string stands as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def additions(count: int) -> list[dict[str, str]]:
    """Different questions with one-digit answers, in the tiny model's words."""
    pairs = [(a, b) for a in range(10) for b in range(10) if a + b < 10]
    return [{"question": f"what is {a} + {b} ?", "answer": str(a + b)} for a, b in pairs[:count]]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; Python's int refuses more than 4,300 digits, so the longest are cut."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_int=lambda digits: int(digits[:4000])) for line in lines]


def read_rollouts(run: Path) -> pa.Table:
    """All rollouts of a run, in a canonical order."""
    files = sorted((run / "rollouts").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    return table.sort_by([("item_id", "ascending"), ("sample", "ascending")])


def assert_same_rollouts(first: pa.Table, second: pa.Table) -> None:
    """The same in all; a log-probability up to rounding, which goes with the batch it came from."""
    scores = [table["log_probability"].to_numpy() for table in (first, second)]
    assert first.drop_columns("log_probability").equals(second.drop_columns("log_probability"))
    # Above what bfloat16 does to a dozen tokens, far below how rollouts differ.
    np.testing.assert_allclose(*scores, rtol=0, atol=0.3)
