"""Opening files of rollouts: which program wrote them is told by their columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from curate.datasets.source import open_source
from curate.errors import UsageError
from curate.rollout_files import by_step
from curate.rollout_files.nemo_gym import NEMO_GYM
from curate.rollout_files.open_instruct import OPEN_INSTRUCT
from curate.rollout_files.open_r1 import OPEN_R1
from curate.rollout_files.record import COLUMNS, Format, LoggedRollout
from curate.rollout_files.table import TABLE
from curate.rollout_files.trl import TRL
from curate.rollout_files.verifiers import EPISODES, RESULTS, TRACES
from curate.rollout_files.verl import VERL
from curate.settings import did_you_mean

FORMATS: tuple[Format, ...] = (
    *(VERL, OPEN_INSTRUCT, EPISODES, TRACES, RESULTS, NEMO_GYM, TRL, OPEN_R1, TABLE),
)
"""The first that fits a row is taken; the last takes any."""
_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".jsonl.gz", ".jsonl.zst")
# Beside the rollouts: open-instruct's facts of a run, the settings of others.
_NOT_ROLLOUTS = re.compile(
    r".*_metadata\.jsonl|(metadata|config|summary|results|dataset_infos?)\.json|\..*"
)
# `12.jsonl`, `completions_00012.parquet`, `step_12.jsonl`; `step_12/train_rollouts.jsonl`.
_STEP_OF_FILE = re.compile(r"(?:completions_|(?:global_)?step[_-]?)?(\d+)")
_STEP_OF_FOLDER = re.compile(r"(?:global_)?step[_-]?(\d+)")


@dataclass(frozen=True)
class RolloutFiles:
    """Files of rollouts of one program.

    Attributes:
        path: what was named, a file or a folder.
        files: those that are read, in order.
        format: who wrote them.
        unreadable: rows that were left out while the files were read, to be looked at afterwards.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    columns: Mapping[str, str]
    unreadable: list[str]

    def rollouts(self) -> Iterator[LoggedRollout]:
        """Stream the rollouts of all files.

        Raises:
            UsageError: a file breaks off, or has no column that is needed.
        """
        self.unreadable.clear()
        last: tuple[str, ...] = ()
        for file in self.files:
            found = _in_file(file, self.format, self.columns, self.unreadable)
            if self.format != TRL.name:
                yield from found
                continue
            # A trainer that logs before its next batch is drawn logs the same one again.
            batch = list(found)
            seen = tuple(repr(replace(each, step=None)) for each in batch)
            if seen != last:
                yield from batch
            last = seen


def open_rollouts(path: str | Path, columns: Mapping[str, str] | None = None) -> RolloutFiles:
    """Open a file of rollouts, or a folder of them, by steps or not.

    Args:
        columns: what the columns are called, by the words of `COLUMNS`.

    Raises:
        UsageError: nothing is there, it is no file of rollouts, or files of several programs are
            mixed.
    """
    path = Path(path)
    files = _files(path)
    formats = {file: _recognised(file) for file in files}
    names = list(dict.fromkeys(formats.values()))
    if len(names) > 1:
        first, other = (next(f for f in files if formats[f] == name) for name in names[:2])
        raise UsageError(
            f"{path} holds files of {' and of '.join(names)} ({first.name}, {other.name}): "
            "give a folder or file of one"
        )
    return RolloutFiles(path, tuple(files), names[0], dict(columns or {}), [])


def read_columns(words: Sequence[str]) -> dict[str, str]:
    """What `--column WHAT=NAME` says.

    Raises:
        UsageError: it is no such pair, or WHAT is none of `COLUMNS`.
    """
    found = {}
    for word in words:
        what, equals, name = word.partition("=")
        if not equals or not name:
            raise UsageError(f"--column {word}: say WHAT=NAME, such as reward=accuracy")
        if what not in COLUMNS:
            hint = did_you_mean(what, COLUMNS)
            raise UsageError(f"--column {word}: {what!r} is none of {', '.join(COLUMNS)}{hint}")
        found[what] = name
    return found


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}")
    found = [
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.name.lower().endswith(_ENDINGS)
        and not _NOT_ROLLOUTS.fullmatch(file.name)
    ]
    if not found:
        raise UsageError(f"{path} holds no file of rollouts ({', '.join(_ENDINGS)})")
    return sorted(found, key=lambda file: (_step_of(file) or 0, str(file)))


def _recognised(file: Path) -> str:
    if by_step.read_object(file) is not None:
        return by_step.NAME
    first = next((row.value for row in open_source(file).rows() if row.value is not None), {})
    return next(each.name for each in FORMATS if each.is_row(first))


def _in_file(
    file: Path, name: str, columns: Mapping[str, str], unreadable: list[str]
) -> Iterator[LoggedRollout]:
    if name == by_step.NAME:
        yield from by_step.rollouts_of(by_step.read_object(file) or {})
        return
    wanted = next(each for each in FORMATS if each.name == name)
    step = _step_of(file)
    for row in open_source(file).rows():
        if row.value is None or not wanted.is_row(row.value):
            problem = row.problem or f"is not written by {name} as the rows before it"
            unreadable.append(f"{file}, row {row.row}: {problem}")
            continue
        try:
            for each in wanted.read(row.value, columns):
                yield each if each.step is not None or step is None else replace(each, step=step)
        except UsageError as error:
            raise UsageError(f"{file}, row {row.row}: {error}") from error


def _step_of(file: Path) -> int | None:
    """The step that a file's name tells, or else that of the folder it is in."""
    in_file = _STEP_OF_FILE.fullmatch(file.name.split(".")[0])
    found = in_file or _STEP_OF_FOLDER.fullmatch(file.parent.name)
    return int(found[1]) if found else None
