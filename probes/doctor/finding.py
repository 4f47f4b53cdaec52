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
        return lines_of(self.state, self.about, self.text, self.remedy)


def lines_of(state: str, about: str, text: str, remedy: str) -> str:
    """A line on what was looked at, and one on what to do, where there is something to do."""
    line = f"{state:<8}{about:<14}{text}"
    return f"{line}\n{'':<22}-> {remedy}" if remedy else line
