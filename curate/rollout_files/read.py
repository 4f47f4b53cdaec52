"""Opening files of rollouts: which program wrote them is told by their columns."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from curate.datasets.row import SourceRow
from curate.datasets.source import open_source
from curate.errors import UsageError
from curate.files import file_sha256
from curate.rollout_files import by_step, inspect_ai, own_run
from curate.rollout_files.inspect_ai import INSPECT
from curate.rollout_files.lm_eval import LM_EVAL
from curate.rollout_files.nemo_gym import NEMO_GYM
from curate.rollout_files.open_instruct import OPEN_INSTRUCT
from curate.rollout_files.open_r1 import OPEN_R1
from curate.rollout_files.record import COLUMNS, Drawn, Format, LoggedRollout, Row
from curate.rollout_files.slime import SLIME
from curate.rollout_files.table import TABLE
from curate.rollout_files.trl import TRL
from curate.rollout_files.verifiers import EPISODES, RESULTS, TRACES, drawn_beside
from curate.rollout_files.verl import VERL
from curate.run.rollouts import rollout_shards
from curate.settings import did_you_mean

T = TypeVar("T")

FORMATS: tuple[Format, ...] = (
    *(VERL, OPEN_INSTRUCT, EPISODES, TRACES, RESULTS, NEMO_GYM, TRL, OPEN_R1, LM_EVAL, INSPECT),
    *(SLIME, TABLE),
)
"""The first that fits a row is taken; the last takes any."""
_ENDINGS = (
    *(".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".jsonl.gz", ".jsonl.zst"),
    inspect_ai.ENDING,
)
# Beside the rollouts: open-instruct's facts of a run, the settings of others, the results of
# lm-eval, the list of inspect_ai's logs.
_NOT_ROLLOUTS = re.compile(
    r".*_metadata\.jsonl|(metadata|config|summary|results(_.+)?|listing|logs|dataset_infos?)\.json"
    r"|\..*"
)
# What Python unpickles can run any code.
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin")
# `12.jsonl`, `completions_00012.parquet`, `step_12.jsonl`; `step_12/train_rollouts.jsonl`.
_STEP_OF_FILE = re.compile(r"(?:completions_|(?:global_)?step[_-]?)?(\d+)")
_STEP_OF_FOLDER = re.compile(r"(?:global_)?step[_-]?(\d+)")


@dataclass(frozen=True)
class RolloutFiles:
    """Files of rollouts of one program.

    Attributes:
        path: what was named, a file or a folder; of several the first.
        others: how many more were named.
        files: those that are read, in order; of a run of curate its folder.
        format: who wrote them.
        unreadable: rows that were left out while the files were read, to be looked at afterwards.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    columns: Mapping[str, str]
    unreadable: list[str]
    others: int = 0

    @property
    def where(self) -> str:
        """What was named, for a reader."""
        return f"{self.path} and {self.others} more" if self.others else str(self.path)

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

    def fingerprint(self) -> str:
        """The SHA-256 of the names and bytes of all files; of a run of curate, of its rollouts.

        Raises:
            UsageError: a file cannot be read.
        """
        parts = [
            part
            for file in self.files
            for part in (rollout_shards(file) if file.is_dir() else [file])
        ]
        try:
            content = "".join(f"{part.name}\0{file_sha256(part)}\n" for part in parts)
        except OSError as error:
            raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error
        return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()

    def drawn(self) -> Drawn:
        """Who drew the rollouts, and how: what all files tell alike.

        Raises:
            UsageError: a file cannot be read.
        """
        told = [_drawn_by(file, self.format) for file in self.files]
        return Drawn(
            _alike(each.policy for each in told),
            _alike(each.temperature for each in told),
            _alike(each.max_tokens for each in told),
        )


