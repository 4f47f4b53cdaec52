"""Columns that sort rows into few kinds, such as task or source, and what is left of each kind."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

MOST_KINDS = 20
# Values of more characters are texts, and no names of kinds.
_LONGEST_NAME = 80
WORK_COLUMNS = frozenset({"prompt", "question", "problem", "answer", "solution"})
"""What an item is made of, which may repeat without sorting the items."""
# Fewer rows are gone by chance, or too few to learn from in any case.
_FEWEST_ROWS = 5
_MOST_NAMED = 5


def is_kind_name(value: Any) -> bool:
    """Whether a value may name a kind: a short text."""
    return isinstance(value, str) and len(value) <= _LONGEST_NAME


class KindCounts:
    """Which kinds rows are of, noted as they pass by."""

    def __init__(self, left_out: Collection[str]) -> None:
        """Note the kinds of all columns but those left out."""
        self._left_out = {*left_out, *WORK_COLUMNS}
        self._names: dict[str, dict[str, int]] = {}
        # A byte a row and column: position of its kind, −1 where it has none.
        self._codes: dict[str, array[int]] = {}
        self._rows = 0

    def noting(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the rows as they are; a column is forgotten once it has too many values."""
        for row in rows:
            self._note(row)
            yield row

    def _note(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name in self._left_out or value is None:
                continue
            names = self._names.setdefault(name, {})
            if not is_kind_name(value) or (value not in names and len(names) == MOST_KINDS):
                self._left_out.add(name)
                self._names.pop(name)
                self._codes.pop(name, None)
                continue
            codes = self._codes.setdefault(name, array("b"))
            codes.extend([-1] * (self._rows - len(codes)))
            codes.append(names.setdefault(value, len(names)))
        self._rows += 1

    def lost(self, kept: Sequence[int]) -> list[str]:
        """Say of which kinds no row is left, a sentence a column.

        Args:
            kept: places of the rows that are left, from 0.
        """
        notes = []
        for column, codes in self._codes.items():
            names = list(self._names[column])
            if not 2 <= len(names) <= self._rows / 2:
                continue
            counts = Counter(codes)
            left = {codes[place] for place in kept if place < len(codes)}
            gone = [
                f"{name!r} ({counts[code]:,} rows)"
                for code, name in enumerate(names)
                if code not in left and counts[code] >= _FEWEST_ROWS
            ]
            if gone:
                more = f" and {len(gone) - _MOST_NAMED} more" if len(gone) > _MOST_NAMED else ""
                notes.append(
                    f"no row is left of {column} {', '.join(gone[:_MOST_NAMED])}{more}: of what is "
                    "dropped whole little is learned"
                )
        return notes
