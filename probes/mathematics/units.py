r"""Units behind a value, and currency signs before it: split off, and compared where known.

`5\text{ km/h}` is 5 and `km/h`. A known unit is a product of powers of the names below, with the
prefixes of the SI; nothing is converted, so that 5 m equals neither 5 cm nor 500 cm. Words that are
no known unit (`12 red apples`) are split off; they equal each other, and no known unit. A single
letter is a unit only in `\text{…}`, behind a space, or in a compound (`5 m/s`): `3c` is a product.

Every regular expression of this module takes time linear in its text.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from probes.mathematics.notation import text_unwrapped
from probes.mathematics.numbers import NUMBER_PATTERN

UnitPowers = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value in text, and its unit."""

    value: str
    unit: UnitPowers | None
    """None where there is none, or only a word for any."""
    has_unit: bool
    """Whether anything was split off."""


_PREFIXES = {
    **{"n": "n", "u": "u", "\\mu": "u", "m": "m", "c": "c", "d": "d", "k": "k", "M": "M"},
    **{"G": "G", "T": "T", "p": "p", "h": "h", "f": "f"},
}
_PREFIXED = {  # symbol: its name here
    **{"m": "m", "g": "g", "s": "s", "L": "L", "l": "L", "Hz": "Hz", "W": "W", "J": "J", "V": "V"},
    **{"A": "A", "N": "N", "Pa": "Pa", "eV": "eV", "mol": "mol", "C": "C", "F": "F", "K": "K"},
    **{"T": "T", "H": "H", "\\Omega": "ohm", "ohm": "ohm", "Wb": "Wb", "cal": "cal", "bar": "bar"},
    **{"B": "byte", "Wh": "Wh", "M": "molar", "Bq": "Bq", "Sv": "Sv", "lm": "lm", "cd": "cd"},
}
_NAMES = {
    name: names.split()[0]
    for names in """m meter meters metre metres 米 метр метра метров м
        cm centimeter centimeters centimetre centimetres 厘米 公分 см
        mm millimeter millimeters millimetre millimetres 毫米 мм
        km kilometer kilometers kilometre kilometres 千米 公里 км
        in inch inches
        ft foot feet
        yd yard yards yds
        mi mile miles
        nmi
        mg milligram milligrams 毫克
        g gram grams gm 克 г
        kg kilogram kilograms kilo kilos kgs 千克 公斤 кг
        lb lbs pound pounds
        oz ounce ounces
        ton tons tonne tonnes 吨
        mL milliliter milliliters millilitre millilitres ml cc 毫升
        L liter liters litre litres l 升 л
        gallon gallons gal
        quart quarts qt
        pint pints pt
        cup cups
        s sec secs second seconds 秒 с сек
        ms millisecond milliseconds
        min mins minute minutes 分钟 分鐘 мин минут
        h hr hrs hour hours 小时 小時 час часа часов ч
        day days d 天 日 день дня дней
        week weeks wk 周
        month months 个月 月
        year years yr yrs 年 岁 歲
        cent cents ¢
        dollar dollars usd $ \\$ us$ 美元
        euro euros eur €
        pound_sterling gbp £
        yen jpy ¥ 円 日元
        yuan rmb cny 元 块
        rupee rupees inr rs ₹
        rouble rouble ruble rubles rub ₽ рублей руб рубля рубль
        won krw ₩ 원
        degree degrees deg ^\\circ 度
        celsius degc ^\\circC degreec degreesc degreecelsius degreescelsius
        fahrenheit degf ^\\circF degreef degreesf degreefahrenheit degreesfahrenheit
        radian radians rad
        acre acres
        hectare hectares ha
        newton newtons
        joule joules
        watt watts
        volt volts
        ampere amperes amp amps
        hertz
        pascal pascals
        kelvin kelvins
        coulomb coulombs
        ohm ohms
        mole moles
        mph
        kmh kph kmph
        rpm
        bit bits
        byte bytes
        calorie calories
        kilojoule kilojoules
        kilowatt kilowatts
        atm
        torr mmHg
        dB""".splitlines()
    for name in names.split()
}
_LONG = {  # words for a symbol
    **{"newton": "N", "joule": "J", "watt": "W", "volt": "V", "ampere": "A", "hertz": "Hz"},
    **{"pascal": "Pa", "kelvin": "K", "coulomb": "C", "mole": "mol", "calorie": "cal"},
    **{"kilojoule": "kJ", "kilowatt": "kW"},
}
_COMPOUND = {
    "mph": (("mi", 1), ("h", -1)),
    "kmh": (("km", 1), ("h", -1)),
    "rpm": (("revolution", 1), ("min", -1)),
}
# Behind a space or in \text only: a letter elsewhere is a factor.
_CURRENCY = {"\\$": "dollar", "$": "dollar", "€": "euro", "£": "pound_sterling", "¥": "yen",
             "₹": "rupee", "₽": "rouble", "₩": "won", "Rs": "rupee", "Rs.": "rupee"}  # fmt: skip
