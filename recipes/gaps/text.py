"""What is missing, as a terminal shows it."""

from __future__ import annotations

import re
from typing import Any

from curate.errors import one_line
from recipes.gaps.clusters import CANDIDATE, PERHAPS, TAUGHT
from recipes.gaps.reasons import REASONS, UNKNOWN

_CLUSTERS_SHOWN = 20
_PROMPT_SHOWN = 60
# Of chat templates, with the name of the one who asks.
_MARKS = re.compile(r"(?:<\|[^<|>]*\|>|<(?:start|end)_of_turn>)(?:user\b)?|\[/?INST\]")
_VERDICTS = {
    CANDIDATE: "nobody else teaches it: a candidate for mid-training",
    PERHAPS: "perhaps nobody else teaches it: not certain",
    TAUGHT: "others teach what it needs: no candidate",
}


def gaps_text(found: dict[str, Any]) -> str:
    """Write what `curate gaps` found as a table of reasons and a list of clusters."""
    items = found["items"]
    if not items:
        line = "no item is unlearnable, or undetermined and rarely right"
        line += "" if found["without_correct"] else ": nothing is missing"
        return "\n".join([line, *_without_correct(found), *_notes(found)])
    of = ", ".join(f"{count:,} {tag}" for tag, count in sorted(found["tags"].items()))
    width = max(map(len, REASONS))
    lines = [
        f"{items:,} items that training is not known to solve: {of}",
        f"training moves in {found['directions']} directions above noise, which hold "
        f"{found['signal_held']:.0%} of what it takes of the items",
        "",
        f"{'what is missing':<{width}}  certain  likely",
    ]
    for reason, meaning in REASONS.items():
        certain, likely = found["reasons"][reason], found["likely"][reason]
        if certain or likely:
            lines.append(f"{reason:<{width}}  {certain:>7,}  {likely:>6,}  {meaning}")
    if found["reasons"][UNKNOWN]:
        lines.append("likely: by the values without their errors")
    clusters = found["clusters"]
    ending = _ending(clusters)
    for number, cluster in enumerate(clusters[:_CLUSTERS_SHOWN], 1):
        lines += ["", *_cluster(number, cluster, ending)]
    more = len(clusters) - _CLUSTERS_SHOWN
    if more > 0:
        lines += ["", f"{more:,} smaller clusters more: --json has them all"]
    lines += ["", _alone(found["alone"], bool(clusters)), *_without_correct(found)]
    if found["file"]:
        lines.append(f"a line an item: {found['file']}")
    return "\n".join([*lines, *_notes(found)])


def _ending(clusters: list[dict[str, Any]]) -> int:
    """How much of the end is a template's, the same in all prompts."""
    prompts = [each["prompt"] or "" for cluster in clusters for each in cluster["examples"]]
    if not prompts:
        return 0
    shortest = min(map(len, prompts))
    alike = next(
        (n for n in range(shortest) if len({each[-1 - n] for each in prompts}) > 1), shortest
    )
    ending = prompts[0][len(prompts[0]) - alike :]
    # It begins with a line or a mark of a template: questions may end alike too.
    starts = [place for place in (ending.find("\n"), ending.find("<")) if place >= 0]
    return alike - min(starts) if starts else 0


def _without_correct(found: dict[str, Any]) -> list[str]:
    """Of how many items nothing can be told here."""
    count = found["without_correct"]
    if not count:
        return []
    items = "1 item has" if count == 1 else f"{count:,} items have"
    return [
        f"{items} no correct rollout, and so no gradient that tells what is missing: more "
        "rollouts may find one, or a larger --max-tokens where most were cut"
    ]


def _cluster(number: int, cluster: dict[str, Any], ending: int) -> list[str]:
    examples = cluster["examples"]
    inside = "an unknown share"
    if cluster["inside"] is not None:
        low, high = cluster["inside_low"], cluster["inside_high"]
        inside = f"{cluster['inside']:.2f} ({low:.2f} to {high:.2f})"
    why = ", ".join(f"{reason} {count:,}" for reason, count in cluster["likely"].items())
    return [
        f"cluster {number}: {cluster['items']:,} items; {_VERDICTS[cluster['verdict']]}",
        f"  {inside} of it lies within the span of the items outside; they do for each other "
        f"{cluster['alignment']:.2f} of what they do for themselves; likely: {why}",
        *(f"  {each['item_id']}  {_short(each['prompt'], ending)}" for each in examples),
    ]


def _alone(alone: int, any_clusters: bool) -> str:
    if not any_clusters:
        return "no two of them would teach each other, as far as is above noise"
    return f"{alone:,} items stand alone, as far as is above noise"


def _notes(found: dict[str, Any]) -> list[str]:
    return [f"note: {note}" for note in found["notes"]]


def _short(prompt: str | None, ending: int) -> str:
    """The end of a prompt, where its question is: other turns and instructions come before."""
    text = prompt or ""
    turns = [each.strip() for each in _MARKS.split(text[: len(text) - ending])]
    line = one_line(next((each for each in reversed(turns) if each), ""))
    return line if len(line) <= _PROMPT_SHOWN else f"…{line[1 - _PROMPT_SHOWN :]}"
