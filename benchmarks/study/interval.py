"""What a figure is in worlds that one did not see: mean and Student's 95 % over those one did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over worlds, Student's 95 %."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Floats) -> Interval:
        """Of a figure of each world; nan is a world without one."""
        known = values[~np.isnan(values)]
        mean = float(known.mean()) if len(known) else float("nan")
        if len(known) < 2:
            return cls(mean, -np.inf, np.inf)
        half = stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
        return cls(mean, float(mean - half), float(mean + half))

    @property
    def half(self) -> float:
        """Of its width."""
        return (self.high - self.low) / 2

    @property
    def verdict(self) -> str:
        """higher, lower, or no difference shown."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no difference shown"

    def text(self, digits: int = 3) -> str:
        """Mean and limits."""
        mean, low, high = (
            f"{each:.{digits}f}".replace("-", "−") for each in (self.mean, self.low, self.high)
        )
        return f"{mean} ({low} to {high})"
