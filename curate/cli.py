"""The command line: Typer in front of the commands, which are found by name when they are used."""

import inspect
import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
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
_JSON = "print what came out as JSON on standard output"
_INTERRUPTED = 130
_CONTINUES = "the same command continues"
_COMPLETION = ("--install-completion", "--show-completion")
# Plain help is as wide as the terminal, not at most 80 characters.
_CONTEXT = {"max_content_width": 10**6, "help_option_names": ["-h", "--help"]}
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status.

    0 done, 1 failed while running (the same command continues), 2 bad usage or input,
    130 interrupted (the same command continues, where it keeps anything).
    """
    # A shell that closed them (`>&-`) leaves none, and everything here writes to them.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    # A scheduler's SIGTERM is an interruption like Ctrl-C: the run can be continued.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        try:
            # Called with arguments it is a part of some process; else it is the whole of it.
            started = process_start() if argv is None else time.monotonic()
            return _run(list(sys.argv[1:] if argv is None else argv), started)
        finally:
            sys.stdout.flush()  # A reader that has gone shows here, not while Python shuts down.
    except KeyboardInterrupt as error:
        # What it says is what was kept.
        print(f"curate: interrupted; {str(error) or _CONTINUES}", file=sys.stderr)
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
        print(f"curate: {one_line(reason)}; {_CONTINUES}", file=sys.stderr)
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


# --- In Typer's words ----------------------------------------------------------------------------


def _plain_options(command: Any, ctx: Any, formatter: Any) -> None:
    """Write options and commands under the headings that a terminal shows as frames."""
    titles: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for each in command.get_params(ctx):
        names, text = each.get_help_record(ctx)
        if each.param_type_name == "argument":
            titles["Arguments"].append((each.metavar, text))
        else:
            titles.setdefault(each.rich_help_panel or "Options", []).append((names, text))
    for name, entry in COMMANDS.items() if isinstance(command, _Group) else ():
        titles.setdefault(_title(entry.group), []).append((name, entry.help))
    for title, rows in titles.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl([(names, _whole(text)) for names, text in rows])


# Plain help would break lines at the hyphens of an option or a name, which nobody finds then.
_HYPHEN, _NO_BREAK = "-", "\N{NON-BREAKING HYPHEN}"


def _whole(text: str) -> str:
    """A text for plain help, whose words stay whole."""
    return text if sys.stdout.isatty() else text.replace(_HYPHEN, _NO_BREAK)


class _Whole:
    """Help whose hyphens are in the end what they were."""

    def get_help(self, ctx: Any) -> str:
        """Write the help."""
        return str(super().get_help(ctx)).replace(_NO_BREAK, _HYPHEN)  # type: ignore[misc]


class _Group(_Whole, TyperGroup):
    """All commands."""

    format_options = _plain_options

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what is neither an option of ours nor a command."""
        params: dict[str, Any] = {flag: each for each in self.get_params(ctx) for flag in each.opts}
        word = args[0] if args else ""
        if word in _COMPLETION and len(args) > 1:  # For the shell that is named, not detected.
            params[word].callback(ctx, params[word], args[1])
        if not ctx.resilient_parsing and word not in (*params, *COMMANDS):
            what, known = ("argument", params) if word.startswith("-") else ("command", COMMANDS)
            hint = did_you_mean(word, known, quote=False)
            missing = "the following arguments are required: COMMAND"
            said = f"unknown {what} {word!r}{hint}" if word else missing
            raise UsageError(f"{said} (see curate --help)")
        return super().parse_args(ctx, args)


class _Command(_Whole, TyperCommand):
    """One command, loaded: Typer shows and completes its options, and they are read here."""

    format_options = _plain_options

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line, where it is neither half one to be completed nor asks for help."""
        if ctx.resilient_parsing or {"-h", "--help"} & set(args):
            return super().parse_args(ctx, args if ctx.resilient_parsing else ["--help"])
        ctx.params = read(args, str(self.name))
        return []

    def invoke(self, ctx: Any) -> int:
        """Do the work of the command's class."""
        return _work(command_class(str(self.name)), ctx.params, ctx.obj)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What is not required stands in brackets."""
        placed = [each for each in self.params if each.param_type_name == "argument"]
        return ["[OPTIONS]", *(f"{e.metavar}" if e.required else f"[{e.metavar}]" for e in placed)]


class _Unloaded(TyperCommand):
    """One command of which only the name and the short help are known."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **more: Any
    ) -> Any:
        """Load it, now that it is used."""
        return _load(str(info_name)).make_context(info_name, args, parent, **more)


def _app(**more: Any) -> typer.Typer:
    """With frames and colours on a terminal, and else plain."""
    markup: Literal["rich"] | None = "rich" if sys.stdout.isatty() else None
    return typer.Typer(rich_markup_mode=markup, context_settings=_CONTEXT, **more)


def _group() -> Any:
    app = _app(cls=_Group)

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
        panel = _title(entry.group)
        group.add_command(_Unloaded(name, short_help=entry.help, rich_help_panel=panel))
    return group


