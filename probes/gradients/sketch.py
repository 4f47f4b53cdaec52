"""A gradient of millions of coordinates in a few thousand: a signed, balanced count sketch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch


class Sketch:
    """A signed, balanced count sketch of one module's gradient.

    It cuts the gradient into stretches of `dim` coordinates, turns each round by an offset of its
    own, and adds them up with random signs. Two coordinates meet with probability 1/dim at most, so
    that the variance is a count sketch's.

    Args:
        draws: gives signs and offsets.
        size: coordinates of the gradient.
        dim: coordinates of the sketch.
        scale: of the gradient.
        device: that it is computed on.
    """

    def __init__(
        self, draws: np.random.Generator, size: int, dim: int, scale: float, device: torch.device
    ) -> None:
        self.dim = dim
        signs = draws.integers(0, 2, size=size).astype(np.float32) * 2 - 1
        self._offsets: list[int] = draws.integers(0, dim, size=-(-size // dim)).tolist()
        self._signs = torch.from_numpy(signs * scale).to(device)
        self._places: torch.Tensor | None = None
        # A GPU waits for every launch; a CPU reads stretches in order at a fraction of what reading
        # coordinate by coordinate costs.
        if device.type != "cpu":
            self.gather()

    def gather(self) -> None:
        """Compute by a fixed number of operations from now on, whatever the number of stretches."""
        size, dim, device = len(self._signs), self.dim, self._signs.device
        stretches = len(self._offsets)
        coordinates = torch.arange(dim, dtype=torch.int32)[None]
        first = torch.arange(stretches, dtype=torch.int32)[:, None] * dim
        turned = coordinates - torch.tensor(self._offsets, dtype=torch.int32)[:, None]
        places = (turned % dim + first).flatten().to(device)
        # The last stretch may be short.
        is_there = places < size
        self._places = torch.where(is_there, places, 0)
        self._signs = torch.where(is_there, self._signs[self._places], 0.0).view(stretches, dim)

    def add(self, gradient: torch.Tensor, sums: torch.Tensor) -> None:
        """Add the sketch of gradients, (rows, size), to the sums, (rows, 2 dim).

        A stretch that starts at an offset ends beyond dim: `GradientSums.features` joins the two.
        """
        if self._places is not None:
            there = gradient.index_select(1, self._places).view(len(gradient), -1, self.dim)
            sums[:, : self.dim] += there.mul_(self._signs).sum(1)
            return
        for stretch, offset in enumerate(self._offsets):
            part = slice(stretch * self.dim, (stretch + 1) * self.dim)
            sign = self._signs[part]
            sums[:, offset : offset + len(sign)].addcmul_(gradient[:, part], sign)


class GradientSums:
    """The gradients of one batch: sketched sums over the modules, or every module's own.

    Attributes:
        modules: names of those that took part in the forward pass.
    """

    def __init__(self, rows: int, dim: int | None) -> None:
        self.modules: set[str] = set()
        self._rows, self._dim = rows, dim
        self._sketched: dict[torch.device, torch.Tensor] = {}
        self._whole: dict[str, torch.Tensor] = {}

    def on(self, device: torch.device) -> torch.Tensor:
        """What the sketches of the modules on a device add up to, (rows, 2 dim)."""
        if device not in self._sketched:
            self._sketched[device] = torch.zeros(self._rows, 2 * (self._dim or 0), device=device)
        return self._sketched[device]

    def add_whole(self, name: str, gradient: torch.Tensor) -> None:
        """Add to one module's gradient; a module that runs twice has the sum of both."""
        self._whole[name] = self._whole[name] + gradient if name in self._whole else gradient

    def features(self, names: Iterable[str]) -> np.ndarray:
        """Return (rows, dim) float32, or every coordinate of the named modules in turn."""
        if self._dim is None:
            features = torch.cat([self._whole[name].cpu() for name in names], dim=1)
        else:
            both = torch.stack([sums.cpu() for sums in self._sketched.values()]).sum(0)
            features = both[:, : self._dim] + both[:, self._dim :]
        array: np.ndarray = features.numpy()
        return array
