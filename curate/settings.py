"""Settings: frozen dataclasses in which every field says what it means and what may stand in it.

A field is declared once, by `argument` or `option`. From that come an option of the command line, a
key of a TOML file and a keyword argument of a function, and the sentence that refuses a value.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

import tomli_w

from curate.errors import UsageError

T = TypeVar("T")
_INTEGERS_END = 2**63
_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


# --- Declaring -----------------------------------------------------------------------------------


def option(
    help: str = "",
    *,
    default: Any = MISSING,
    group: str = "",
    metavar: str = "",
    flags: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    **more: Any,
) -> Any:
    """Declare a field.

    Args:
        help: what it means, in a line or two.
        default: without one it must be given.
        group: under which heading the help of a command line shows it.
        metavar: what stands for its value there.
        flags: what it is called there; `--its-name` if empty.
        choices: the values that it may have.
        least: the lowest value that it, or each in it, may have.
        above, below: limits, themselves not allowed.
        more: `spread=True`: several values follow one flag (`--k 1 8`); `commas=True`: they stand
            in one word (`1,42`); else a flag is given several times. `or_number=True`: a number is
            taken for text. `unset`: what errors call the value that is none. What else there is
            is for who declared it.
    """
    bounds = {"choices": choices, "least": least, "above": above, "below": below}
    metadata = {"help": help, "group": group, "metavar": metavar, "flags": flags, **bounds, **more}
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def argument(help: str, *, metavar: str, default: Any = MISSING, **more: Any) -> Any:
    """Declare a field that a command line takes by its place and not by a flag."""
    return option(help, default=default, metavar=metavar, by_place=True, **more)


def option_of(cls: Any, name: str, *, default: Any, **changes: Any) -> Any:
    """Declare a field as another class of settings has it, so that the two cannot drift apart.

    Args:
        cls: that class.
        name: of its field.
        default: `...` for the one that it has there.
        changes: what is different here, of what `option` takes.
    """
    there: dataclasses.Field[Any] = cls.__dataclass_fields__[name]
    default = there.default if default is ... else default
    return option(**{**there.metadata, **changes}, default=default)


@dataclass_transform(frozen_default=True, field_specifiers=(option, argument, option_of))
def settings(cls: type[T]) -> type[T]:
    """Make a class of settings; what is to be given by keyword alone comes after `_: KW_ONLY`."""
    return dataclass(frozen=True)(cls)


# --- What was declared ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A field as it was declared."""

    name: str
    kind: Any
    """str, int, float, bool or Mapping: of the value, or of each where there may be several."""
    declared: Mapping[str, Any]
    """What `option` was told."""
    is_many: bool = False
    default: Any = None
    """None where it must be given, too."""
    is_required: bool = False

    @property
    def by_place(self) -> bool:
        """Whether a command line takes it by its place, without a flag."""
        return bool(self.declared.get("by_place"))

    @property
    def repeats(self) -> bool:
        """Whether its flag is given once for each value."""
        return self.is_many and not self.declared.keys() & {"by_place", "spread", "commas"}

    @property
    def flags(self) -> tuple[str, ...]:
        """What a command line calls it, the full name last; its metavar where it goes by place."""
        if self.by_place:
            return (self.declared["metavar"],)
        return self.declared["flags"] or ("--" + self.name.replace("_", "-"),)

    @property
    def help(self) -> str:
        """What it means, with the default where that says something."""
        text, default = str(self.declared["help"]), self.default
        if self.is_many and default:
            default = ("," if self.declared.get("commas") else " ").join(map(str, default))
        if default in (None, "", ()) or self.kind in (bool, Mapping) or "(default:" in text:
            return text
        return text if f"({default}:" in text else f"{text} (default: {default})"

    def convert(self, value: Any, where: str) -> Any:
        """A plain value as the field holds it.

        Raises:
            UsageError: it is of another type.
        """
        if value is None and self.default is None:
            return None
        if self.is_many:
            is_one = isinstance(value, str | Mapping) or not isinstance(value, Iterable)
            values = [value] if is_one else list(value)
            if self.kind is str and not all(isinstance(each, str | Path) for each in values):
                raise UsageError(f"{where} is {value!r}; it must be a list of text")
            return tuple(self._convert(each, where) for each in values)
        return self._convert(value, where)

    def _convert(self, value: Any, where: str) -> Any:
        if self.kind is Mapping:
            if not isinstance(value, Mapping):
                raise UsageError(
                    f"{where} is {value!r}; it must be a table: [name], then key = value"
                )
            return dict(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        may_be_number = is_number and self.declared.get("or_number")
        if self.kind is str and (isinstance(value, Path) or may_be_number):
            return str(value)
        # Those of numpy are numbers, too.
        wanted = {int: Integral, float: Real}.get(self.kind, self.kind)
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind is not bool):
            raise UsageError(f"{where} is {value!r}; it must be {_TYPE_NAMES[self.kind]}")
        return self.kind(value)

    def read(self, words: Sequence[str]) -> Any:
        """The value that words of a command line stand for.

        Raises:
            UsageError: it is no such value.
        """
        commas = self.declared.get("commas")
        try:
            values = [
                self.kind(one) for word in words for one in (word.split(",") if commas else [word])
            ]
        except ValueError:
            wanted = "whole numbers, such as 1,42,37" if commas else _TYPE_NAMES[self.kind]
            raise UsageError(f"{self.flags[-1]} is {words[-1]!r}; it must be {wanted}") from None
        return values if self.is_many else values[0]

    def check(self, value: Any, where: str) -> None:
        """Refuse a value that is out of bounds.

        Raises:
            UsageError: it is.
        """
        choices, least = self.declared["choices"], self.declared["least"]
        above, below = self.declared["above"], self.declared["below"]
        values = value if self.is_many else [value]
        each = " each" if self.is_many else ""
        if value is None:
            return
        if self.kind is int and not all(abs(one) < _INTEGERS_END for one in values):
            self._refuse(value, where, f"a whole number of at most 64 bits{each}")
        if choices and not set(values) <= set(choices):
            self._refuse(value, where, " or ".join(choices))
        a_number = "a number, " if self.kind is float else ""
        if least is not None and not all(least <= one < math.inf for one in values):
            self._refuse(value, where, f"{a_number}at least {least:g}{each}")
        if below is not None and not all((above or 0) < one < below for one in values):
            self._refuse(value, where, f"between {above:g} and {below:g}{each}")
        if above is not None and not all(above < one < math.inf for one in values):
            self._refuse(value, where, f"a number above {above:g}{each}")

    def _refuse(self, value: Any, where: str, wanted: str) -> None:
        shown = list(value) if self.is_many else value
        raise UsageError(f"{where} is {shown!r}; it must be {wanted}")


