"""A report without the completions in it, for where rollouts are not to be published."""

from __future__ import annotations

import json
import re

# The block of `curate report` that holds them; nothing in its JSON can end it early.
_ROLLOUTS = re.compile(
    rb'(?<=<script type="application/json" id="rollouts-data">)(.*?)(?=</script>)', re.DOTALL
)


def without_rollouts(page: bytes) -> bytes | None:
    """The page of a report with its rollouts taken out; None where it is not known to have none.

    What the page says of items, rates and tags stays; an item opened says that this page holds no
    rollouts of it.
    """
    blocks = _ROLLOUTS.findall(page)
    try:
        rollouts = json.loads(blocks[0]) if len(blocks) == 1 else None
    except ValueError:
        return None
    if not isinstance(rollouts, dict) or "items" not in rollouts:
        return None
    emptied = json.dumps(rollouts | {"items": {}, "of_items": 0}).replace("<", "\\u003c").encode()
    return _ROLLOUTS.sub(lambda _: emptied, page)
