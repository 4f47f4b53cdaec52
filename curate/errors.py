"""The errors that a user sees: each is one clear line and an exit status."""


class CurateError(Exception):
    """Anything that ends a command with one line on stderr instead of a traceback."""

    exit_status = 1


class UsageError(CurateError):
    """Bad usage or bad input: nothing was run that could be resumed (exit 2)."""

    exit_status = 2


class RunError(CurateError):
    """A run failed on its way; what it produced is kept and the same command continues (exit 1)."""

    exit_status = 1


def one_line(text: str) -> str:
    """Text on one line, with control characters, which may be a dataset's, made visible."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.replace("\n", " "))


def error_line(error: BaseException) -> str:
    """What another library's error says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split())[:500] or type(error).__name__
