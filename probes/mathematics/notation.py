r"""One notation for answers: Unicode, TeX commands and plain words for the same thing become one.

`canonical(text)` is what the other modules read: `２√3` becomes `2\sqrt{3}`, `\lbrace 1 \rbrace`
becomes `\{1\}`, `**7**` becomes `7`, `\mathrm{e}` becomes `e`, and `exp(16)` becomes `e^{16}`.
It says nothing of equality: two texts with one meaning may still differ.

Every regular expression of this module takes time linear in its text.
"""

import re
import unicodedata
from functools import lru_cache

from probes.mathematics.boxes import boxed_answer

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "0123456789+-=()nix")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓ", "0123456789+-=()nix")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓ]+")
_OVERLINED = re.compile("((?:\\d[\u0304\u0305])+)")
_ROOT = re.compile(r"([√∛∜])\s?(?:(\d+(?:\.\d+)?|\\?[A-Za-z]+)|(?=[({]))")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_GREEK = {
    chr(code): "\\" + name
    for start, names in (
        (
            0x3B1,
            "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi - pi rho - "
            "sigma tau upsilon phi chi psi omega",
        ),
        (0x393, "Gamma Delta - - - Theta - - Lambda - - Xi - Pi - - Sigma - - Phi - Psi Omega"),
    )
    for code, name in enumerate(names.split(), start)
    if name != "-"
}
_SIGNS = {
    **dict.fromkeys("−–—‒‐‑﹣", "-"),
    **dict.fromkeys(
        "\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "
    ),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u2061\u2062\u2063", ""),
    **dict.fromkeys("×✕✖", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    **dict.fromkeys("°º˚", r"^\circ"),
    **dict.fromkeys("∅⌀", r"\emptyset "),
    **dict.fromkeys("，、", ","),
    **dict.fromkeys("。｡", "."),
    **dict.fromkeys("‘’“”", "'"),
    **{"∗": "*", "÷": "/", "∕": "/", "⁄": "/", "∶": ":", "′": "'", "＾": "^", "…": "..."},
    **{"≠": r"\ne ", "≈": r"\approx ", "≃": r"\approx ", "±": r"\pm ", "∓": r"\mp "},
    **{"∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus "},
    **{"ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}"},
    **{"ℂ": r"\mathbb{C}", "ϕ": r"\phi", "φ": r"\phi", "ϵ": r"\epsilon", "µ": r"\mu"},
    **{"∆": r"\Delta", "Ω": r"\Omega", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int "},
    **{"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle "},
    **{"⟩": r"\rangle ", "℃": r"^\circ C", "℉": r"^\circ F", "٫": ".", "٬": ",", "٪": "%"},
    **{"∧": r"\land ", "∨": r"\lor ", "⇒": r"\Rightarrow ", "→": r"\to ", "ℓ": "l"},
}


def _one_character(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if character in _GREEK:
        return _GREEK[character] + " "
    if 0xFF01 <= ord(character) <= 0xFF5E:  # full width
        return _SIGNS.get(character, chr(ord(character) - 0xFEE0))
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    if unicodedata.category(character) == "No" and "⁄" in (
        fraction := unicodedata.normalize("NFKC", character)
    ):
        over, under = fraction.split("⁄")
        return rf"\frac{{{over}}}{{{under}}}" if under else character
    if 0x1D400 <= ord(character) <= 0x1D7FF:  # letters and digits of mathematics
        plain = unicodedata.normalize("NFKC", character)
        return _GREEK.get(plain, plain)
    return character


def in_ascii(text: str) -> str:
    """The text with Unicode's mathematics as TeX, and the digits of all scripts as ASCII."""
    if text.isascii():
        return text
    if "\u0305" in text or "\u0304" in text:
        text = _OVERLINED.sub(lambda match: rf"\overline{{{re.sub('[^0-9]', '', match[1])}}}", text)
    text = _RAISED.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}", text)
    text = _ROOT.sub(
        lambda match: _ROOTS[match[1]] + ("{" + match[2] + "}" if match[2] else ""), text
    )
    return "".join(
        character if character.isascii() else _one_character(character) for character in text
    )


def plain_characters(text: str) -> str:
    """The text with digits of all scripts, full width and dashes in ASCII, one for one."""
    if text.isascii():
        return text
    return "".join(
        character
        if character.isascii()
        or len(plain := _one_character(character)) != 1
        or unicodedata.category(character) not in ("Nd", "Pd", "Sm", "Po", "Zs")
        else plain
        for character in text
    )


_COMMANDS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Sizes, fonts and other dress.
        (r"\\(?:left|right|m?left|middle)(?![A-Za-z])\.?", ""),
        (
            r"\\(?:[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits)(?![A-Za-z])",
            "",
        ),
        (
            r"\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge|bf|rm|it|sf|tt|bfseries|"
            r"itshape|boldmath|centering)(?![A-Za-z])",
            "",
        ),
        (
            r"\\(?:mathbf|mathit|mathsf|mathtt|boldsymbol|bm|pmb|mathnormal|emph|underline|mathop)"
            r"\s?\{([^{}]*)\}",
            r"\1",
        ),
        (r"\\(?:mathrm|text|textrm|operatorname|rm)\s?\{\s?([eid])\s?\}", r"\1 "),
        (
            r"\\(?:mathrm|text|textrm|operatorname)\*?\s?\{\s?(gcd|lcm|max|min|det|sin|cos|tan|log|ln|"
            r"exp|mod|arcsin|arccos|arctan|sinh|cosh|tanh|sec|csc|cot)\s?\}",
            r"\\\1 ",
        ),
        (r"\\(?:text|textbf|textrm|mathrm|mbox)\s?\{\s*\}", ""),
        (r"\\(?:label|tag)\s?\{[^{}]*\}", ""),
        (r"\\(?:color|textcolor)\s?\{[^{}]*\}", ""),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"^([^{}\\]+)\\over(?![A-Za-z])([^{}\\]+)$", r"\\frac{\1}{\2}"),
        # Spaces.
        (
            r"(?<!\\)\\(?:[,;:!> ]|q?quad(?![A-Za-z])|enspace(?![A-Za-z])|thinspace(?![A-Za-z])|"
            r"hspace\s?\{[^{}]*\}|phantom\s?\{[^{}]*\})|~",
            " ",
        ),
        # Names of one thing.
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\lbrack(?![A-Za-z])", "["),
        (r"\\rbrack(?![A-Za-z])", "]"),
        (r"\\(?:leqslant|leqq|leq)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geqslant|geqq|geq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq(?![A-Za-z])|(?<=\s)!=", r"\\ne "),
        (r"\\(?:varnothing|empty)(?![A-Za-z])", r"\\emptyset"),
        (r"\\varphi(?![A-Za-z])", r"\\phi"),
        (r"\\varepsilon(?![A-Za-z])", r"\\epsilon"),
        (r"\\vartheta(?![A-Za-z])", r"\\theta"),
        (r"\\imath(?![A-Za-z])", "i"),
        (r"\\degree(?![A-Za-z])", r"^\\circ"),
        (r"\^\s?\{\s?\\circ\s?\}|\^\s?\\circ(?![A-Za-z])", r"^\\circ "),
        (r"\\[Rr]eals?(?![A-Za-z])|\\R(?![A-Za-z])", r"\\mathbb{R}"),
        (r"\\(?:lvert|rvert|vert)(?![A-Za-z])", "|"),
        (r"\\bmod(?![A-Za-z])", r"\\mod"),
        (r"(?<![\\A-Za-z}^_\]])\{\s?(-?[\d.]+)\s?\}(?!\s?\{)", r"\1"),
        (r"\{\s?,\s?\}", ","),
        (r"\{\s?\.\s?\}", "."),
        (
            r",?\s?\\(?:text|textrm|mathrm|mbox)\s?\{\s*,?\s?and\s*\}|\\(?:land|wedge)(?![A-Za-z])",
            " and ",
        ),
        (
            r",?\s?\\(?:text|textrm|mathrm|mbox)\s?\{\s*,?\s?or\s*\}|\\(?:lor|vee)(?![A-Za-z])",
            " or ",
        ),
        (r"(?<=[0-9A-Za-z)}\]])\s?\*\*\s?(?=[-0-9A-Za-z({\\])", "^"),
    )
]
_PLAIN_WORDS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
        (
            r"(?<![A-Za-z\\{])(sin|cos|tan|sec|csc|cot|log|ln|arcsin|arccos|arctan|sinh|cosh|tanh)"
            r"(?=\s?[(0-9x\\^_])(?![A-Za-z])",
            r"\\\1",
        ),
        (
            r"(?<![A-Za-z\\])(alpha|beta|gamma|delta|theta|lambda|sigma|omega|phi)(?![A-Za-z])",
            r"\\\1 ",
        ),
    )
]
_CALL = re.compile(r"(?<![A-Za-z\\])(sqrt|cbrt|exp|abs)\s?\(|\\(sqrt|exp)\s?\(")
_ROOT_OF_DIGITS = re.compile(r"(?<![A-Za-z\\])sqrt\s?(\d+)")


