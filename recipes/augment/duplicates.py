"""Finding texts that are the same as, or nearly the same as, texts that one has.

Two texts are the same where they agree after Unicode normalisation (NFKC), folding of case, and
leaving out space and `. , ; : ? " ' $`. They are nearly the same where they hold the same numbers
and their sets of 5-grams of words and signs overlap by a Jaccard index of at least 0.8:

    |A ∩ B| / |A ∪ B| ≥ t.

A problem with another number in it is another problem, however alike the words are, so texts with
different numbers are never nearly the same.

Not all pairs are compared. With the n-grams of every text in one order, rarest first, two sets that
overlap by t share one of their first |A| − ⌈t |A|⌉ + 1 (Chaudhuri et al. 2006, prefix filter). Only
those are indexed and looked up, and they are rare, so that the time is about linear in the texts.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

NEAR = 0.8
"""Overlap from which on two texts are nearly the same."""

_WORDS = 5
_TOKENS = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d]+|[^\w\s.,;:?\"'$]")
_NUMBER = re.compile(r"\d")
# Counts of n-grams are kept by hash; where two fall together an order is a little worse, no more.
_COUNTS = 2**20

Gram = tuple[str, ...]


@dataclass(frozen=True)
class Duplicate:
    """The text found: its position, and the overlap; 1 where both are the same."""

    position: int
    overlap: float


class DuplicateIndex:
    """Texts, to look for duplicates among.

    Args:
        texts: at positions 0, 1, ...
        like: texts that tell which n-grams are rare, beside those; the fewer are known before they
            are looked for or added, the longer it takes.
    """

    def __init__(self, texts: Iterable[str], like: Iterable[str] = ()) -> None:
        tokens = [_tokens(text) for text in texts]
        known = itertools.chain(tokens, map(_tokens, like))
        self._counts = Counter(hash(gram) % _COUNTS for each in known for gram in _grams(each))
        self._tokens: list[list[str]] = []
        self._same: dict[tuple[str, ...], int] = {}
        self._places: dict[tuple[Gram, Gram], list[int]] = {}
        for each in tokens:
            self._add(each)

    def add(self, text: str) -> None:
        """Add a text at the next position."""
        self._add(_tokens(text))

    def find(self, text: str) -> Duplicate | None:
        """Return the text that is the same or overlaps most, if it is nearly the same."""
        tokens = _tokens(text)
        if tuple(tokens) in self._same:
            return Duplicate(self._same[tuple(tokens)], 1.0)
        grams, numbers = _grams(tokens), _numbers(tokens)
        places = {
            place for gram in self._prefix(grams) for place in self._places.get((numbers, gram), ())
        }
        overlaps = [(_overlap(grams, _grams(self._tokens[place])), -place) for place in places]
        overlap, place = max(overlaps, default=(0.0, 0))
        return Duplicate(-place, overlap) if overlap >= NEAR else None

    def _add(self, tokens: list[str]) -> None:
        place = len(self._tokens)
        self._tokens.append(tokens)
        self._same.setdefault(tuple(tokens), place)
        numbers = _numbers(tokens)
        for gram in self._prefix(_grams(tokens)):
            self._places.setdefault((numbers, gram), []).append(place)

    def _prefix(self, grams: set[Gram]) -> list[Gram]:
        # Counts are those of the first texts and stay, so that the order is one for all.
        ordered = sorted(grams, key=lambda gram: (self._counts[hash(gram) % _COUNTS], gram))
        return ordered[: len(grams) - math.ceil(NEAR * len(grams) - 1e-9) + 1]


def _tokens(text: str) -> list[str]:
    return _TOKENS.findall(unicodedata.normalize("NFKC", text).casefold())


def _numbers(tokens: list[str]) -> Gram:
    return tuple(sorted(token for token in tokens if _NUMBER.match(token)))


def _grams(tokens: list[str]) -> set[Gram]:
    last = max(1, len(tokens) - _WORDS + 1)
    return {tuple(tokens[start : start + _WORDS]) for start in range(last)}


def _overlap(a: set[Gram], b: set[Gram]) -> float:
    return len(a & b) / len(a | b)