def _load(name: str) -> Any:
    """The Typer command of a command's class."""
    cls = command_class(name)

    def shown() -> None: ...

    shown.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_parameter(each) for each in _settings(cls)]
    )
    app = _app(add_completion=False)
    about, example = description(cls)
    app.command(name, cls=_Command, help=_whole(about), epilog=_whole(example))(shown)
    return typer.main.get_command(app)


def _parameter(setting: Setting) -> inspect.Parameter:
    """What Typer shows and completes of a setting."""
    declared = setting.declared
    kind: Any = bool if setting.kind is bool else list[str] if setting.repeats else str
    metavar = "|".join(declared["choices"]) or declared["metavar"]
    if setting.is_many and not setting.repeats:
        metavar += "..."
    more: dict[str, Any] = {"help": setting.help, "show_default": False, "metavar": metavar}
    if words := declared["choices"] or declared.get("suggested"):

        def could_be(incomplete: str) -> list[str]:
            known = words() if callable(words) else words
            return [word for word in known if word.startswith(incomplete)]

        more["autocompletion"] = could_be
    if setting.by_place:
        shown = typer.Argument(**more)
    else:
        shown = typer.Option(*setting.flags, rich_help_panel=_title(declared["group"]), **more)
    default = inspect.Parameter.empty if setting.is_required else False if kind is bool else None
    annotation: Any = Annotated[kind if setting.is_required else kind | None, shown]
    return inspect.Parameter(setting.name, _KEYWORD, default=default, annotation=annotation)


def _title(group: str) -> str:
    return group[:1].upper() + group[1:] or "Options"


# --- What a command line says --------------------------------------------------------------------


def _settings(cls: type[Command]) -> list[Setting]:
    """The settings that a command line has: no tables, but how to print, and a file of others."""
    found = [each for each in declared_in(cls).values() if each.kind is not Mapping]
    if cls.config_help:
        file = option(cls.config_help, metavar="FILE.toml")
        found.append(Setting("config", str, file.metadata))
    return [*found, Setting("json", bool, option(_JSON).metadata)]


def read(words: Sequence[str], name: str) -> dict[str, Any]:
    """The values that the words after a command's name give to its settings.

    Raises:
        UsageError: a flag is unknown, or its value is missing or wrong; or there are too many
            arguments, or too few.
    """
    see, declared = f"(see curate {name} --help)", _settings(command_class(name))
    by_flag = {flag: each for each in declared if not each.by_place for flag in each.flags}
    found: dict[str, Any] = {}
    rest, arguments = list(words), []
    while rest:
        word = rest.pop(0)
        if word == "--":
            arguments += rest
            break
        if not _is_flag(word):
            arguments.append(word)
            continue
        flag, equals, value = word.partition("=")
        if flag not in by_flag and flag[:2] in by_flag:  # -oFILE
            flag, equals, value = word[:2], "=", word[2:]
        if flag not in by_flag:
            hint = did_you_mean(flag, by_flag, quote=False)
            raise UsageError(f"unknown argument {word!r}{hint} {see}")
        setting = by_flag[flag]
        if setting.kind is bool:
            if equals:
                raise UsageError(f"{flag} takes no value {see}")
            found[setting.name] = True
            continue
        values = [value] if equals else []
        while not equals and rest and not _is_flag(rest[0]):
            values.append(rest.pop(0))
            if not setting.declared.get("spread"):
                break
        if not values:
            raise UsageError(f"{flag} needs a value {see}")
        before = found.get(setting.name, []) if setting.repeats else []
        found[setting.name] = before + setting.read(values) if before else setting.read(values)
    for setting in declared:
        if setting.by_place and arguments:
            taken = len(arguments) if setting.is_many else 1
            found[setting.name] = setting.read(arguments[:taken])
            arguments = arguments[taken:]
    if arguments:
        raise UsageError(f"unknown argument {arguments[0]!r} {see}")
    missing = [each.flags[-1] for each in declared if each.is_required and each.name not in found]
    if missing:
        raise UsageError(f"the following arguments are required: {', '.join(missing)} {see}")
    return found


def _is_flag(word: str) -> bool:
    """Whether a word is a flag: no number, no sentence that begins with a dash, no dash alone."""
    return word[:1] == "-" and word != "-" and " " not in word and not _NUMBER.fullmatch(word)


def _work(cls: type[Command], given: dict[str, Any], started: float) -> int:
    """Do what was asked for, print what came out, and return the exit status."""
    as_json, file = given.pop("json", False), given.pop("config", "")
    values = read_config_file(file) | given if file else given
    command = cls.from_mapping(values, file or "options")
    try:
        found = command.since(started) if as_json else command.shown(started)
    except KeyboardInterrupt as error:
        if not command.keeps():
            error.args = ("nothing was kept",)
        raise
    said = command.facts(found) if as_json else command.text(found)
    if said not in (None, ""):
        print(json.dumps(said, indent=2) if as_json else said)
    return command.status(found)


if __name__ == "__main__":
    sys.exit(main())
