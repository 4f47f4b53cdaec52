"""Frames of bytes on pipes, and values of Python written as JSON."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

SOLUTION = "solution"
"""The module that a program is, where its functions are called."""
_AT_ONCE = 1 << 20
_SEQUENCES: dict[str, Callable[[Any], Any]] = {"t": tuple, "l": list, "s": set, "f": frozenset}


def read_exactly(fd: int, size: int) -> bytes:
    """Read so many bytes; EOFError where there are fewer."""
    parts = []
    while size:
        part = os.read(fd, min(size, _AT_ONCE))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_frame(fd: int) -> bytes:
    """Read a frame: its length in 4 bytes, big end first, and as many bytes."""
    return read_exactly(fd, struct.unpack(">I", read_exactly(fd, 4))[0])


def write_frame(fd: int, data: bytes) -> None:
    """Write a frame."""
    write_all(fd, struct.pack(">I", len(data)) + data)


def write_all(fd: int, data: bytes) -> None:
    """Write bytes, in as many calls as it takes."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def encode(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """A value of plain types in those of JSON.

    Args:
        value: None, a truth value, a number, a text, bytes, or a collection of such.
        other: what to write for a value of another type, or of a program's own kind of collection;
            None: the former is a TypeError, the latter is what it was made from.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if other is not None and type(value).__module__ == SOLUTION:
        return {"o": other(value)}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"b": bytes(value).hex()}
    if isinstance(value, dict):
        return {"d": [[encode(k, other), encode(v, other)] for k, v in value.items()]}
    for tag, kind in _SEQUENCES.items():
        if isinstance(value, kind):  # type: ignore[arg-type]
            return {tag: [encode(each, other) for each in value]}
    if isinstance(value, deque | range):
        return {"l": [encode(each, other) for each in value]}
    if other is None:
        raise TypeError(f"it is of type {type(value).__name__}")
    return {"o": other(value)}


def decode(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """The value that `encode` wrote; ValueError or TypeError where it is none."""
    if not isinstance(value, dict):
        return value
    ((tag, held),) = value.items()
    if tag == "c":
        return complex(*held)
    if tag == "b":
        return bytes.fromhex(held)
    if tag == "d":
        return {decode(k, other): decode(v, other) for k, v in held}
    if tag in _SEQUENCES and isinstance(held, list):
        return _SEQUENCES[tag](decode(each, other) for each in held)
    if tag == "o" and other is not None:
        return other(held)
    raise ValueError("no value of plain types")
