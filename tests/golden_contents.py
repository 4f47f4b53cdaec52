"""What the golden test compares: files and output as values, without times, versions and paths.

A `Reader` makes JSON values of what a command wrote, `compare` tells how two of them differ, and
`write_json` writes them compactly. Discrete values are compared exactly; floats to `RELATIVE` or
`ABSOLUTE`, since the last digits differ between processors. So are the decimals in a text, of which
the last digit printed may be one off where there are three or more, in a table two.
"""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

RELATIVE, ABSOLUTE = 1e-3, 1e-5
# Of the largest float in a list or column.
_LIST_SLACK = 1e-4
# Of items that tie but for rounding, any may come first.
_RANKS, _RANK_SLACK = ("auroc", "average_precision"), 0.02
# So many in a line make it one of a table, where the last of two digits may be one off.
_DECIMALS_OF_A_TABLE = 4
LEFT_OUT = "<left out>"
# Keys of JSON objects whose values are of the machine or the moment, or hashes of floats.
_LEFT_OUT_KEYS = {
    *("created", "versions", "version", "machine", "device", "seconds", "seconds_this_time"),
    *("weight_hash", "sha256", "step_time", "train_runtime", "total_flos"),
    *("train_samples_per_second", "train_steps_per_second", "tokens_per_second"),
    *("transformers_version", "bytes"),
}
# Hashes of what is the same everywhere: a run goes on only where they are as they were.
_KEPT_KEYS = {"fingerprint", "dataset_fingerprint", "rubric_sha256"}
_LEFT_OUT_TEXTS = [
    (re.compile(r"\d{4}-\d\d-\d\d(T[\d:.+]+Z?)?"), "<date>"),
    (re.compile(r"[\d,.]+ (?=(tokens|rollouts|items|rows|questions)/s)"), "<number> "),
    (re.compile(r"\b[\d,.]+(e[+-]?\d+)?(?=/s\b)"), "<number>"),
    (re.compile(r"\b[\d.]+ (s|min|h)\b( [\d.]+ (s|min)\b)?"), "<time>"),
    # A span of times is told only where its ends are unlike.
    (re.compile(r"<time> \(<time> to <time>\)"), "<time>"),
    # Stages are named where they took a second.
    (re.compile(r"(?<=time: )<time>( over \d+ tries)? \(\w+ <time>(, \w+ <time>)*\)"), r"<time>\1"),
    # Of Parquet and of pages, which differ between versions of pyarrow.
    (re.compile(r" *\b[\d,.]+ [kMG]?B\b"), " <size>"),
    (re.compile(r"\b[0-9a-f]{40,64}\b|\b[0-9a-f]{24}\b|(?<=\()[0-9a-f]{8}(?=\))"), "<hash>"),
    (re.compile(r"(?<=^curate )\d+\.\d+\.\d+"), "<version>"),
]
# A process id, and what nobody can know.
_RANDOM_FILES = {".lock": "a lock", "marker_secret": "a secret"}
# Progress where a command takes long, and what other packages say once a process.
_NOISE = re.compile(
    r": [\d,]+ of [\d,]+ \w+, <number>/s|^Triton is installed|\d%\||Warning: |^\s+warnings\.warn"
)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
_DECIMAL = re.compile(r"(?<![\w.])-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)")
# Of longer tables there are digests of blocks of rows.
_LONGEST_TABLE, _BLOCK = 60, 64
# And of longer texts inside JSON.
_LONGEST_TEXT = 400
_OWN_TEXT = "its own text"
_NOTHING = object()
_JSON_LAYOUTS: dict[str, dict[str, Any]] = {
    "a line": {},
    "a line, any letters": {"ensure_ascii": False},
    "a line without spaces": {"separators": (",", ":")},
    "a line without spaces, any letters": {"separators": (",", ":"), "ensure_ascii": False},
    "indented by 2": {"indent": 2},
    "indented by 2, any letters": {"indent": 2, "ensure_ascii": False},
}
_EMBEDDED = re.compile(r"(<(script|style)[^>]*>)(.*?)(</\2>)", re.DOTALL)