def _calls(text: str) -> str:
    """`sqrt(2)` and `exp(16)` as TeX; brackets that do not close are left alone."""
    parts: list[str] = []
    place = 0
    # Each is looked for once, from the left; what it holds is looked into afterwards.
    while len(parts) < 40 and (match := _CALL.search(text, place)):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        name, inner = match[1] or match[2], text[match.end() : end - 1]
        opened, closed = {
            "sqrt": (r"\sqrt{", "}"),
            "cbrt": (r"\sqrt[3]{", "}"),
            "exp": ("e^{", "}"),
            "abs": ("|", "|"),
        }[name]
        text = text[: match.start()] + opened + inner + closed + text[end:]
        place = match.start() + len(opened)
        parts.append(name)
    return text


_SAID = re.compile(
    r"(?i:(?:so|thus|hence|therefore|and)?,?\s?(?:the |my )?(?:final |correct )?answer"
    r"(?:\s?(?:is|:|=))+\s?)"
)
_TEXT_SAID = re.compile(
    r"^\\(?:text|textbf|mathrm|mbox)\s?\{\s*(?i:(?:so |thus )?(?:the )?(?:final |correct )?"
    r"answer)\s?(?:is|:|=)?\s*:?\s*\}\s?[:=]?"
)
_TEXT_STOP = re.compile(r"\\text\s?\{\s*[.,;]\s*\}$")
_DOLLARS = re.compile(r"(?<!\\)\$")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|textsf|texttt|mathrm|mathbf|mathsf|mbox|hbox|"
    r"emph)\s?\{([^{}]*)\}"
)
_OUTER = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("```", "```"))
_THOUSANDS = re.compile(
    r"(?<=\d)(?:,?\s?\\[,;:! ]\s?|\s?\{\s?,\s?\}\s?|\s)(?=\d{3}(?!\d))"  # 1\,080, 11,\! 111
)