_CURRENCY_SIGN = re.compile(
    r"([-+]?)\s?(?:US|USD|CAD|AUD|A|C|HK|NT)?\s?(\\\$|[$€£¥₹₽₩₪₫฿₴₦₱]|Rs\.?(?=\s?\d)|RMB(?=\s?\d))\s?"
    r"(?=[-+\d.\\(])"
)
_WORDS_UNIT: UnitPowers = (("", 1),)
"""Words that are no known unit, which equal each other and no known one."""
_ANY_UNIT = frozenset(["unit", "units", "square", "sq", "cubic", "cu", "个", "個", "total", "in"])
_NOT_COUNTED = frozenset(  # words that change the value before them
    """and or sin cos tan sec csc cot arcsin arccos arctan log ln exp sqrt inf infinity infty mod
    gcd lcm max min det hundred thousand million billion trillion dozen dozens half halves third
    thirds quarter quarters percent plus minus times over divided multiplied point choose factorial
    than least most out of to if when not by remainder is are with squared cubed pi per
    где и или""".split()  # noqa: SIM905
)
_NUMBER_FIRST = re.compile(NUMBER_PATTERN, re.VERBOSE)
_WORDS_ONLY = re.compile(r"\s?[^\W\d_]+\.?(?:[\s-][^\W\d_]+\.?){0,4}")
_UNIT_TOKEN = re.compile(
    r"\s?(?:(?P<join>/|\\cdot(?![A-Za-z])|\*|per(?![A-Za-z])|\\times(?![A-Za-z]))\s?)?"
    r"(?P<square>(?:square|sq\.?|cubic|cu\.?)\s)?"
    r"(?P<name>\^\\circ\s?[CF](?![A-Za-z])|\^\\circ|degrees?\s(?:[CF]|[Cc]elsius|[Ff]ahrenheit)(?![A-Za-z])|"
    r"(?:\\mu\s?)[A-Za-z]{1,3}|[kMGm]?\\Omega|\\?\$|[€£¥₹₽₩¢]|US\$|[^\W\d_]+)\.?"
    r"(?P<power>\s?\^\s?(?:\{\s?-?\d\s?\}|-?\d)|[23](?![\d.])|\s(?:squared|cubed)(?![A-Za-z]))?"
)
_TEXT_COMMAND = re.compile(r"\\(?:text[a-z]{0,6}|mathrm|mathbf|mbox|hbox|operatorname)\s?\{")
_POWER_BRACES = re.compile(r"\^\s?\{\s?(-?\d)\s?\}")
_QUOTIENT = re.compile(r"\\frac\s?\{((?:[^{}]|\{[^{}]*\})*)\}\s?\{((?:[^{}]|\{[^{}]*\})*)\}")
_TEXT_TAIL = re.compile(
    r"(?:\s{0,2}(?:/|\\cdot|\*)?\s{0,2}(?:\\frac)?\\(?:text[a-z]{0,6}|mathrm|mathbf|mbox|hbox|operatorname)\s?"
    r"\{[^{}]{0,60}\}(?:\s?\^\s?\{?-?\d\}?)?)+\Z"
)
_WORD_TAIL = re.compile(r"\s([A-Za-z]{2,}(?:\s?\^\s?\{?-?\d\}?)?)\Z"
                        r"|(?<=[\d})\]])([A-Za-z]{2,}(?:\s?\^\s?\{?-?\d\}?)?)\Z")  # fmt: skip


def _named(name: str) -> UnitPowers | None:
    """A known unit, with its prefix; None for other words."""
    name = name.replace(" ", "")
    if name in _PREFIXED:
        return ((_PREFIXED[name], 1),)
    folded = name if name in _NAMES else name.casefold()
    if folded in _NAMES:
        known = _NAMES[folded]
        return _COMPOUND.get(known) or ((_LONG.get(known, known), 1),)
    for prefix, meaning in _PREFIXES.items():
        symbol = name.removeprefix(prefix)
        if symbol != name and symbol in _PREFIXED:
            return ((meaning + _PREFIXED[symbol], 1),)
    return None


