"""The prompts of a training run: its items, and the endless stream in which they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TrainingItem:
    """An item that is trained on: the run's own token ids, and the gold answer."""

    item_id: str
    prompt_token_ids: tuple[int, ...]
    answer: str
    verifier: str | None = None
    """What judges its answers, where it is not the run's."""


class PromptStream:
    """Items by their place in an endless stream of epochs.

    What stands at a place depends on the seed alone, so that the place is all that a checkpoint has
    to keep, and every process sees the same stream.

    Args:
        items: at least one; their order is that of an epoch where it is not shuffled.
        seed: of the shuffling.
        shuffle: a new random order every epoch.
    """

    def __init__(self, items: Sequence[TrainingItem], *, seed: int, shuffle: bool) -> None:
        if not items:
            raise ValueError("a stream needs at least one item")
        self.items = items
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = -1
        self._order = np.arange(len(items))

    def __getitem__(self, place: int) -> TrainingItem:
        epoch, index = divmod(place, len(self.items))
        if self.shuffle and epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
            self._epoch = epoch
        return self.items[int(self._order[index])]