# --- Reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Reads what commands write; `replaced` are texts that differ between runs, as the folder."""

    replaced: dict[str, str]

    def text(self, text: str) -> str:
        for found, name in self.replaced.items():
            text = text.replace(found, name)
        for pattern, name in _LEFT_OUT_TEXTS:
            text = pattern.sub(name, text)
        return text

    def lines(self, text: str) -> list[str]:
        return [line for line in self.text(text).splitlines() if not _NOISE.search(line)]

    def output(self, text: str) -> Any:
        """A command's output: JSON as its values, anything else as lines."""
        try:
            return {"json": self.value(json.loads(text)), "written": _layout_of(text)}
        except ValueError:
            return self.lines(text)

    def value(self, value: Any, key: str = "") -> Any:
        """A JSON value without what is left out; floats have five digits."""
        if key in _LEFT_OUT_KEYS and value is not None:
            return LEFT_OUT
        if key in _KEPT_KEYS:
            return value
        if isinstance(value, dict):
            return {self.text(name): self.value(each, name) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        if isinstance(value, float):
            return _rounded(value)
        if isinstance(value, str):
            text = self.text(value)
            if len(text) > _LONGEST_TEXT:
                return f"{text[:50]}... of {len(text)} letters, {_digest(text)}"
            return text
        if isinstance(value, bytes):
            return value.hex()
        return value

    def file(self, path: Path) -> Any:
        """The contents of a file by its suffix."""
        if path.name in _RANDOM_FILES:
            return _RANDOM_FILES[path.name]
        if path.stat().st_size == 0:
            return "empty"
        if path.suffix == ".parquet":
            return self.table(pq.read_table(path))
        if path.suffix == ".npy":
            return _array(np.load(path))
        if path.suffix == ".safetensors":
            return {name: _array(array) for name, array in sorted(load_file(path).items())}
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return self.json_lines(text)
        if path.suffix == ".json":
            return {"json": self.value(json.loads(text)), "written": _layout_of(text)}
        if path.suffix == ".csv":
            return self.csv_table(text)
        if path.suffix == ".html":
            return self.page(text)
        return self.lines(text)

    def table(self, table: pa.Table) -> Any:
        found: dict[str, Any] = {
            "types": {field.name: str(field.type) for field in table.schema},
            "rows": table.num_rows,
        }
        if table.schema.metadata:
            found["metadata"] = sorted(name.decode() for name in table.schema.metadata)
        columns = {name: self.value(table[name].to_pylist(), "") for name in table.column_names}
        if table.num_rows <= _LONGEST_TABLE:
            found["values"] = columns
        else:
            found["first"] = {name: values[:2] for name, values in columns.items()}
            found["blocks"] = {name: _blocks(values) for name, values in columns.items()}
        return found

    def csv_table(self, text: str) -> Any:
        header, *rows = csv.reader(io.StringIO(text))
        cells = [[_cell(self.text(cell)) for cell in row] for row in rows]
        return {"rows": len(rows), "values": dict(zip(header, _transposed(cells), strict=True))}

    def json_lines(self, text: str) -> Any:
        """Rows of JSON objects by column; a line that is none, by itself in a column without name.

        `names` are the sets of columns that rows have, in their order, and `names_of_row` which.
        """
        lines = text.splitlines()
        rows = [self.value(_object_of(line)) for line in lines]
        names: list[list[str]] = []
        for row in rows:
            if list(row) not in names:
                names.append(list(row))
        columns = dict.fromkeys(name for each in names for name in each)
        layouts = {_layout_of(line) for line in lines if "" not in _object_of(line)}
        written = layouts.pop() if len(layouts) == 1 else _OWN_TEXT
        if written == _OWN_TEXT:
            written += ", " + _digest(_DECIMAL.sub("#", self.text(text)))
        return {
            "rows": len(rows),
            "written": written,
            "names": names,
            "names_of_row": [names.index(list(row)) for row in rows],
            "values": {name: [row.get(name, "<none>") for row in rows] for name in columns},
        }

    def page(self, text: str) -> Any:
        """A page: the JSON in it as values, its scripts and styles as digests."""
        data: dict[str, Any] = {}

        def short(match: re.Match[str]) -> str:
            start, _, inside, end = match.groups()
            if name := re.search(r'application/json" id="([^"]+)"', start):
                data[name[1]] = self.value(json.loads(inside))
                return start + end
            return f"{start}{inside.count(chr(10))} lines, {_digest(inside)}{end}"

        return {"page": self.lines(_EMBEDDED.sub(short, text)), "json": data}


def _object_of(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"": line}


def _rounded(number: float) -> Any:
    return float(f"{number:.5g}") if math.isfinite(number) else str(number)


def _cell(text: str) -> Any:
    return _rounded(float(text)) if _DECIMAL.fullmatch(text) else text


def _transposed(rows: list[list[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _array(array: Any) -> Any:
    """Shape and type; the norm of all, and of the first rows."""
    flat = array.astype(np.float64)
    norms = [np.linalg.norm(flat), *(np.linalg.norm(row) for row in np.atleast_2d(flat)[:4])]
    return {
        "shape": list(array.shape),
        "type": str(array.dtype),
        "norms": [_rounded(float(norm)) for norm in norms],
    }


def _blocks(values: list[Any]) -> list[Any]:
    """Of each block of rows a digest, or the mean and the mean square of its floats."""
    found: list[Any] = []
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        floats = [each for each in _flat(block) if isinstance(each, float)]
        if floats:
            square = sum(each**2 for each in floats) / len(floats)
            mean = sum(floats) / len(floats)
            found.append([f"{len(floats)} floats", _rounded(mean), _rounded(square)])
        else:
            found.append(_digest(json.dumps(block)))
    return found


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _layout_of(text: str) -> str:
    """How a JSON text is laid out."""
    value = json.loads(text)
    for name, options in _JSON_LAYOUTS.items():
        if text.rstrip("\n") == json.dumps(value, **options):
            return name
    return _OWN_TEXT


# --- What was said already -----------------------------------------------------------------------

_AS_BEFORE, _SAME, _SAME_PART = "as before", "the same as ", "the same as in "
# Where contents have parts with names: a table's columns, an object's values, a page's data.
_PLACES = ("values", "json")
# What is shorter is said again.
_SHORT = 100


def shortened(files: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Contents of files without what the same file held before, or another one holds."""
    others, found = dict(before), {}
    for name, contents in files.items():
        found[name] = _shortened(contents, others.pop(name, None), others)
        others[name] = contents
    return found


def restored(
    short: dict[str, Any], files: dict[str, Any], before: dict[str, Any]
) -> dict[str, Any]:
    """The inverse: what is not said is taken from the files that are there, and from before."""
    others, found = dict(before), {}
    for name in sorted({*short, *files}):
        own = others.pop(name, None)
        if name in short:
            found[name] = _restored(short[name], own, others)
        if name in files:
            others[name] = files[name]
    return found


def _shortened(contents: Any, before: Any, others: dict[str, Any]) -> Any:
    if not isinstance(contents, dict):
        return contents
    for name, other in others.items():
        if other == contents:
            return f"{_SAME}{name}"
    for place in _PLACES:
        parts = contents.get(place)
        if isinstance(parts, dict):
            short = {
                name: _short_part(each, name, place, before, others) for name, each in parts.items()
            }
            return contents | {place: short}
    return contents


def _short_part(part: Any, name: str, place: str, before: Any, others: dict[str, Any]) -> Any:
    """A column of a table, or what an object holds: as before, or the same as in another file."""
    if part == _part(before, place, name):
        return _AS_BEFORE
    if isinstance(part, dict | list) and len(json.dumps(part)) > _SHORT:
        for other, contents in others.items():
            if part == _part(contents, place, name):
                return f"{_SAME_PART}{other}"
    return part


def _restored(short: Any, before: Any, others: dict[str, Any]) -> Any:
    if isinstance(short, str) and short.startswith(_SAME):
        return others.get(short.removeprefix(_SAME), short)
    if not isinstance(short, dict):
        return short
    for place in _PLACES:
        if isinstance(short.get(place), dict):
            parts = dict(short[place])
            for name, value in parts.items():
                said = value
                if value == _AS_BEFORE:
                    said = _part(before, place, name)
                elif isinstance(value, str) and value.startswith(_SAME_PART):
                    said = _part(others.get(value.removeprefix(_SAME_PART)), place, name)
                parts[name] = value if said is _NOTHING else said
            return short | {place: parts}
    return short


def _part(contents: Any, place: str, name: str) -> Any:
    parts = contents.get(place) if isinstance(contents, dict) else None
    return parts.get(name, _NOTHING) if isinstance(parts, dict) else _NOTHING


# --- Comparing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One place that is not as expected."""

    where: str
    expected: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.where}: expected {_shown(self.expected)}, found {_shown(self.found)}"


def _shown(value: Any) -> str:
    text = "nothing" if value is _NOTHING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}..."


_COLUMNS = ("values", "first", "blocks")


def compare(
    expected: Any, found: Any, where: str = "", slack: float = ABSOLUTE
) -> Iterator[Difference]:
    """Every place where two values differ; `slack` is what floats may, whatever their size."""
    if isinstance(expected, dict) and isinstance(found, dict):
        yield from _compare_objects(expected, found, where)
    elif _is_of_texts(expected) and _is_of_texts(found):
        yield from _compare_lines(expected, found, where)
    elif isinstance(expected, list) and isinstance(found, list):
        places = [f"{where}[{number}]" for number in range(max(len(expected), len(found)))]
        yield from _compare_lists(expected, found, places)
    elif not _is_same(expected, found, slack):
        yield Difference(where, expected, found)


def _compare_objects(
    expected: dict[str, Any], found: dict[str, Any], where: str
) -> Iterator[Difference]:
    common = [name for name in expected if name in found]
    if set(expected) == set(found) and common != list(found):
        yield Difference(f"{where}, order of names", list(expected), list(found))
    for name in [*expected, *(each for each in found if each not in expected)]:
        pair = [each.get(name, _NOTHING) for each in (expected, found)]
        if name in _COLUMNS and all(isinstance(each, dict) for each in pair):
            yield from _compare_columns(*pair, where, name)
            continue
        slack = _RANK_SLACK if any(rank in name for rank in _RANKS) else ABSOLUTE
        yield from compare(*pair, f"{where}, {name}" if where else name, slack)


def _compare_columns(
    expected: dict[str, list[Any]], found: dict[str, list[Any]], where: str, what: str
) -> Iterator[Difference]:
    """Tables by column and row."""
    if list(expected) != list(found):
        yield Difference(f"{where}, columns", list(expected), list(found))
    for name in (each for each in expected if each in found):
        rows = [f"row {number}" for number in range(1, len(expected[name] + found[name]) + 1)]
        if what == "blocks":
            rows = [f"rows {n * _BLOCK + 1} to {(n + 1) * _BLOCK}" for n in range(len(rows))]
        places = [f"{where}, column {name}, {row}" for row in rows]
        yield from _compare_lists(expected[name], found[name], places)


def _compare_lists(
    expected: list[Any], found: list[Any], places: list[str]
) -> Iterator[Difference]:
    """Numbers beside each other are of one kind: small ones are as exact as large ones."""
    size = max((abs(each) for each in expected if isinstance(each, float)), default=0.0)
    for pair, where in zip(zip_longest(expected, found, fillvalue=_NOTHING), places, strict=False):
        yield from compare(*pair, where, max(ABSOLUTE, _LIST_SLACK * size))


def _is_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _compare_lines(expected: list[str], found: list[str], where: str) -> Iterator[Difference]:
    """Lines of text, and names: one that came or went does not move the others."""
    matcher = SequenceMatcher(None, expected, found, autojunk=False)
    for _, start, end, from_, to in matcher.get_opcodes():
        pairs = zip_longest(expected[start:end], found[from_:to], fillvalue=_NOTHING)
        for number, (first, second) in enumerate(pairs, start):
            if first is _NOTHING or second is _NOTHING or not _is_same_text(first, second):
                yield Difference(f"{where}[{number}]", first, second)


def _is_same(expected: Any, found: Any, slack: float) -> bool:
    if type(expected) is not type(found):
        return False
    if isinstance(expected, float):
        is_close = math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=slack)
        return is_close or _is_same_number(
            repr(expected), repr(found), 3
        )  # Rounded by the command.
    if isinstance(expected, str):
        return _is_same_text(expected, found)
    return bool(expected == found)


def _is_same_text(expected: str, found: str) -> bool:
    if expected == found:
        return True
    if _NUMBER.sub("#", expected) != _NUMBER.sub("#", found):
        return False
    pairs = zip(_NUMBER.findall(expected), _NUMBER.findall(found), strict=True)
    fewest = 2 if len(_DECIMAL.findall(expected)) >= _DECIMALS_OF_A_TABLE else 3
    return all(first == second or _is_same_number(first, second, fewest) for first, second in pairs)


def _is_same_number(expected: str, found: str, fewest: int) -> bool:
    """Decimals in a text, with as many places, up to rounding."""
    if len(expected.partition(".")[2]) != len(found.partition(".")[2]) or "." not in expected:
        return False
    first, second = (float(each.replace(",", "")) for each in (expected, found))
    is_close = math.isclose(first, second, rel_tol=RELATIVE)
    return is_close or _is_last_digit_off(expected, found, fewest)


def _is_last_digit_off(expected: str, found: str, fewest: int) -> bool:
    """The last digit is one off, and there are `fewest` digits or more."""
    mantissa, _, exponent = expected.replace(",", "").partition("e")
    digits = re.sub(r"\D", "", mantissa).lstrip("0")
    last = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    difference = abs(float(expected.replace(",", "")) - float(found.replace(",", "")))
    return len(digits) >= fewest and difference < 1.01 * last


# --- Writing -------------------------------------------------------------------------------------


def write_json(value: Any, width: int = 100) -> str:
    """JSON in lines of about `width`: what fits in a line, and lists of scalars, is not spread."""
    return _written(value, "", width) + "\n"


def _written(value: Any, indent: str, width: int) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= width or not isinstance(value, dict | list):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(name, ensure_ascii=False)}: {_written(each, inner, width)}"
            for name, each in value.items()
        ]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    if any(isinstance(each, dict | list) or len(str(each)) > 40 for each in value):
        parts = [_written(each, inner, width) for each in value]
        return "[\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}]"
    return "[\n" + _filled([json.dumps(each) for each in value], inner, width) + f"\n{indent}]"


def _filled(parts: Sequence[str], indent: str, width: int) -> str:
    lines = [indent]
    for number, part in enumerate(parts):
        text = part + ("," if number < len(parts) - 1 else "")
        if len(lines[-1]) + len(text) > width and lines[-1] != indent:
            lines[-1] = lines[-1].rstrip()
            lines.append(indent)
        lines[-1] += text + " "
    return "\n".join(line.rstrip() for line in lines)
