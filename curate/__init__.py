"""Tag RL training sets by trainability: the library behind the `curate` command."""

from __future__ import annotations

from typing import Any

from curate.version import __version__

__all__ = [
    "__version__",
    "augment",
    "calibrate",
    "card",
    "compare",
    "confirm",
    "doctor",
    "filter",
    "forecast",
    "judge",
    "merge",
    "order",
    "push",
    "report",
    "tag",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Import a command when it is first asked for, so that `import curate` stays light.

    What they are is in `__init__.pyi`, for type checkers and editors.
    """
    if name in __all__:
        from curate.commands import command_function

        return command_function(name)
    raise AttributeError(f"module 'curate' has no attribute {name!r}")
