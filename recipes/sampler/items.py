"""Which items to train on next, when every batch's rewards say more of what each is worth.

GRPO learns nothing of a group whose rollouts are all right or all wrong. What an item's next group
will be is a guess from its pass rate, which the probe measured before training, and which training
moves. So each item has a posterior Beta(½ + r, ½ + w): r and w, right and wrong rollouts, are first
those of the probe (scaled down to at most `trust` rollouts, since it saw another policy), then
those of training as well, and all of them fade by half every `half_life` batches. The chance that a
group of k has a signal is

    1 − B(a + k, b) / B(a, b) − B(a, b + k) / B(a, b),       a = ½ + r, b = ½ + w.

Items with less than `least_signal` of it are skipped. They come back by themselves, since what
fades leaves the prior, by which a group of 8 has a signal with 0.6; and `look_again` of all places
go to those that were not looked at for longest. The others come once each before any comes again,
those with more signal sooner: drawn without replacement, with weights of their signal (the largest
of log signal and Gumbel noise).

The same seed, the same items and the same rewards give the same draws, on every process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

Floats = NDArray[np.float64]

_PRIOR = 0.5
_VERSION = 1


@dataclass(frozen=True)
class SamplerSettings:
    """How the sampler judges.

    Attributes:
        group_size: k, rollouts of a prompt in a step.
        least_signal: chance of a group with a signal below which an item is skipped.
        look_again: share of all places for items that are skipped.
        half_life: batches after which a rollout counts half.
        trust: rollouts that those of the probe count for at most.
        seed: of the draws.
    """

    group_size: int = 8
    least_signal: float = 0.2
    look_again: float = 0.05
    half_life: float = 100.0
    trust: float = 32.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"a group needs 2 rollouts at least, got {self.group_size}")
        for name in ("least_signal", "look_again"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1")
        if self.half_life <= 0 or self.trust < 0:
            raise ValueError("half_life must be above 0 and trust at least 0")


def chance_of_signal(right: Floats, wrong: Floats, group_size: int) -> Floats:
    """Chance that a group has both right and wrong rollouts, of the shape of the counts."""
    a, b = _PRIOR + right, _PRIOR + wrong
    all_right = np.exp(betaln(a + group_size, b) - betaln(a, b))
    all_wrong = np.exp(betaln(a, b + group_size) - betaln(a, b))
    return np.asarray(np.clip(1 - all_right - all_wrong, 0.0, 1.0))


class ItemSampler:
    """Draws items, and learns from their rewards."""

    def __init__(
        self,
        item_ids: Sequence[str],
        correct: Sequence[int | None],
        rollouts: Sequence[int | None],
        settings: SamplerSettings = SamplerSettings(),
    ) -> None:
        """Start from what the probe saw.

        Args:
            item_ids: of the rows; of rows with the same one the first is drawn, and the others
                never.
            correct, rollouts: of each row, the probe's; None: nothing is known.
            settings: how to judge.

        Raises:
            ValueError: a row has no item_id, counts are impossible, or there is no row.
        """
        if not len(item_ids):
            raise ValueError("there is no item to draw")
        self.settings = settings
        self._row: list[int] = []
        self._place: dict[str, int] = {}
        for row, item_id in enumerate(item_ids):
            if not item_id:
                raise ValueError(f"row {row + 1} has no item_id: drop such rows (`curate filter`)")
            if item_id not in self._place:
                self._place[item_id] = len(self._row)
                self._row.append(row)
        n = np.array([rollouts[row] or 0 for row in self._row], dtype=np.float64)
        c = np.array([correct[row] or 0 for row in self._row], dtype=np.float64)
        if (c < 0).any() or (c > n).any():
            raise ValueError("counts must satisfy 0 ≤ correct ≤ rollouts for every item")
        scale = np.minimum(1.0, settings.trust / np.maximum(n, 1))
        self._right, self._wrong = c * scale, (n - c) * scale
        self._as_of = np.zeros(len(self._row))
        """The batch by which both were last faded."""
        self._drawn = np.full(len(self._row), -1, dtype=np.int64)
        """The draw in which an item came last."""
        self._had_turn = np.zeros(len(self._row), dtype=bool)
        self._batches = self._draws = 0
        self._credit = 0.0
        self._rng = np.random.default_rng(settings.seed)

    @classmethod
    def of(
        cls,
        columns: Any,
        settings: SamplerSettings = SamplerSettings(),
    ) -> ItemSampler:
        """Read a dataset that `curate tag` made, or a part of one.

        Args:
            columns: item_id, total_correct_rollouts and total_rollouts by name, as a
                `datasets.Dataset`, an Arrow table's `to_pydict()` or a data frame has them.

        Raises:
            ValueError: a column is missing, or what `__init__` raises.
        """
        names = ("item_id", "total_correct_rollouts", "total_rollouts")
        try:
            found = [list(columns[name]) for name in names]
        except KeyError as error:
            raise ValueError(
                f"the dataset has no column {error}: train on a file of `curate tag`, `filter`, "
                "`select` or `order`"
            ) from error
        correct, rollouts = ([_count(value) for value in each] for each in found[1:])
        return cls(found[0], correct, rollouts, settings)

    def __len__(self) -> int:
        """Items that can be drawn."""
        return len(self._row)

    def signal(self) -> Floats:
        """Chance of a signal in the next group of each item, (items,), in the order of the rows."""
        faded = 0.5 ** ((self._batches - self._as_of) / self.settings.half_life)
        return chance_of_signal(self._right * faded, self._wrong * faded, self.settings.group_size)

    def pass_rate(self) -> Floats:
        """Expected pass rate of each item now, (items,)."""
        faded = 0.5 ** ((self._batches - self._as_of) / self.settings.half_life)
        right, wrong = self._right * faded, self._wrong * faded
        return np.asarray((right + _PRIOR) / (right + wrong + 2 * _PRIOR))

    def draw(self, count: int) -> list[int]:
        """Rows for the next batch, no item twice.

        Raises:
            ValueError: there are fewer items.
        """
        if count > len(self._row):
            raise ValueError(f"a batch of {count} needs as many items, and there are {len(self)}")
        signal = self.signal()
        # One number an item whatever is asked for, so that a draw takes the same of the generator.
        luck = self._rng.gumbel(size=len(signal))
        has_signal = signal >= self.settings.least_signal
        self._credit += self.settings.look_again * count
        again = min(int(self._credit + 1e-9), int((~has_signal).sum()), count)
        self._credit -= int(self._credit + 1e-9)
        skipped = np.flatnonzero(~has_signal)
        longest = skipped[np.lexsort((-luck[skipped], self._drawn[skipped]))]
        chosen = longest[:again].tolist()
        with np.errstate(divide="ignore"):
            by_signal = np.argsort(-(np.log(signal) + luck), kind="stable")
        usual = by_signal[has_signal[by_signal]]
        chosen += usual[~self._had_turn[usual]][: count - again].tolist()
        self._had_turn[chosen] = True
        if len(chosen) < count:
            # All have had their turn: another begins, in which those chosen so far have theirs yet.
            self._had_turn[:] = False
            taken = set(chosen)
            more = [item for item in usual.tolist() if item not in taken][: count - len(chosen)]
            self._had_turn[more] = True
            chosen += more
        if len(chosen) < count:
            # Too few have a signal: those come nearest to it.
            taken = set(chosen)
            nearest = np.argsort(-signal, kind="stable").tolist()
            chosen += [item for item in nearest if item not in taken][: count - len(chosen)]
        self._drawn[chosen] = self._draws
        self._draws += 1
        return [self._row[item] for item in chosen]

    def observe(self, item_ids: Sequence[str], correct: Sequence[bool | None]) -> None:
        """Learn from the rollouts of one batch; time goes on by one.

        Args:
            item_ids: of each rollout.
            correct: whether it was right; None: it could not be judged.

        Raises:
            ValueError: an item is unknown.
        """
        self._batches += 1
        for item_id, was_right in zip(item_ids, correct, strict=True):
            if item_id not in self._place:
                raise ValueError(f"{item_id!r} is no item of this sampler")
            if was_right is None:
                continue
            item = self._place[item_id]
            faded = 0.5 ** ((self._batches - self._as_of[item]) / self.settings.half_life)
            self._right[item] = self._right[item] * faded + was_right
            self._wrong[item] = self._wrong[item] * faded + (not was_right)
            self._as_of[item] = self._batches

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on as if nothing had happened; plain values."""
        return {
            "version": _VERSION,
            "items": self._digest(),
            "settings": asdict(self.settings),
            "right": self._right.tolist(),
            "wrong": self._wrong.tolist(),
            "as_of": self._as_of.tolist(),
            "drawn": self._drawn.tolist(),
            "had_turn": self._had_turn.tolist(),
            "batches": self._batches,
            "draws": self._draws,
            "credit": self._credit,
            "generator": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of other items, or of another version.
        """
        if state.get("version") != _VERSION or state.get("items") != self._digest():
            raise ValueError(
                "the sampler's state in the checkpoint is of other items or of another version: "
                "train on the same file, or start from a checkpoint without it"
            )
        for name in ("right", "wrong", "as_of"):
            setattr(self, f"_{name}", np.array(state[name], dtype=np.float64))
        self._drawn = np.array(state["drawn"], dtype=np.int64)
        self._had_turn = np.array(state["had_turn"], dtype=bool)
        self._batches, self._draws = int(state["batches"]), int(state["draws"])
        self._credit = float(state["credit"])
        self._rng.bit_generator.state = dict(state["generator"])

    def _digest(self) -> str:
        return hashlib.sha256("\n".join(self._place).encode()).hexdigest()


def _count(value: Any) -> int | None:
    """A count; a data frame has nan for what is unknown."""
    return None if value is None or value != value else int(value)
