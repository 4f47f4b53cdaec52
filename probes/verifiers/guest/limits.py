"""Bounding a process, and denying it the calls of the kernel that its programs have no need of."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct

MACHINES = ("x86_64", "aarch64")
"""Those whose numbers of calls are known here."""
ADDRESS_SPACE = 1 << 30
FILE_BYTES = 16 << 20
STACK = 64 << 20
OPEN_FILES = 64
THREADS = 1024
"""Before Linux 5.14 those of all the user's processes count."""

# Processes and other programs, sockets, memory that no limit counts, other processes' memory and
# files, namespaces and mounts, keys, and what looks into the kernel.
_DENIED = {
    "x86_64": (
        *(57, 58, 59, 322, 41, 29, 64, 68, 240, 319, 447, 101, 310, 311, 312, 434, 438),
        *(272, 308, 165, 166, 155, 428, 429, 430, 442, 304, 248, 249, 250, 321, 323, 298, 425),
    ),
    "aarch64": (
        *(221, 281, 198, 194, 190, 186, 180, 279, 447, 117, 270, 271, 272, 434, 438),
        *(97, 268, 40, 39, 41, 428, 429, 430, 442, 265, 217, 218, 219, 280, 282, 241, 425),
    ),
}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3, _CLONE_THREAD, _X32 = 435, 0x10000, 0x40000000
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NO_NEW_PRIVILEGES, _SET_FILTER, _FILTER_MODE = 38, 22, 2


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def _filter_code(machine: str) -> bytes:
    """The rules in the kernel's filter language: (code, jump if true, jump if false, operand)."""
    load, equal, above, masked, give = 0x20, 0x15, 0x35, 0x54, 0x06
    denied, missing = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    rules = [(load, 0, 0, 4), (equal, 1, 0, _ARCHITECTURE[machine]), (give, 0, 0, _KILL)]
    rules += [(load, 0, 0, 0), (above, 0, 1, _X32), (give, 0, 0, denied)]
    for number in _DENIED[machine]:
        rules += [(equal, 0, 1, number), (give, 0, 0, denied)]
    # The C library then falls back to `clone`, whose flags can be read.
    rules += [(equal, 0, 1, _CLONE3), (give, 0, 0, missing)]
    rules += [(equal, 0, 4, _CLONE[machine]), (load, 0, 0, 16), (masked, 0, 0, _CLONE_THREAD)]
    rules += [(equal, 0, 1, 0), (give, 0, 0, denied), (give, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)


def confine(cpu_seconds: int) -> None:
    """Bound this process, which must have one thread, for good.

    Raises OSError where the kernel takes no filter of calls.
    """
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_DATA, ADDRESS_SPACE),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_STACK, STACK),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, THREADS),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    rules = _filter_code(os.uname().machine)
    code = ctypes.create_string_buffer(rules, len(rules))
    program = _Filter(len(rules) // 8, ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or prctl(
        _SET_FILTER, _FILTER_MODE, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of calls")
