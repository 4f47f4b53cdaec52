"""What a grown world is taught: skills over symbols, each a source of questions.

A symbol is a letter, a number or a word, and a text is symbols with spaces between them. A skill
draws a prompt, its answer, and the workings that may come before the answer, one of several.
Nothing here says how well a skill is learned; shares and noise do (`tests/worlds/grown.py`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LETTERS = "abcdefghijklmnop"
"""Sixteen, at places 1 to 16."""
LARGEST = 150
MARK = "####"
"""Stands between working and answer; the verifier `exact` reads what follows it."""

_FEW = LETTERS[:6]
_TABLES = 7


@dataclass(frozen=True)
class Question:
    """One prompt with its answer; `workings` are the texts that may stand before the answer."""

    skill: str
    prompt: str
    answer: str
    workings: tuple[str, ...]


Draw = Callable[[np.random.Generator], tuple[str, object, tuple[str, ...]]]


def _two(word: str, least: int, most: int, result: Callable[[int, int], object]) -> Draw:
    """A skill of two numbers; its working names one or both."""

    def draw(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
        a, b = (int(n) for n in rng.integers(least, most + 1, size=2))
        return f"{word} {a} {b}", result(a, b), (f"{a} {b}", f"{b} {a}", f"{a}", f"{b}")

    return draw


def _one(word: str, most: int, result: Callable[[int], object]) -> Draw:
    def draw(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
        n = int(rng.integers(1, most + 1))
        return f"{word} {n}", result(n), (f"{n}", f"{n} ;", f"{word} {n}")

    return draw


def _text(word: str, symbols: str, length: int, result: Callable[[str], object]) -> Draw:
    """A skill of a string of symbols; `result` gives a string of symbols or a number."""

    def draw(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
        text = "".join(rng.choice(list(symbols), size=length))
        found = result(text)
        answer = " ".join(found) if isinstance(found, str) else found
        shown = " ".join(text)
        return f"{word} {shown}", answer, (shown, f"{shown} ;", " ".join(text[::-1]))

    return draw


def _count(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
    text = "".join(rng.choice(list(LETTERS[:3]), size=6))
    symbol = str(rng.choice(list(LETTERS[:3])))
    return f"count {symbol} {' '.join(text)}", text.count(symbol), (symbol, " ".join(text))


def _rotate(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
    text, by = "".join(rng.choice(list(_FEW), size=4)), int(rng.integers(1, 4))
    turned = " ".join(text[by:] + text[:by])
    return f"rotate {by} {' '.join(text)}", turned, (" ".join(text), f"{by}")


def _at(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
    text, place = "".join(rng.choice(list(LETTERS), size=5)), int(rng.integers(1, 6))
    return f"at {place} {' '.join(text)}", text[place - 1], (" ".join(text), f"{place}")


def _sequence(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
    first, gap = int(rng.integers(1, 30)), int(rng.integers(1, 10))
    a, b, c, d = (first + i * gap for i in range(4))
    return f"next {a} {b} {c}", d, (f"gap {gap}", f"{b} less {a} is {gap}")


def _table(index: int, size: int) -> Draw:
    """Memorised codes: a value for every pair of letters, without any rule."""
    values = np.random.default_rng([711, index]).integers(size, size=(len(LETTERS),) * 2)

    def draw(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
        i, j = (int(n) for n in rng.integers(len(LETTERS), size=2))
        key = f"{LETTERS[i]} {LETTERS[j]}"
        return f"code{index} {key}", int(values[i, j]), (key, f"{key} ;", LETTERS[i], LETTERS[j])

    return draw


def _sum_of_three(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
    a, b, c = (int(n) for n in rng.integers(1, 16, size=3))
    orders = ((a, b, c), (b, c, a), (a, c, b))
    workings = tuple(f"{x} plus {y} is {x + y} ; {x + y} plus {z}" for x, y, z in orders)
    return f"total {a} {b} {c}", a + b + c, workings


def _sum_times(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
    a, b, c = int(rng.integers(1, 10)), int(rng.integers(1, 10)), int(rng.integers(2, 5))
    inside = f"{a} plus {b} is {a + b} ; {a + b} times {c}"
    outside = f"{a} times {c} is {a * c} ; {b} times {c} is {b * c} ; {a * c} plus {b * c}"
    return f"each {a} {b} by {c}", (a + b) * c, (inside, outside)


def _product_plus(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
    a, b, c = (int(n) for n in rng.integers(2, 10, size=3))
    last = f"{a * b} plus {c}"
    return f"add {c} to {a} times {b}", a * b + c, (f"{a} times {b} is {a * b} ; {last}", last)


def _spread(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
    numbers = [int(n) for n in rng.integers(1, 31, size=3)]
    high, low = max(numbers), min(numbers)
    workings = (f"max {high} min {low}", f"min {low} max {high}", f"{high} less {low}")
    return f"span {' '.join(map(str, numbers))}", high - low, workings


def _digit_sum(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
    digits = rng.integers(1, 10, size=4).tolist()
    workings = []
    for order in (digits, digits[::-1]):
        so_far = np.cumsum(order).tolist()
        workings.append(" ; ".join(map(str, so_far[1:-1])))
    return f"digits {' '.join(map(str, digits))}", sum(digits), tuple(workings)


def _median(rng: np.random.Generator) -> tuple[str, object, tuple[str, ...]]:
    numbers = [int(n) for n in rng.integers(1, 31, size=3)]
    ordered = sorted(numbers)
    up, down = (" ".join(map(str, order)) for order in (ordered, ordered[::-1]))
    return f"median {' '.join(map(str, numbers))}", ordered[1], (up, down)


def _places(text: str) -> list[int]:
    return [LETTERS.index(letter) + 1 for letter in text]


def _shifted(text: str) -> str:
    return "".join(LETTERS[(LETTERS.index(letter) + 2) % len(LETTERS)] for letter in text)


SKILLS: dict[str, Draw] = {
    # Numbers; several in two wordings.
    "plus": _two("plus", 1, 30, lambda a, b: a + b),
    "sum": _two("sum", 1, 30, lambda a, b: a + b),
    "minus": _two("minus", 1, 30, lambda a, b: max(a, b) - min(a, b)),
    "gap": _two("gap", 1, 30, lambda a, b: abs(a - b)),
    "times": _two("times", 2, 12, lambda a, b: a * b),
    "product": _two("product", 2, 12, lambda a, b: a * b),
    "mod": _two("mod", 2, 30, lambda a, b: max(a, b) % min(a, b)),
    "gcd": _two("gcd", 2, 30, math.gcd),
    "min": _two("min", 1, 30, min),
    "max": _two("max", 1, 30, max),
    "lower": _two("lower", 1, 30, min),
    "clock": _two("clock", 0, 16, lambda a, b: (a + b) % 17),
    "back": _two("back", 0, 16, lambda a, b: (a - b) % 17),
    "compare": _two("compare", 1, 30, lambda a, b: "<" if a < b else ">" if a > b else "="),
    "successor": _one("after", 149, lambda n: n + 1),
    "double": _one("double", 75, lambda n: 2 * n),
    "sevens": _one("sevens", 149, lambda n: n % 7),
    "tens": _one("tens", 149, lambda n: n // 10),
    "sequence": _sequence,
    # Texts.
    "sort": _text("sort", "123456789", 4, lambda t: "".join(sorted(t))),
    "fall": _text("fall", "123456789", 3, lambda t: "".join(sorted(t, reverse=True))),
    "order": _text("order", _FEW, 3, lambda t: "".join(sorted(t))),
    "reverse": _text("reverse", _FEW, 4, lambda t: t[::-1]),
    "copy": _text("copy", LETTERS, 3, lambda t: t),
    "first": _text("first", LETTERS, 4, lambda t: t[0]),
    "last": _text("last", LETTERS, 4, lambda t: t[-1]),
    "at": _at,
    "ends": _text("ends", LETTERS, 4, lambda t: t[0] + t[-1]),
    "place": _text("place", LETTERS, 2, lambda t: sum(_places(t))),
    "shift": _text("shift", LETTERS, 2, _shifted),
    "swap": _text("swap", _FEW, 4, lambda t: t[1] + t[0] + t[3] + t[2]),
    "distinct": _text("kinds", _FEW, 5, lambda t: len(set(t))),
    "highest": _text("highest", LETTERS, 4, lambda t: max(t)),
    "ones": _text("ones", "01", 8, lambda t: t.count("1")),
    "count": _count,
    "rotate": _rotate,
    # Memorised.
    **{f"codes{i}": _table(i, 60 if i % 2 else 15) for i in range(_TABLES)},
    # Several steps.
    "total": _sum_of_three,
    "sum_times": _sum_times,
    "product_plus": _product_plus,
    "span": _spread,
    "digit_sum": _digit_sum,
    "median": _median,
}
"""Each skill by name: draws prompt, answer and the choices of working."""

_WORDS = (
    *("plus", "sum", "minus", "gap", "times", "product", "mod", "gcd", "min", "max", "lower"),
    *("clock", "back", "compare", "after", "double", "sevens", "tens", "next", "sort", "fall"),
    *("order", "reverse", "copy", "first", "last", "at", "ends", "place", "shift", "swap"),
    *("kinds", "highest", "ones", "count", "rotate", *(f"code{i}" for i in range(_TABLES))),
    *("total", "each", "by", "add", "to", "span", "digits", "median", "less", "is"),
    *("<", ">", "=", ";", MARK),
)
SYMBOLS = (*_WORDS, *LETTERS, *map(str, range(LARGEST + 1)))
"""Every symbol of prompts and completions."""


def draw_question(skill: str, rng: np.random.Generator) -> Question:
    """Draw one question of a skill; raises KeyError for a name that is not in `SKILLS`."""
    prompt, answer, workings = SKILLS[skill](rng)
    return Question(skill, prompt, str(answer), workings)