def _unwrapped(text: str) -> str:
    r"""Without `\text{…}` and its like, and with powers as in `s^-1`."""
    text = _POWER_BRACES.sub(r"^\1 ", _TEXT_COMMAND.sub(" {", text))
    return " ".join(text.replace("{", "").replace("}", "").split())


@lru_cache(maxsize=16384)
def read_unit(text: str) -> UnitPowers | None:
    """The known unit that a text is, in the order of names; None for all else."""
    powers: dict[str, int] = {}
    place, side, count = 0, 1, 0
    fraction = _QUOTIENT.fullmatch(text.strip())
    if fraction:
        text = f"{fraction[1]} / {fraction[2]}"
    text = _unwrapped(text)
    while place < len(text):
        match = _UNIT_TOKEN.match(text, place)
        if match is None or match.end() == place or count > 8:
            return None
        if match["join"] in ("/", "per"):
            side = -1
        unit = _named(match["name"])
        if unit is None:
            return None
        power_text = (match["power"] or "1").strip(" ^{}")
        power = {"squared": 2, "cubed": 3}.get(power_text) or int(power_text)
        if match["square"]:
            power = 2 if match["square"].startswith("sq") else 3
        for name, exponent in unit:
            powers[name] = powers.get(name, 0) + side * power * exponent
        place, count = match.end(), count + 1
    return tuple(sorted((name, power) for name, power in powers.items() if power)) or None


@lru_cache(maxsize=16384)
def split_unit(text: str) -> Quantity:
    """The value and the unit of a text in canonical notation."""
    currency = None
    sign = _CURRENCY_SIGN.match(text)
    if sign:
        text = sign[1] + text[sign.end() :]
        currency = ((_CURRENCY.get(sign[2], sign[2]), 1),)
    quantity = _behind_number(text) or _behind_value(text)
    if currency is None:
        return quantity
    return Quantity(quantity.value, currency, True)


def _behind_number(text: str) -> Quantity | None:
    """Of a text that begins with a plain number; None for all else."""
    match = _NUMBER_FIRST.match(text)
    if match is None or match.end() == len(text):
        return None
    value, rest = match[0].rstrip(), text[match.end() :]
    in_text = rest.lstrip().startswith(("\\text", "\\math", "\\mbox", "\\hbox", "\\operatorname"))
    if rest.startswith(("^", "_", "(", "!")) and not rest.startswith("^\\circ"):
        return None
    plain = _unwrapped(rest)
    words = set(re.findall(r"[^\W\d_]+", plain.casefold()))
    is_letter = len(plain) == 1 and plain.isalpha() and plain.isascii()
    if is_letter and not (in_text or match[0] != value or rest[0].isspace()):
        return None  # 3c
    unit = read_unit(rest)
    if unit is not None:
        return Quantity(value, unit, True)
    if words & _NOT_COUNTED or is_letter or not words:
        return None
    if _WORDS_ONLY.fullmatch(plain) and (
        in_text or any(len(word) > 2 or not word.isascii() for word in words)
    ):
        known = [unit for word in plain.split() if (unit := read_unit(word)) and len(word) > 1]
        return Quantity(value, known[-1] if len(known) == 1 else _of_words(words), True)
    return None


def _of_words(words: set[str]) -> UnitPowers | None:
    """What words that are no known unit stand for."""
    return None if words <= _ANY_UNIT else _WORDS_UNIT


def _behind_value(text: str) -> Quantity:
    r"""Of a text that is no plain number, such as `5\sqrt{2} \text{ cm}`."""
    if text.endswith(r"^\circ") and len(text) > 6:
        return Quantity(text[:-6].rstrip(), (("degree", 1),), True)
    end = text[-120:]  # bounds the search, and no unit is longer
    match = _TEXT_TAIL.search(end) if end.endswith("}") or end[-1:].isdigit() else None
    if match is None:
        match = _WORD_TAIL.search(end)
        if match is None or read_unit(match[0]) is None:
            return Quantity(text, None, False)
    value = text[: len(text) - len(end) + match.start()].rstrip()
    words = set(re.findall("[a-z]+", text_unwrapped(match[0]).casefold()))
    if words & _NOT_COUNTED or not any(character.isalnum() for character in value):
        return Quantity(text, None, False)
    return Quantity(value, read_unit(match[0]) or _of_words(words), True)


def units_differ(gold: UnitPowers | None, found: UnitPowers | None) -> bool:
    """Whether both are known and are not one; plain degrees may be those of any scale."""
    if gold is None or found is None or gold == found:
        return False
    scales = {"degree", "celsius", "fahrenheit"}
    names = {gold[0][0], found[0][0]}
    return not ("degree" in names and names <= scales)
