"""What training needs beside the base packages."""

from importlib.util import find_spec

from curate.errors import UsageError


def check_training() -> None:
    """Name what training needs and is not installed.

    Raises:
        UsageError: something is not.
    """
    missing = [name for name in ("trl", "peft", "accelerate") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"training needs {', '.join(missing)}: pip install 'rl-curate[train]' installs it"
        )
