"""One thing that `curate doctor` looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "limit", "blocks"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: what, in a word or two.
        state: `ok`; `limit`: something cannot be done, or not well, but `tag` can run; `blocks`:
            it cannot.
        text: what was found.
        remedy: what to do about it; "" where there is nothing to do.
    """

    about: str
    state: State
    text: str
    remedy: str = ""

    def text_lines(self) -> str:
        """Write it for a terminal, its remedy on a line below."""
        line = f"{self.state:<8}{self.about:<14}{self.text}"
        return f"{line}\n{'':<22}-> {self.remedy}" if self.remedy else line
