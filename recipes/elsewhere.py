"""Trainings that were done elsewhere: the seed of each, and what all are called."""

from __future__ import annotations

import re
from collections.abc import Sequence

from curate.errors import UsageError


def seeds_of(seeds: Sequence[int], trainings: int, what: str) -> tuple[int, ...]:
    """The seed of each training, in their order; 1, 2, ... where none are given.

    Args:
        what: how many trainings were named, and by which option.

    Raises:
        UsageError: there are more or fewer than trainings, or one comes twice.
    """
    seeds = tuple(seeds) or tuple(range(1, trainings + 1))
    if len(seeds) != trainings or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"--seeds names {len(set(seeds))} seeds and {what}: one of each belong together"
        )
    return seeds


def is_plain_name(name: str) -> bool:
    """Whether outcomes can be called so: their folder is named after it."""
    return bool(re.fullmatch(r"\w[\w.-]*", name)) and not name.endswith(".toml")
