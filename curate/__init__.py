"""Tag RL training sets by trainability: the library behind the `curate` command."""

from typing import Any

from curate.commands import COMMANDS, command_function
from curate.version import __version__

__all__ = ["__version__", *COMMANDS]


def __getattr__(name: str) -> Any:
    """Import a command when it is first asked for, so that `import curate` stays light.

    What they are is in `__init__.pyi`, for type checkers and editors.
    """
    if name in COMMANDS:
        return command_function(name)
    raise AttributeError(f"module 'curate' has no attribute {name!r}")
