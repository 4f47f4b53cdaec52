"""The files of a push: which there are, what this run made before, and what they would replace."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from cards.card.card import CARD
from cards.card.facts import RunFacts
from cards.card.metadata import REWARDS as REWARD_TABLE
from cards.card.sections import figure_files
from cards.push.public_report import without_rollouts
from cards.push.rewards import write_rewards
from cards.push.splits import DATA, write_splits
from curate.datasets.source import open_source
from curate.errors import RunError, UsageError
from curate.files import write_atomically
from curate.run.names import REPORT
from curate.run.quality import run_schema
from curate.run.tables import ROLLOUTS
from curate.tags import ANSWERS, COLUMNS, JUDGED, REWARDS, Trainability

# A split is all files of its name, so one that an earlier push left behind would be read with it.
_SPLIT_FILE = re.compile(
    rf"({DATA}|{REWARD_TABLE})/({'|'.join(Trainability)})-\d{{5}}-of-\d{{5}}\.parquet"
)
_DATA_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".arrow", ".txt")
_CHUNK_BYTES = 1 << 20


def make_files(
    facts: RunFacts,
    tagged: Path | None,
    folder: Path,
    *,
    with_rollouts: bool,
    with_rewards: bool = False,
) -> dict[str, Path]:
    """Make the splits; returns every file but the card by its path in the repository.

    Args:
        facts: of the run.
        tagged: its tagged file, None where it still is where `curate tag` wrote it.
        folder: where the splits are written.
        with_rollouts: take the rollouts too, also those in the report.
        with_rewards: make the table of rewards too.

    Raises:
        UsageError: the tagged file is not there, or not this run's; or the report holds rollouts
            that cannot be taken out.
        RunError: a file of the run is damaged, or the disk is full.
    """
    tagged = tagged or Path(facts.run.config.out)
    if not tagged.is_file():
        raise UsageError(
            f"the tagged file {tagged} is not there; say with --tagged where it is, or let "
            "the same `curate tag` write it anew"
        )
    columns = open_source(tagged).columns
    # A file from before `curate judge`, or of an earlier version, is this run's too.
    later = {column.name for column in COLUMNS if column.when in (JUDGED, ANSWERS, REWARDS)}
    schema = pa.schema(
        field
        for field in run_schema(facts.run.path, facts.run.config)
        if field.name in columns or field.name not in later
    )
    files = {path: folder / path for path in write_splits(tagged, facts.rows, schema, folder)}
    if with_rewards:
        files |= {path: folder / path for path in write_rewards(facts.run, folder)}
    if (report := facts.run.path / REPORT).is_file():
        if not with_rollouts:
            report = _public_report(report, folder / REPORT)
        files[REPORT] = report
    files |= {f"figures/{file.name}": file for file in figure_files(facts.run.path)}
    if with_rollouts:
        rollouts = ROLLOUTS.files(facts.run.path)
        files |= {f"rollouts/{file.name}": file for file in rollouts}
    return files


def _public_report(report: Path, copy: Path) -> Path:
    page = without_rollouts(report.read_bytes())
    if page is None:
        raise UsageError(
            f"{report} may hold rollouts, and cannot be pushed without them; write it "
            "anew with `curate report`, remove it, or push --with-rollouts"
        )
    copy.write_bytes(page)
    return copy


Made = dict[str, list[str]]
"""Hashes of everything that this run made for a path in a repository, now or before."""


def read_made(file: Path) -> Made:
    """What earlier pushes of the run made; nothing where there was none."""
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}; remove it to go on") from error
    if not isinstance(made, dict):
        raise RunError(f"{file} is damaged; remove it to go on")
    return made


def write_made(file: Path, made: Made) -> None:
    """Remember it, before anything is uploaded: an upload that breaks off was ours too."""
    write_atomically(file, json.dumps(made, indent=2) + "\n")


def with_files(made: Made, files: Mapping[str, Path]) -> Made:
    """What was made before, and what is made now."""
    merged = dict(made)
    for path, file in files.items():
        merged[path] = sorted({*made.get(path, []), *_hashes(file)})
    return merged


def files_to_delete(
    files: Mapping[str, Path], made: Made, there: Mapping[str, str], *, overwrite: bool
) -> list[str]:
    """Which files of the repository a push has to delete: those that an earlier one left behind.

    Args:
        files: what is pushed beside the card.
        made: what this run made, now or before.
        there: path and hash of every file in the repository.
        overwrite: replace files that are not this run's.

    Raises:
        UsageError: a file would be replaced or deleted that this run did not make.
    """
    is_ours = {path: hash_ in made.get(path, []) for path, hash_ in there.items()}
    left = [
        path
        for path in there
        if path not in files and path != CARD and (is_ours[path] or _SPLIT_FILE.fullmatch(path))
    ]
    foreign = [path for path in [*files, *left] if path in there and not is_ours[path]]
    if foreign and not overwrite:
        raise UsageError(
            f"the repository has files that this run did not push, or that were changed since: "
            f"{_listed(foreign)}; look at them, then --overwrite replaces them (their history "
            "stays), or push to another --repo"
        )
    return left


def check_other_data(
    files: Mapping[str, Path], deleted: list[str], there: Mapping[str, str], *, has_configs: bool
) -> None:
    """Refuse a card that would hide other data of the repository.

    `datasets` finds data files by their names only as long as the card has no `configs`.

    Raises:
        UsageError: there are such files.
    """
    others = [
        path
        for path in there
        if path.endswith(_DATA_SUFFIXES) and path not in files and path not in deleted
    ]
    if others and not has_configs:
        raise UsageError(
            f"the repository has other data ({_listed(others)}) that load_dataset finds by name, "
            "and would not find beside the splits of the tags; name it under `configs` in the card "
            "first, or --overwrite goes on"
        )


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - 5:,} more" if len(paths) > 5 else ""
    return ", ".join(paths[:5]) + more


def _hashes(file: Path) -> tuple[str, str]:
    """How the Hub knows a file: SHA-256 where it is stored as large, git's SHA-1 where not."""
    large, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            large.update(chunk)
            git.update(chunk)
    return large.hexdigest(), git.hexdigest()
