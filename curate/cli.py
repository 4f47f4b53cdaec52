"""The command line: Typer in front of the commands, which are found by name when they are used."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from curate.command import Command, description
from curate.commands import COMMANDS, command_class
from curate.config import read_config_file
from curate.errors import CurateError, RunError, UsageError, one_line
from curate.profiling import process_start
from curate.settings import Setting, declared_in, did_you_mean, option
from curate.version import __version__

_ABOUT = (
    "Tag RL training sets by trainability: which items a model already solves, which it will "
    "learn, which it will not, and which give no signal."
)
_STATUS = (
    "Exit status: 0 done, 1 failed while running, 2 bad usage or input, 130 interrupted. After 1 "
    "and 130 the same command continues."
)
_INTERRUPTED = 130
_COMPLETION = ("--install-completion", "--show-completion")
_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
# Plain help is as wide as the terminal, not at most 80 characters.
_CONTEXT = {"max_content_width": 10**6, "help_option_names": ["-h", "--help"]}
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status.

    0 done, 1 failed while running (the same command continues), 2 bad usage or input,
    130 interrupted (the same command continues).
    """
    # A scheduler's SIGTERM is an interruption like Ctrl-C: the run can be continued.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        try:
            # Called with arguments it is a part of some process; else it is the whole of it.
            started = process_start() if argv is None else time.monotonic()
            return _run(list(sys.argv[1:] if argv is None else argv), started)
        finally:
            sys.stdout.flush()  # A reader that has gone shows here, not while Python shuts down.
    except KeyboardInterrupt:
        print("curate: interrupted; the same command continues", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CurateError as error:
        print(f"curate: {one_line(str(error))}", file=sys.stderr)
        return error.exit_status
    except (OSError, MemoryError) as error:
        # A full disk, a folder taken away: the machine's failure, not the program's.
        reason = str(error) or "out of memory"
        print(f"curate: {one_line(reason)}; the same command continues", file=sys.stderr)
        return RunError.exit_status


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _run(words: list[str], started: float) -> int:
    group = _group()
    if "_CURATE_COMPLETE" in os.environ:  # The shell asks what could come next.
        group.main(words, prog_name="curate")
    try:
        with group.make_context("curate", words, obj=started) as context:
            return int(group.invoke(context) or 0)
    except typer.Exit as done:
        return int(done.exit_code)
    except typer.TyperException as error:
        # What Typer finds where we did not look: its sentence, without its frame.
        raise UsageError(str(error)) from error


def parse(words: Sequence[str]) -> Command:
    """The command that a command line asks for, not yet done.

    Raises:
        UsageError: it asks for none.
    """
    name, *others = words
    with _load(name).make_context(name, others) as context:
        return _made(name, context.params)


def _made(name: str, words: Mapping[str, Any]) -> Command:
    """A command from the words that were given for its settings."""
    cls = command_class(name)
    known = {setting.name: setting for setting in _settings(cls)}
    given = {key: each for key, each in words.items() if each not in (None, False, [], ())}
    values = {
        key: [known[key].read(word) for word in each]
        if isinstance(each, list | tuple)
        else each is True or known[key].read(each)
        for key, each in given.items()
        if key in declared_in(cls)
    }
    if "config" in given:
        values = read_config_file(given["config"]) | values
    made: Command = cls.from_mapping(values, given.get("config", "options"))
    return made


# --- In Typer's words ----------------------------------------------------------------------------


class _Group(TyperGroup):
    """All commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what is neither an option of ours nor a command."""
        if not ctx.resilient_parsing:
            if not args:
                raise UsageError(
                    "the following arguments are required: COMMAND (see curate --help)"
                )
            word = args[0]
            flags = [flag for each in self.get_params(ctx) for flag in each.opts]
            if word in _COMPLETION and len(args) > 1:
                _complete(word, args[1])
            if word not in (*flags, *COMMANDS):
                what, known = ("argument", flags) if word.startswith("-") else ("command", COMMANDS)
                hint = did_you_mean(word, known, quote=False)
                raise UsageError(f"unknown {what} {word!r}{hint} (see curate --help)")
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Frames and colours on a terminal, else plain text."""
        self.rich_markup_mode = _markup()
        super().format_help(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Plain options and commands."""
        commands = [(_title(each.group), name, each.help) for name, each in COMMANDS.items()]
        _write_plain(self, ctx, formatter, commands)


class _Command(TyperCommand):
    """One command, loaded."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what is unknown or has no value, and write lists as Typer reads them."""
        if not ctx.resilient_parsing:
            args = _normal(args, str(self.name))
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What is not required stands in brackets."""
        placed = [each for each in self.params if each.param_type_name == "argument"]
        return ["[OPTIONS]", *(f"{e.metavar}" if e.required else f"[{e.metavar}]" for e in placed)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Frames and colours on a terminal, else plain text."""
        self.rich_markup_mode = _markup()
        super().format_help(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Plain options."""
        _write_plain(self, ctx, formatter)


class _Unloaded(TyperCommand):
    """One command of which only the name and the short help are known."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **more: Any
    ) -> Any:
        """Load it, now that it is used."""
        return _load(str(info_name)).make_context(info_name, args, parent, **more)


def _markup() -> Literal["rich"] | None:
    return "rich" if sys.stdout.isatty() else None


def _title(group: str) -> str:
    return group[:1].upper() + group[1:] or "Options"


def _write_plain(
    command: Any,
    ctx: Any,
    formatter: Any,
    commands: Iterable[tuple[str, str, str]] = (),
) -> None:
    """Write options and commands under the headings that a terminal shows as frames."""
    titles: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for each in command.get_params(ctx):
        names, text = each.get_help_record(ctx)
        if each.param_type_name == "argument":
            titles["Arguments"].append((each.metavar, text))
        else:
            titles.setdefault(each.rich_help_panel or _title(""), []).append((names, text))
    for title, name, text in commands:
        titles.setdefault(title, []).append((name, text))
    for title, rows in titles.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _group() -> Any:
    app = typer.Typer(cls=_Group, context_settings=_CONTEXT)

    def show_version(value: bool) -> None:
        if value:
            print(f"curate {__version__}")
            raise typer.Exit

    @app.callback(help=_ABOUT, epilog=_STATUS, subcommand_metavar="COMMAND ...")
    def root(
        version: bool = typer.Option(
            False, "--version", help="show the version", callback=show_version, is_eager=True
        ),
    ) -> None: ...

    group: Any = typer.main.get_command(app)
    for name, entry in COMMANDS.items():
        group.add_command(
            _Unloaded(name, short_help=entry.help, rich_help_panel=_title(entry.group))
        )
    return group


def _load(name: str) -> Any:
    """The Typer command of a command's class."""
    cls = command_class(name)

    def call(ctx: typer.Context, **words: Any) -> int:
        command = _made(name, words)
        found = command.since(ctx.obj)
        if words["json"]:
            facts = command.facts(found)
            said = "" if facts is None else json.dumps(facts, indent=2)
        else:
            said = command.text(found)
        if said:
            print(said)
        return command.status(found)

    parameters = [inspect.Parameter("ctx", _KEYWORD, annotation=typer.Context)]
    for each in _settings(cls):
        kind: Any = bool if each.kind is bool else str
        if each.is_many and not each.declared.get("commas"):
            kind = list[str]
        default = inspect.Parameter.empty if each.is_required else False if kind is bool else None
        wanted = kind if each.is_required else kind | None
        annotated: Any = Annotated[wanted, _parameter(each)]
        parameters.append(
            inspect.Parameter(each.name, _KEYWORD, default=default, annotation=annotated)
        )
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    about, example = description(cls)
    app = typer.Typer(add_completion=False, context_settings=_CONTEXT)
    app.command(name, cls=_Command, help=about, epilog=example)(call)
    return typer.main.get_command(app)


def _settings(cls: type[Command]) -> list[Setting]:
    """The settings that a command line has: no tables, but how to print, and a file of others."""
    found = [each for each in declared_in(cls).values() if each.kind is not Mapping]
    others = {"config": (str, cls.config_help, "FILE.toml"), "json": (bool, cls.json_help, "")}
    for name, (kind, text, metavar) in others.items():
        if text:
            declared = option(text, default=None, metavar=metavar).metadata
            found.append(Setting(name, kind, False, None, False, declared))
    return found


def _parameter(setting: Setting) -> Any:
    """What Typer is told of one setting."""
    declared = setting.declared
    more: dict[str, Any] = {"help": setting.help, "show_default": False}
    metavar = "|".join(declared["choices"]) or declared["metavar"]
    if declared.get("spread") or (declared.get("by_place") and setting.is_many):
        metavar += "..."
    if words := declared["choices"] or declared.get("suggested"):

        def could_be(incomplete: str) -> list[str]:
            known = words() if callable(words) else words
            return [word for word in known if word.startswith(incomplete)]

        more["autocompletion"] = could_be
    if setting.kind is not bool:
        more["metavar"] = metavar
    if declared.get("by_place"):
        return typer.Argument(**more)
    return typer.Option(*setting.flags, rich_help_panel=_title(declared["group"]), **more)


# --- Words of the command line -------------------------------------------------------------------


def _normal(words: Sequence[str], name: str) -> list[str]:
    """The same command line as FLAG=VALUE ... -- ARGUMENT ..., where lists are repeated flags.

    Raises:
        UsageError: a flag is unknown, or has no value or one too much; or too many arguments.
    """
    see, declared = f"(see curate {name} --help)", _settings(command_class(name))
    by_flag = {
        flag: each for each in declared if not each.declared.get("by_place")
        for flag in each.flags
    }  # fmt: skip
    options: dict[str, list[str]] = {}
    arguments: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            arguments += rest
            break
        if not _is_flag(word):
            arguments.append(word)
            continue
        flag, equals, value = word.partition("=")
        if flag[:2] in by_flag and not flag.startswith("--") and flag[2:]:  # -oFILE
            flag, equals, value = word[:2], "=", word[2:]
        if flag in ("-h", "--help"):
            return ["--help"]
        setting = by_flag.get(flag)
        if setting is None:
            raise UsageError(
                f"unknown argument {word!r}{did_you_mean(flag, by_flag, quote=False)} {see}"
            )
        full = setting.flags[-1]
        if setting.kind is bool:
            if equals:
                raise UsageError(f"{flag} takes no value {see}")
            options[full] = [full]
            continue
        values = [value] if equals else rest[:1]
        if not equals and (not rest or _is_flag(rest.pop(0))):
            raise UsageError(f"{flag} needs a value {see}")
        if setting.declared.get("spread"):
            while not equals and rest and not _is_flag(rest[0]):
                values.append(rest.pop(0))
        given = [f"{full}={value}" for value in values]
        adds = setting.is_many and not (setting.declared.keys() & {"spread", "commas"})
        options[full] = options.get(full, []) + given if adds else given
    placed = [each for each in declared if each.declared.get("by_place")]
    if len(arguments) > len(placed) and not any(each.is_many for each in placed):
        raise UsageError(f"unknown argument {arguments[len(placed)]!r} {see}")
    given = [*options, *(each.flags[-1] for each, _ in zip(placed, arguments, strict=False))]
    missing = [each.flags[-1] for each in declared if each.is_required]
    if missing := [flag for flag in missing if flag not in given]:
        raise UsageError(f"the following arguments are required: {', '.join(missing)} {see}")
    return [*(word for each in options.values() for word in each), "--", *arguments]


def _is_flag(word: str) -> bool:
    """Whether a word is a flag: no number, no sentence that begins with a dash, no dash alone."""
    return word[:1] == "-" and word != "-" and " " not in word and not _NUMBER.fullmatch(word)


def _complete(flag: str, shell: str) -> NoReturn:
    """Show or install the completion of a shell that is named, not detected."""
    if shell not in _SHELLS:
        raise UsageError(f"{flag} is {shell!r}; it must be {' or '.join(_SHELLS)}")
    of_typer: Any = importlib.import_module("typer.completion")
    if flag == "--show-completion":
        name, variable = "curate", "_CURATE_COMPLETE"
        print(of_typer.get_completion_script(prog_name=name, complete_var=variable, shell=shell))
    else:
        _, file = of_typer.install(shell=shell, prog_name="curate")
        print(f"{shell} completion installed in {file}; it works in the next shell")
    raise typer.Exit


if __name__ == "__main__":
    sys.exit(main())
