"""What a notebook shows: the tags as a bar, the first rows of a dataset, the facts of a run.

HTML whose styles and drawings are inline, without scripts and without requests: it looks the same
in every notebook, in an exported page, and offline. What datasets and models wrote is escaped, with
the characters that nobody would see made visible, and is not typeset as formulas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from curate.tags import Trainability

COLORS = {
    Trainability.EASY: "#3f7cbf",
    Trainability.LEARNABLE: "#149273",
    Trainability.UNLEARNABLE: "#d0561f",
    Trainability.NO_POSITIVE: "#6a5399",
    Trainability.UNDETERMINED: "#a3a9b1",
}
"""Those of the report on a light ground, which a dark one bears as well."""

_LONGEST = 200
"""Characters of a text that are shown."""
_DASH = "–"
# As in cards/report/page/text.js: characters that change how their neighbours look, or look like
# nothing. Joiners stay: scripts need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
# Notebooks give all columns of a table the same width unless told.
_TABLE = "table-layout:auto;border-collapse:collapse"
# A share of the column is what they allow a drawing, and then leave it no room of its own.
_SQUARE = "width:10px;height:10px;max-width:none;margin-right:6px"
_CELL = "text-align:left;vertical-align:top;padding:3px 10px 3px 0"
_WIDE = f"{_CELL};white-space:normal;overflow-wrap:anywhere;min-width:180px"
_NARROW = f"{_CELL};white-space:nowrap"


def text(value: object) -> str:
    """A value as text in HTML: on one line, cut, hidden characters shown, escaped; a dash if none.

    >>> text("a\\u202eb <i>")
    'a⟨U+202E⟩b &lt;i&gt;'
    """
    if value is None:
        return _DASH
    # What is cut away is not looked at; a text may be a book.
    given = str(value)[: 4 * _LONGEST]
    shown = " ".join(_HIDDEN.sub(_named, given.replace("\r\n", "\n")).split())
    is_cut = len(shown) > _LONGEST or len(str(value)) > len(given)
    return escape(shown[:_LONGEST] + ("…" if is_cut else ""))


def _named(hidden: re.Match[str]) -> str:
    return f"⟨U+{ord(hidden[0]):04X}⟩"


def tag_counts(tags: Iterable[str | None]) -> dict[str, int]:
    """How often each tag occurs, in the order of the tags; what is no tag does not count."""
    given = list(tags)
    return {str(tag): given.count(tag) for tag in Trainability}


def tag_bar(counts: Mapping[str, int]) -> str:
    """The tags as one bar in the colours of the report, and their counts and shares in words."""
    total = sum(counts.values())
    left, parts, words = 0.0, [], []
    for tag, color in COLORS.items():
        share = counts[tag] / total if total else 0.0
        said = f"{tag} {counts[tag]:,} ({100 * share:.1f} %)"
        if counts[tag]:
            parts.append(
                f'<rect x="{1000 * left:.2f}" y="0" width="{1000 * share:.2f}" height="16" '
                f'fill="{color}"><title>{said}</title></rect>'
            )
        words.append(
            f'<span style="margin-right:16px;white-space:nowrap">{_square(color)}{said}</span>'
        )
        left += share
    label = ", ".join(f"{tag} {count:,}" for tag, count in counts.items())
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 1000 16" preserveAspectRatio="none" '
        f'style="display:block;width:100%;height:16px">{"".join(parts)}</svg>'
        f'<p style="margin:6px 0 10px">{" ".join(words)}</p>'
    )


def tagged_html(
    tags: Sequence[str | None], first: Sequence[Mapping[str, Any]], prompts: Sequence[str | None]
) -> str:
    """A tagged dataset: how many rows have which tag, and the first rows.

    Args:
        tags: of all rows, None for one that was rejected or not probed.
        first: the columns that tagging added, of the first rows.
        prompts: of the first rows.
    """
    counts = tag_counts(tags)
    untagged = len(tags) - sum(counts.values())
    says = _plural(len(tags), "row")
    if untagged:
        says += f", {untagged:,} of them without a tag: rejected, or not probed"
    head = ("row", "prompt", "trainability", "pass rate", "forecast", "reason")
    rows = [
        [
            _td(f"{number:,}"),
            _td(text(prompt), is_wide=True),
            _td(_tag(row["trainability"])),
            _td(_pass_rate(row)),
            _td(_forecast(row)),
            _td(text(row["tag_reason"]), is_wide=True),
        ]
        for number, (row, prompt) in enumerate(zip(first, prompts, strict=True), 1)
    ]
    cells = "".join(f'<th style="{_NARROW}">{name}</th>' for name in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    more = f"<p>… {len(tags) - len(rows):,} more</p>" if len(tags) > len(rows) else ""
    table = (
        f'<table style="{_TABLE};width:100%">'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
    )
    return _box(f"<p><b>{says}</b></p>{tag_bar(counts)}{table}{more}")


def run_html(facts: Mapping[str, Any], tags: Sequence[str | None]) -> str:
    """A run: what was probed, by which model, and how many items have which tag.

    Args:
        facts: what there is to be said, by its name; None is left out.
        tags: of the items.
    """
    rows = "".join(
        f"<tr>{_td(f'<b>{text(name)}</b>')}{_td(text(fact), is_wide=True)}</tr>"
        for name, fact in facts.items()
        if fact is not None
    )
    table = f'<table style="{_TABLE}"><tbody>{rows}</tbody></table>'
    return _box(f"{table}{tag_bar(tag_counts(tags))}")


def _square(color: str) -> str:
    return (
        f'<svg width="10" height="10" style="{_SQUARE}" '
        f'aria-hidden="true"><rect width="10" height="10" rx="2" fill="{color}"/></svg>'
    )


def _tag(tag: str | None) -> str:
    return (_square(COLORS[Trainability(tag)]) if tag in COLORS else "") + text(tag)


def _pass_rate(row: Mapping[str, Any]) -> str:
    if row["pass_rate"] is None:
        return _DASH
    correct, judged = row["total_correct_rollouts"], row["total_rollouts"]
    return f"{row['pass_rate']:.3g} ({correct:,} of {judged:,})"


def _forecast(row: Mapping[str, Any]) -> str:
    if row["forecast_pass_rate"] is None:
        return _DASH
    low, high = row["forecast_low"], row["forecast_high"]
    return f"{row['forecast_pass_rate']:.2f} ({low:.2f} to {high:.2f})"


def _td(html: str, *, is_wide: bool = False) -> str:
    return f'<td style="{_WIDE if is_wide else _NARROW}">{html}</td>'


def _box(html: str) -> str:
    # The classes keep MathJax, old and new, from the dollars in prompts.
    return f'<div class="tex2jax_ignore mathjax_ignore" style="max-width:1100px">{html}</div>'


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
