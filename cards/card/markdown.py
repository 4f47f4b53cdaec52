"""Untrusted text in Markdown: names and notes that may hold anything become plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What can begin markup, a link or a mention inside a line.
_MARKUP = re.compile(r"[\\`*_\[\]<>#|~&!@$^]|:(?=/)|(?<=www)\.", re.IGNORECASE)


def code_span(text: str) -> str:
    """Text as it is, in one line of code that nothing in it can leave.

    Not for a table: there a `|` ends the code.
    """
    text = _one_line(text)
    if not text.strip():
        return "(empty)"
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    # A space on either side is not shown, but keeps a backtick at an end apart from the fence.
    space = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{space}{text}{space}{fence}"


def plain_text(text: str) -> str:
    """Text in one line of which nothing is taken for markup."""
    return _MARKUP.sub(r"\\\g<0>", _one_line(text))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its first row the header; cells are Markdown of our own."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _one_line(text: str) -> str:
    """Line ends as spaces; other controls, and marks that turn the direction, made visible."""
    text = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
