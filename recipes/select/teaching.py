"""What more a set of items would teach with one item more: less and less of the same.

A step on item i moves the log odds of item j by t_ij = ⟨w_i D_i, h_j / (1 − p_j)⟩
(`probes.lift.item_gradients`). Training on a set S of N items moves them, to first order, by

    ℓ_j(S) = Σ_{i ∈ S, i ≠ j} t_ij / (N m)

with m such that training on all items alike moves the pupils by 1 on average. A set is worth

    f(S) = Σ_j v_j sign(ℓ_j) log(1 + κ |ℓ_j|) / κ

since what is lifted soon is solved soon and then learns no more (`probes.forecast.model`), and an
item more is worth Σ_j v_j t_ij / (1 + κ |ℓ_j|) of it. v_j, the room, is 1 − p', with p' the pass
rate that is forecast for item j: what no training on these items brings by itself. An item is no
pupil of itself: what it does for itself is its gain.

κ is 0.3, and v_j 1 − p', by what they did in the worlds of `benchmarks.selection`: κ = 1, as the
forecast has it for a whole training, cost up to a fifth of what a selection gained there over
κ = 0, and 0.3 no more than chance; p'(1 − p'), the slope of the pass rate, was behind as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_LESS = 0.3
"""κ."""


class Taught:
    """What a growing set of items teaches so far."""

    def __init__(
        self,
        step: Singles,
        pupil: Singles,
        room: Floats,
        size: int,
        own: NDArray[np.intp] | None = None,
    ) -> None:
        """Begin with an empty set.

        Args:
            step: (items, dim), w_i D_i.
            pupil: (pupils, dim), h_j / (1 − p_j).
            room: (pupils,), v_j.
            size: N, items that the set will have.
            own: (items,), where each item stands among the pupils; None: no item is one.
        """
        self._step, self._pupil, self._room, self._own = step, pupil, room, own
        if own is not None:
            self._itself = np.einsum("id,id->i", step, pupil[own], dtype=np.float64)
        whole = pupil @ step.mean(axis=0)
        # One that was never right has no direction of its own, and nothing moves it as far as seen.
        learns = (room > 0) & pupil.any(axis=1)
        moved = float(np.abs(whole[learns]).mean()) if learns.any() else 0.0
        self._scale = 1 / (size * moved) if moved > 0 else 0.0
        self._lift = np.zeros(len(pupil))

    def worth_of_one_more(self) -> Floats:
        """(items,): what each item would add, in the same unit for all."""
        rising = self._room / (1 + _LESS * np.abs(self._lift))
        found = (self._step @ (rising.astype(np.float32) @ self._pupil)).astype(np.float64)
        if self._own is not None:
            found -= rising[self._own] * self._itself
        return np.asarray(found)

    def add(self, items: NDArray[np.intp]) -> None:
        """Take items into the set."""
        moved = (self._pupil @ self._step[items].sum(axis=0)).astype(np.float64)
        if self._own is not None:
            np.subtract.at(moved, self._own[items], self._itself[items])
        self._lift += self._scale * moved
