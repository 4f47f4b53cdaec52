r"""What math-verify finds in the end of a text that neither sets an answer apart nor announces one.

It looks for LaTeX and for plain expressions, first behind the word "answer" and then anywhere, and
takes the last of them that can be read. Where there is no LaTeX its patterns are asked here, which
spares SymPy; where there is, math-verify reads it, unless what stands there is too large to
compute: then the last formula is taken unread.

math-verify's regular expressions do not take linear time; whoever calls bounds text and time.
"""

import ast
import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from probes.mathematics.equality import can_be_computed
from probes.mathematics.notation import canonical, plain_characters
from probes.mathematics.undone import is_too_large

_FORMULA = re.compile(r"\$\$?([^$]{1,1000})\$|\\\(([^\\]|\\(?!\)))+\\\)|\\\[([^\\]|\\(?!\]))+\\\]")
_PLAIN = re.compile(r"[0-9.+\-*/^()×÷\s]{1,80}")


@lru_cache(maxsize=1)
def _configs() -> tuple[Any, Any]:
    """What math-verify looks for; imported when first used."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    # It warns at every start that its time-outs are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    latex = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
        ),
    )
    return latex, ExprExtractionConfig()


@lru_cache(maxsize=1)
def _patterns() -> tuple[list[re.Pattern[str]], list[list[re.Pattern[str]]]]:
    """math-verify's patterns: those that every LaTeX it finds matches, and those of plain text.

    Those of plain text are in the groups that it tries in turn.
    """
    from math_verify.parser import lazy_expr_regex, lazy_latex_regex

    latex, plain = _configs()
    groups: dict[int, list[re.Pattern[str]]] = {}
    for pattern, priority in lazy_expr_regex(plain):
        groups.setdefault(priority, []).append(pattern)
    return (
        [pattern for pattern, _ in lazy_latex_regex(latex) if "answer" not in pattern.pattern],
        [groups[priority] for priority in sorted(groups)],
    )


def _holds_latex(text: str) -> bool:
    return any(sign in text for sign in "$\\[") and any(
        pattern.search(text) for pattern in _patterns()[0]
    )


def _plain_finds(text: str) -> Iterator[tuple[str, bool]]:
    """What math-verify finds in a text without LaTeX, in its order, and whether it is a number."""
    has_answer = "answer" in text.casefold()
    for patterns in _patterns()[1]:
        matches = [
            match
            for pattern in patterns
            if has_answer or "answer" not in pattern.pattern
            for match in pattern.finditer(text)
        ]
        for match in sorted(matches, key=lambda found: (found.end(), -found.start()), reverse=True):
            yield _plain_text(match)


def _plain_text(match: re.Match[str]) -> tuple[str, bool]:
    """What a plain pattern matched, as math-verify writes numbers, and whether it is a number."""
    groups = match.groupdict()
    integer, decimal = (
        next((part for name, part in groups.items() if part and name.startswith(kind)), "")
        for kind in ("integer", "decimal")
    )
    if not (integer or decimal):
        return groups.get("expr") or "", False
    sign = "-" if integer.startswith("-") else ""
    integer = integer.replace(",", "").replace(" ", "").lstrip("-0") or "0"
    percent = "%" if groups.get("percent") else ""
    return sign + integer + decimal.replace(",", ".") + percent, True


def _can_be_read(text: str) -> bool:
    """Whether plain arithmetic is well formed, which math-verify leaves to Python."""
    if not _PLAIN.fullmatch(text):
        return True
    try:
        source = text.strip(" .\n").replace("^", "**").replace("×", "*").replace("÷", "/")
        ast.parse(" ".join(source.split()), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def last_found(text: str) -> str | None:
    """The answer that math-verify finds in a text, as it stands there; None where it finds none."""
    text = plain_characters(text)
    if not _holds_latex(text):
        first = None
        for found, is_number in _plain_finds(text):
            if is_number or _can_be_read(found):
                return found
            first = first or found
        return first
    if is_too_large(text):
        formulas = list(_FORMULA.finditer(text))
        return formulas[-1][0] if formulas else None
    return _read_first(text)


def _read_first(text: str) -> str | None:
    """The first text that math-verify can read, in its order; else the first that it finds."""
    from math_verify.parser import extract_match, get_extraction_regexes

    latex, plain = _configs()
    groups: dict[int, list[tuple[re.Pattern[str], Any]]] = {}
    for patterns, target in get_extraction_regexes([latex, plain]):
        for pattern, priority in patterns:
            groups.setdefault(priority, []).append((pattern, target))
    first = None
    for priority in sorted(groups):
        matches = [
            (match, target)
            for pattern, target in groups[priority]
            for match in pattern.finditer(text)
        ]
        for match, target in sorted(
            matches, key=lambda found: (found[0].end(), -found[0].start()), reverse=True
        ):
            if target is plain:
                found, is_number = _plain_text(match)
                can_be_read = is_number or _can_be_read(found)
            else:
                read, found = extract_match(match, target)
                can_be_read = read is not None or can_be_computed(canonical(found))
                found += "%" if match.groupdict().get("first_percent") else ""
            if can_be_read:
                return found
            first = first or found or None
    return first
