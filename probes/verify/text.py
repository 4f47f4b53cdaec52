"""What `curate verify` prints for people."""

from __future__ import annotations

from typing import Any

_SHOWN = 60


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
    lines = [_line(each) for each in wrong[:most]]
    rest = found["answers"] - found["counts"].get("correct", 0) - len(lines)
    if rest and lines:
        lines.append(f"… and {rest:,} more that are not correct (--show, --out)")
    lines += [""] if lines else []
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in found["counts"].items())
    whose = "golds, each against itself" if found["against_itself"] else "answers"
    lines.append(f"{found['answers']:,} {whose}, by {found['verifier']}: {counts}")
    if found["mean_reward"] is not None and ":" in found["verifier"]:
        lines.append(f"mean reward {found['mean_reward']:.4g}")
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


def _line(told: dict[str, Any]) -> str:
    where = f"row {told['row']}"
    if "item_id" in told:
        where = f"item {told['item_id']} sample {told['sample']}"
    read = "" if told["answer_found"] is None else f"{_short(told['answer_found'])} against "
    return f"{where}: {told['verdict']}: {read}gold {_short(told['gold'])}: {told['reason']}"


def _short(text: str) -> str:
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return repr(shown)
