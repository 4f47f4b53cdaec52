"""Putting metadata and a marked section into a dataset card, whose other text stays byte for byte.

The metadata is YAML between two lines of `---` at the start of README.md. Only the keys that get
another value are written anew; all other lines stay, with their comments. In the text, what stands
between the two markers is replaced, or else the section is added at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from curate.errors import UsageError

BEGIN = "<!-- curate: begin (`curate card` writes from here to the end marker) -->"
END = "<!-- curate: end -->"
# A marker stands alone on its line, so that none of a quoted name is taken for one.
_BEGIN = re.compile(r"^<!-- curate: begin\b.*-->[ \t]*\r?$", re.MULTILINE)
_END = re.compile(r"^<!-- curate: end -->[ \t]*\r?$", re.MULTILINE)


def read_metadata(card: str, name: str) -> dict[str, Any]:
    """The metadata of a card; {} where it has none.

    Args:
        name: what errors call the card.

    Raises:
        UsageError: it is no YAML, or not a mapping.
    """
    match = REGEX_YAML_BLOCK.search(_with_last_line_end(card))
    try:
        metadata = yaml.safe_load(match.group(2)) if match else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 2}: {getattr(error, 'problem', '')}" if mark else ""
        raise UsageError(
            f"{name}: the metadata between the --- lines is no YAML{where}; correct it first"
        ) from error
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise UsageError(f"{name}: the metadata between the --- lines is no mapping of keys")
    return metadata


def merge_card(card: str, metadata: Mapping[str, Any], section: str, name: str) -> str:
    """Set keys of a card's metadata and its section; all else stays byte for byte.

    Args:
        card: its text; "" begins one.
        metadata: the keys to set; others stay.
        section: Markdown lines, without markers; it takes the card's line ends.
        name: what errors call the card.

    Raises:
        UsageError: the card's metadata cannot be read, or its markers do not pair.
    """
    line_end = "\r\n" if "\r\n" in card else "\n"
    card = _with_last_line_end(card)
    old = read_metadata(card, name)
    changed = {key: value for key, value in metadata.items() if old.get(key) != value}
    match = REGEX_YAML_BLOCK.search(card)
    if match:
        block = _with_keys(match.group(2), changed, line_end, name)
        card = card[: match.start(2)] + block + card[match.end(2) :]
        start = match.start(2) + len(block) + len(match.group(3))
    elif changed:
        front = "---\n" + _yaml(changed) + "---\n"
        front = front.replace("\n", line_end)
        card, start = front + card, len(front)
    else:
        start = 0
    marked = f"{BEGIN}\n{section.strip()}\n{END}".replace("\n", line_end)
    return card[:start] + _with_section(card[start:], marked, line_end, name)


def _with_last_line_end(card: str) -> str:
    """A card that is metadata alone, with the line end that it may lack after the closing line."""
    line_end = "\r\n" if "\r\n" in card else "\n"
    bare = card.rstrip(" \t")
    return bare + line_end if bare.endswith("\n---") else card


def has_section(card: str) -> bool:
    """Whether a card has been merged with before."""
    return _BEGIN.search(card) is not None


def _with_section(text: str, marked: str, line_end: str, name: str) -> str:
    begins, ends = list(_BEGIN.finditer(text)), list(_END.finditer(text))
    if not begins and not ends:
        gap = "" if not text.strip() else line_end if text.endswith("\n") else 2 * line_end
        return f"{text}{gap}{marked}{line_end}"
    if len(begins) != 1 or len(ends) != 1 or ends[0].start() < begins[0].start():
        raise UsageError(
            f"{name}: the markers `<!-- curate: begin ... -->` and `{END}` do not pair; leave one "
            "of each, in this order, or remove both"
        )
    end = ends[0].end() - ends[0].group().endswith("\r")
    return text[: begins[0].start()] + marked + text[end:]


def _with_keys(block: str, values: Mapping[str, Any], line_end: str, name: str) -> str:
    """A YAML mapping's text with some keys set, each in its place or else at the end."""
    if not values:
        return block
    node = yaml.compose(block, Loader=yaml.SafeLoader)
    if node is None:
        entries = []
    elif isinstance(node, yaml.MappingNode) and not node.flow_style:
        entries = [(key.value, key.start_mark.index) for key, _ in node.value]
    else:
        raise UsageError(f"{name}: the metadata is written in braces; write a key a line first")
    ends = [*(start for _, start in entries), len(block)][1:]
    # From the end, so that the places of those before stay right.
    for (key, start), end in reversed(list(zip(entries, ends, strict=True))):
        if key in values:
            after = _comments_after(block[start:end])
            value = _yaml({key: values[key]}).replace("\n", line_end)
            rest = block[end - len(after) :]
            # The last line of the block ends where the closing line begins.
            block = block[:start] + (value + rest if rest else value.removesuffix(line_end))
    new = {key: value for key, value in values.items() if key not in dict(entries)}
    if new:
        gap = "" if not block or block.endswith("\n") else line_end
        block += gap + _yaml(new).removesuffix("\n").replace("\n", line_end)
    return block


def _comments_after(text: str) -> str:
    """The blank and comment lines that end a key's text: they belong to what follows."""
    lines = text.splitlines(keepends=True)
    kept = len(lines)
    while kept > 1 and (not lines[kept - 1].strip() or lines[kept - 1].startswith("#")):
        kept -= 1
    return "".join(lines[kept:])


def _yaml(values: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=2**31))
