"""Tag RL training sets by trainability: the library behind the `curate` command."""

from typing import Any

from curate.commands import FUNCTIONS, command_function
from curate.version import __version__

__all__ = ["Run", "__version__", *FUNCTIONS]


def __getattr__(name: str) -> Any:
    """Import a command, or `Run`, when it is first asked for, so that `import curate` stays light.

    What they are is in `__init__.pyi`, for type checkers and editors.
    """
    if name in FUNCTIONS:
        return command_function(name)
    if name == "Run":
        from curate.run.run import Run

        return Run
    raise AttributeError(f"module 'curate' has no attribute {name!r}")
