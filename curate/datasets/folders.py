"""Finding the files of a dataset that lies in a folder, as one fetches it from the Hub.

A split is told by the first word of a file's or a folder's name (`train-00000-of-00002.parquet`,
`test/0000.jsonl`); a subset is a folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from curate.errors import UsageError

_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
_FIRST_WORD = re.compile(r"[A-Za-z]+")
_DATA = "data"
# What stands beside a dataset's files and has the suffix of one.
_NOT_DATA = re.compile(r"dataset_infos?\.json|state\.json|config\.json|\..*|.*\.lock")


def find_files(
    folder: Path, split: str, subset: str | None, kind_of: Callable[[Path], str | None]
) -> list[Path]:
    """The files of a split, by name.

    Args:
        kind_of: the format of a file by its name; None where it is none that can be read.

    Raises:
        UsageError: there are none, another split or subset must be named, or formats are mixed.
    """

    def data_in(place: Path) -> list[Path]:
        return sorted(
            each
            for each in place.iterdir()
            if each.is_file() and kind_of(each) and not _NOT_DATA.fullmatch(each.name)
        )

    place, files = folder, [] if subset else data_in(folder)
    if not files:
        place, files = _in_subfolder(folder, split, subset, data_in)
    named = {each: _split_of(each.name) for each in files}
    if any(named.values()):
        chosen = [each for each, of in named.items() if of == split or each.stem == split]
        if not chosen:
            has = ", ".join(repr(of) for of in dict.fromkeys(filter(None, named.values())))
            raise UsageError(f"{place} has no split {split!r}; it has {has}")
        files = chosen
    elif split != "train" and place.name != split:
        raise UsageError(f"{place} has no split {split!r}; its files name none")
    kinds = sorted({str(kind_of(each)) for each in files})
    if len(kinds) > 1:
        raise UsageError(f"{place} holds files of several formats ({', '.join(kinds)}); give one")
    return files


def _in_subfolder(
    folder: Path, split: str, subset: str | None, data_in: Callable[[Path], list[Path]]
) -> tuple[Path, list[Path]]:
    inside = {each.name: each for each in sorted(folder.iterdir()) if each.is_dir()}
    filled = {name: each for name, each in inside.items() if data_in(each)}
    if subset:
        place = inside.get(subset)
        if place is None:
            has = f"; it has {', '.join(map(repr, filled))}" if filled else ""
            raise UsageError(f"{folder} has no subset {subset!r}{has}")
        files = data_in(place)
        return (place, files) if files else _in_subfolder(place, split, None, data_in)
    if split in filled:
        return filled[split], data_in(filled[split])
    if len(filled) == 1 or _DATA in filled:
        place = filled.get(_DATA) or next(iter(filled.values()))
        if _split_of(place.name) in (None, split):
            return place, data_in(place)
    if any(_split_of(name) for name in filled):
        raise UsageError(f"{folder} has no split {split!r}; it has {', '.join(map(repr, filled))}")
    if filled:
        raise UsageError(f"{folder} has the subsets {', '.join(filled)}: choose one with --subset")
    raise UsageError(
        f"{folder} is not a readable dataset folder: no file in it can be read, and "
        "`datasets` did not save it"
    )


def _split_of(name: str) -> str | None:
    word = _FIRST_WORD.match(name)
    return word[0] if word and word[0] in _SPLITS else None
