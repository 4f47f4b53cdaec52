"""What `curate verify` prints for people."""

from __future__ import annotations

from typing import Any

_SHOWN = 60
# From how many on equal reasons share a line, and how many of them it names.
_MANY, _NAMED = 3, 5


def one_text(told: dict[str, Any]) -> str:
    """The verdict on one answer, a line for each thing that is known."""
    reward = "none" if told["reward"] is None else f"{told['reward']:g}"
    rows = {
        "verdict": f"{told['verdict']} (reward {reward})",
        "answer found": told["answer_found"],
        "read as": told["answer_read"],
        "gold": told["gold"],
        "gold read as": told["gold_read"],
        "why": told["reason"],
    }
    return "\n".join(f"{name + ':':<14}{value}" for name, value in rows.items() if value)


def verdicts_text(found: dict[str, Any], most: int) -> str:
    """Counts of verdicts, below the first answers that are not correct."""
    wrong = found.get("shown")
    if wrong is None:
        wrong = [each for each in found["verdicts"] if each["verdict"] != "correct"]
    lines, told = _lines(wrong, most)
    if lines and told < len(wrong):
        lines.append(f"… and {len(wrong) - told:,} more that are not correct (--show, --out)")
    lines += [""] if lines else []
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in found["counts"].items())
    whose = "golds, each against itself" if found["against_itself"] else "answers"
    lines.append(f"{found['answers']:,} {whose}, by {found['verifier']}: {counts}")
    if found["mean_reward"] is not None and ":" in found["verifier"]:
        lines.append(f"mean reward {found['mean_reward']:.4g}")
    if 2 * found["counts"].get("error", 0) > found["answers"] and found["against_itself"]:
        lines.append("most golds cannot be read: is this the answer column? (--answer-field)")
    if found["recorded"]:
        lines.append(
            f"{found['differ']:,} of {found['recorded']:,} rewards differ from those recorded"
        )
    if found["unreadable"]:
        first = found["unreadable"][0]
        lines.append(
            f"rows that cannot be used: {len(found['unreadable']):,}; first: row {first['row']}: "
            f"{first['reason']}"
        )
    if "file" in found:
        lines.append(f"verdicts: {found['file']}")
    return "\n".join(lines)


def _lines(wrong: list[dict[str, Any]], most: int) -> tuple[list[str], int]:
    """A line each, `most` at most, and how many answers they are about.

    What could not be judged for the same reason shares one.
    """
    alike: dict[str, list[dict[str, Any]]] = {}
    for place, told in enumerate(wrong):
        key = str(told["reason"]) if told["reward"] is None else f"{place}"
        alike.setdefault(key, []).append(told)
    lines: list[str] = []
    about = 0
    for group in alike.values():
        if len(lines) >= most:
            break
        if len(group) < _MANY:
            group = group[: most - len(lines)]
            lines += map(_line, group)
            about += len(group)
            continue
        about += len(group)
        first = group[0]
        named = ", ".join(map(_where, group[:_NAMED])) + (", …" if len(group) > _NAMED else "")
        lines.append(
            f"{len(group):,} x {first['verdict']}: {first['reason']}; {named}; first gold "
            f"{_short(first['gold'])}"
        )
    return lines, about


def _where(told: dict[str, Any]) -> str:
    if "item_id" in told:
        return f"item {told['item_id']} sample {told['sample']}"
    return f"row {told['row']}"


def _line(told: dict[str, Any]) -> str:
    where = _where(told)
    read = "" if told["answer_found"] is None else f"{_short(told['answer_found'])} against "
    return f"{where}: {told['verdict']}: {read}gold {_short(told['gold'])}: {told['reason']}"


def _short(text: str) -> str:
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return repr(shown)