def _alike(values: Iterable[T | None]) -> T | None:
    """The value that all are; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def open_rollouts(
    paths: str | Path | Sequence[str | Path], columns: Mapping[str, str] | None = None
) -> RolloutFiles:
    """Open a file of rollouts, or a folder of them, by steps or not; or several of these.

    Args:
        paths: files, folders, or the folder of a run of curate.
        columns: what the columns are called, by the words of `COLUMNS`.

    Raises:
        UsageError: nothing is there, it is no file of rollouts, or files of several programs are
            mixed.
    """
    named = [Path(paths)] if isinstance(paths, str | Path) else [Path(each) for each in paths]
    files = [file for path in named for file in _files(path)]
    real: dict[Path, Path] = {}
    for file in files:
        if file.resolve() in real:
            other = real[file.resolve()]
            also = "" if other == file else f", once as {other}"
            raise UsageError(f"{file} is named twice{also}: its rollouts would count twice")
        real[file.resolve()] = file
    formats = {file: _recognised(file) for file in files}
    names = list(dict.fromkeys(formats.values()))
    if len(names) > 1:
        first, other = (next(f for f in files if formats[f] == name) for name in names[:2])
        where = f"{named[0]} holds" if len(named) == 1 else "there are"
        raise UsageError(
            f"{where} files of {' and of '.join(names)} ({first.name}, {other.name}): "
            "give a folder or file of one"
        )
    return RolloutFiles(named[0], tuple(files), names[0], dict(columns or {}), [], len(named) - 1)


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
        _refuse_pickle(path)
        return [path]
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}")
    if own_run.is_run(path):
        own_run.check_run(path)
        return [path]
    inside = [file for file in sorted(path.rglob("*")) if file.is_file()]
    named = [
        file
        for file in inside
        if file.name.lower().endswith(_ENDINGS) and not _NOT_ROLLOUTS.fullmatch(file.name)
    ]
    # A link to another of them (`latest.jsonl`) is that file again.
    links_first = sorted(named, key=lambda file: not file.is_symlink())
    found = {file.resolve(): file for file in links_first}.values()
    if not found:
        for file in inside:
            _refuse_pickle(file)
        raise UsageError(f"{path} holds no file of rollouts ({', '.join(_ENDINGS)})")
    return sorted(found, key=lambda file: (_step_of(file) or 0, str(file)))


def _refuse_pickle(file: Path) -> None:
    if file.suffix.lower() in _PICKLES:
        raise UsageError(
            f"{file} is a pickle, which can run any code when it is read, and is not opened: where "
            "you trust it, write its rollouts as JSON Lines, of slime's torch.load(FILE, "
            "weights_only=False)['samples'] a line each (docs/own-runs.md)"
        )


def _recognised(file: Path) -> str:
    if file.is_dir():
        return own_run.NAME
    try:
        is_log = inspect_ai.is_log(file)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    if is_log:
        next(inspect_ai.log_rows(file))  # What is wrong with it must show now.
        return INSPECT.name
    if by_step.read_object(file) is not None:
        return by_step.NAME
    first = _first_row(file)
    return next(each.name for each in FORMATS if each.is_row(first))


def _rows(file: Path) -> Iterator[SourceRow]:
    return inspect_ai.log_rows(file) if inspect_ai.is_log(file) else open_source(file).rows()


def _first_row(file: Path) -> Row:
    return next((row.value for row in _rows(file) if row.value is not None), {})


def _format(name: str) -> Format:
    return next(each for each in FORMATS if each.name == name)


def _drawn_by(file: Path, name: str) -> Drawn:
    if name == own_run.NAME:
        return own_run.drawn_by(file)
    if name == by_step.NAME:
        return Drawn()
    if inspect_ai.is_log(file):
        return inspect_ai.drawn_by(file)
    if name == RESULTS.name:
        return drawn_beside(file)
    return _format(name).drawn(_first_row(file))


def _in_file(
    file: Path, name: str, columns: Mapping[str, str], unreadable: list[str]
) -> Iterator[LoggedRollout]:
    if name == own_run.NAME:
        yield from own_run.rollouts_of(file)
        return
    if name == by_step.NAME:
        yield from by_step.rollouts_of(by_step.read_object(file) or {})
        return
    form = _format(name)
    wanted, versions = form.wanted_version(columns), dict[str, None]()
    step, is_any_read = _step_of(file), False
    for row in _rows(file):
        if row.value is None or not form.is_row(row.value):
            problem = row.problem or f"is not written by {name} as the rows before it"
            unreadable.append(f"{file}, row {row.row}: {problem}")
            continue
        versions[form.version(row.value)] = None
        if wanted and form.version(row.value) != wanted:
            continue
        where = f"{file}, row {row.row}"
        if not wanted:
            _check_one_version(versions, where)
        try:
            read = list(form.read(row.value, columns))
        except UsageError as error:
            # What the first row lacks is not what the file is taken to be; a later one is odd.
            if not is_any_read:
                raise UsageError(f"{where}: {error}") from error
            unreadable.append(f"{where}: {error}")
            continue
        is_any_read = True
        for each in read:
            yield each if each.step is not None or step is None else replace(each, step=step)
    if wanted and wanted not in versions:
        raise UsageError(f"{file} has no rows of {wanted!r}, only of {', '.join(versions)}")


def _check_one_version(versions: Mapping[str, None], where: str) -> None:
    if len(versions) > 1:
        raise UsageError(
            f"{where}: the same rollouts stand there by several filters ({', '.join(versions)}): "
            "name one with --column reward=METRIC,FILTER"
        )


def _step_of(file: Path) -> int | None:
    """The step that a file's name tells, or else that of the folder it is in."""
    in_file = _STEP_OF_FILE.fullmatch(file.name.split(".")[0])
    found = in_file or _STEP_OF_FOLDER.fullmatch(file.parent.name)
    return int(found[1]) if found else None