def text_unwrapped(text: str) -> str:
    r"""The text with `\text{…}` and its like replaced by what they hold."""
    return _TEXT.sub(r"\1", text).strip() if "{" in text else text.strip()


def _undressed(text: str) -> str:
    """Without dollars, box, emphasis, "the answer is", `=` in front and a full stop behind."""
    for _ in range(8):
        before = text
        text = text.strip()
        if text.startswith((r"\boxed", r"\fbox")) and text.endswith("}"):
            text = (boxed_answer(text) or text).strip()
        for left, right in _OUTER:
            inner = text[len(left) : -len(right)]
            if text.startswith(left) and text.endswith(right) and inner and left not in inner:
                text = inner.strip()
                break
        text = text.rstrip("\n ;:") if not text.endswith(r"\;") else text
        text = text.removesuffix("\\\\").rstrip()
        if text.endswith(".") and not text.endswith(".."):
            text = text.rstrip(".").rstrip()
        if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'`":
            text = text[1:-1]
        for mark in ("***", "**", "__", "*", "_"):
            if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
                text = text[len(mark) : -len(mark)]
                break
        text = _TEXT_STOP.sub("", text if text.endswith("\\,") else text.rstrip(","))
        text = _TEXT_SAID.sub("", text)
        text = re.sub(
            r"^\s?(?:=|:|\\Rightarrow|\\implies|\\therefore|\\approx(?![A-Za-z])|\\sim(?![A-Za-z]))\s?",
            "",
            text,
        )
        whole = _TEXT.fullmatch(text)
        if whole:
            text = whole[1]
        if said := _SAID.match(text):
            text = text[said.end() :]
        if text == before:
            break
    return text


@lru_cache(maxsize=16384)
def canonical(text: str) -> str:
    """The answer in one notation (see the top), on one line and without outer dress."""
    text = _undressed(in_ascii(text[:20_000]) if not text.isascii() else text)
    if text.isdigit():
        return text
    text = _THOUSANDS.sub("", text)
    if "\\" in text or "~" in text or "{" in text or "*" in text or "<" in text or ">" in text:
        for pattern, replacement in _COMMANDS:
            text = pattern.sub(replacement, text)
    if any(character.isalpha() for character in text):
        for pattern, replacement in _PLAIN_WORDS:
            text = pattern.sub(replacement, text)
        text = _calls(_ROOT_OF_DIGITS.sub(r"\\sqrt{\1}", text))
    text = _undressed(text)
    if len(_DOLLARS.findall(text)) > 1:
        text = _DOLLARS.sub("", text)
    text = " ".join(text.split())
    return _THOUSANDS.sub("", text)
