"""Choosing items of a run by their tags, for work that costs money by the item."""

from __future__ import annotations

from collections.abc import Sequence

from curate.errors import UsageError
from curate.tags import Trainability

_WORDS = tuple(str(tag) for tag in Trainability)


def check_tags(tags: Sequence[str]) -> None:
    """Raise UsageError for a word that is no tag."""
    for tag in tags:
        if tag not in _WORDS:
            raise UsageError(f"{tag!r} is no tag; tags are {', '.join(_WORDS)}")


def choose_items(
    item_ids: Sequence[str], groups: Sequence[str | None], tags: Sequence[str], limit: int
) -> list[str]:
    """Choose items with these tags; with a limit equally many of each tag, as far as there are.

    Blindly, by their id, which is a hash: a smaller limit chooses some of the same items.

    Args:
        item_ids: of all items.
        groups: the tag of each.
        tags: which to take; empty: all.
        limit: how many at most; 0: no limit.

    Returns:
        their ids, in the order given.
    """
    of_tag: dict[str, list[str]] = {}
    for item_id, group in zip(item_ids, groups, strict=True):
        if group and (not tags or group in tags):
            of_tag.setdefault(group, []).append(item_id)
    ranked = [
        (rank, item_id)
        for members in of_tag.values()
        for rank, item_id in enumerate(sorted(members))
    ]
    chosen = {item_id for _, item_id in sorted(ranked)[: limit or None]}
    return [item_id for item_id in item_ids if item_id in chosen]