def declared_in(cls: type[Settings]) -> dict[str, Setting]:
    """The fields of a class of settings, by name and in order."""
    return _declared_in(typing.cast(Any, cls))


@functools.cache
def _declared_in(cls: Any) -> dict[str, Setting]:
    hints = typing.get_type_hints(cls)
    found = {}
    for each in dataclasses.fields(cls):
        if "help" in each.metadata:
            kind, is_many = _kind(hints[each.name])
            is_required = each.default is MISSING and each.default_factory is MISSING
            default = None if each.default is MISSING else each.default
            found[each.name] = Setting(
                each.name, kind, each.metadata, is_many, default, is_required
            )
    return found


def _kind(hint: Any) -> tuple[Any, bool]:
    """What kind of value a type stands for, and whether there may be several.

    Several may be given as one alone (`str | Sequence[str]`), and a path as text.
    """
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if is_union else (hint,)
    for member in members:
        origin = typing.get_origin(member)
        if origin is Mapping:
            return Mapping, False
        if origin in (tuple, Sequence):
            return _kind(typing.get_args(member)[0])[0], True
    return (str if Path in members else members[0]), False


# --- Being settings ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """The base of classes of settings: what is made is of the right types and within bounds."""

    called: ClassVar[str] = "setting"
    """What errors call a field."""

    def __post_init__(self) -> None:
        """Put every value in its form, and check what can be wrong with it by itself.

        Raises:
            UsageError: something is.
        """
        for name, setting in declared_in(type(self)).items():
            value = setting.convert(getattr(self, name), self._where(name))
            object.__setattr__(self, name, value)
            setting.check(value, self._where(name))

    def _where(self, name: str) -> str:
        """What errors call this field."""
        return declared_in(type(self))[name].flags[-1]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str, **others: Any) -> Self:
        """Make it from plain values, as TOML and keyword arguments give them.

        Args:
            values: by the names of fields.
            where: what errors say first: where the values stand.
            others: fields that are no settings.

        Raises:
            UsageError: an unknown key (names the nearest known one) or a value of the wrong type.
        """
        known = declared_in(cls)
        for key in values:
            if key not in known:
                hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
                raise UsageError(f"{where}: unknown {cls.called} {key!r}{hint}")
        checked = {
            key: known[key].convert(value, f"{where}: {key}") for key, value in values.items()
        }
        return cls(**others, **checked)

    def to_toml(self) -> str:
        """Write every setting as TOML; `from_mapping` on it gives the same again."""
        values = {name: getattr(self, name) for name in declared_in(type(self))}
        return tomli_w.dumps(
            {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in values.items()
                if value is not None  # TOML has no null: what is left out has its default.
            }
        )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def did_you_mean(name: str, known: Iterable[str], quote: bool = True) -> str:
    """`; did you mean 'x'?` where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {repr(near[0]) if quote else near[0]}?" if near else ""


def several(value: str | Sequence[str]) -> tuple[str, ...]:
    """What may be given as one text or several."""
    return (value,) if isinstance(value, str) else tuple(value)
