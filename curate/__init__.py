"""Tag RL training sets by trainability: the library behind the `curate` command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from curate.commands import (
        augment,
        calibrate,
        card,
        compare,
        confirm,
        doctor,
        filter,
        forecast,
        judge,
        merge,
        order,
        push,
        report,
        tag,
        validate,
    )


def __getattr__(name: str) -> Any:
    """Import a command when it is first asked for, so that `import curate` stays light."""
    if name in __all__:
        from curate import commands

        return getattr(commands, name)
    raise AttributeError(f"module 'curate' has no attribute {name!r}")
