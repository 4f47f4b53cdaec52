"""What a command is: settings, the work that they ask for, and the words in which it is told.

The first paragraphs of a command's docstring are its help, those from "example:" on stand below the
options. The library function of the same name takes the same settings and does the same work.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, ParamSpec, Protocol, TypeVar, cast

from curate.errors import UsageError
from curate.settings import Settings, declared_in, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
_RAISES = """

Raises:
    UsageError: bad input; nothing was spent.
    RunError: it failed on its way, or a file is damaged; the same call continues."""


@dataclass(frozen=True)
class Command(Settings):
    """The base of commands."""

    config_help: ClassVar[str] = ""
    """Of the option --config, which a command has whose settings may stand in a TOML file."""
    words: ClassVar[str] = ""
    """MODULE:FUNCTION that makes of what came out the text for a reader."""
    resumes: ClassVar[bool] = True
    """Whether the same command goes on from what was done until an interruption; else all that it
    writes is written at the end."""
    more_help: ClassVar[tuple[str, ...]] = ()
    """Paragraphs of help beside those of the docstring."""

    def work(self) -> Any:
        """Do what the settings say; what comes out of it."""
        raise NotImplementedError

    def since(self, started: float) -> Any:
        """The same, for a process that began then, as `time.monotonic` counts."""
        return self.work()

    def shown(self, started: float) -> Any:
        """The same for a reader, who may be told what is found early; `text` tells the rest."""
        return self.since(started)

    def keeps(self) -> bool:
        """Whether what it did until an interruption is kept."""
        return self.resumes and not getattr(self, "dry_run", False)

    def facts(self, found: Any) -> Any:
        """What --json prints of what came out; nothing if None."""
        return found

    def text(self, found: Any) -> str:
        """What is printed for a reader; nothing if empty."""
        module, _, name = self.words.partition(":")
        return str(getattr(importlib.import_module(module), name)(found)) if name else ""

    def status(self, found: Any) -> int:
        """The exit status."""
        return 0


class _Works(Protocol[R_co]):
    def work(self) -> R_co: ...


def library_function(command: Callable[P, _Works[R]], name: str = "") -> Callable[P, R]:
    """The function of a command, with its settings as parameters; its name is the command's, or
    the one that is given.
    """

    def call(*args: P.args, **settings: P.kwargs) -> R:
        known = declared_in(cast(type[Settings], command))
        for key in settings:
            if key not in known:
                hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
                raise UsageError(f"{name}(): unknown setting {key!r}{hint}")
        return command(*args, **settings).work()

    assert isinstance(command, type) and issubclass(command, Command)
    name = name or command.__name__.lower()
    functools.update_wrapper(call, command, assigned=("__module__",), updated=())
    call.__name__ = call.__qualname__ = name
    call.__doc__ = document(command)
    outcome = inspect.signature(command.work).return_annotation
    call.__signature__ = inspect.signature(command).replace(  # type: ignore[attr-defined]
        return_annotation=outcome
    )
    return call


def description(command: type[Command]) -> tuple[str, str]:
    """The help of a command above and below its options, each paragraph in one line."""
    texts = [each.replace("\n", " ") for each in (inspect.getdoc(command) or "").split("\n\n")]
    end = next((n for n, text in enumerate(texts) if text.startswith("example:")), len(texts))
    return "\n\n".join([*texts[:end], *command.more_help]), "\n\n".join(texts[end:])


def document(command: type[Command]) -> str:
    """What `help` says of the function: the command, its settings, what is returned and raised."""
    about = [textwrap.fill(each, 98) for each in description(command)[0].split("\n\n")]
    settings = [
        textwrap.fill(f"    {name}: {each.help}", 98, subsequent_indent=" " * 8)
        for name, each in declared_in(command).items()
    ]
    _, _, outcome = (inspect.getdoc(command.work) or "").partition("\n\n")
    outcome += "" if "Raises:" in outcome else _RAISES
    return "\n".join(["\n\n".join(about), "", "Args:", *settings, "", outcome, ""])
