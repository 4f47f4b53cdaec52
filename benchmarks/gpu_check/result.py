"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class LeftOut(Exception):
    """A check makes no sense here, or needs what is not here."""


@dataclass(frozen=True)
class Found:
    """What one check found.

    Attributes:
        passed: whether it gave what it must; None where it was left out.
        text: in a few words.
        numbers: what was measured.
    """

    passed: bool | None
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)
