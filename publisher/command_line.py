"""Click as the programs of this project use it: help that fits 80 columns, one module loaded, errors in two lines.

A program is a `Table`: a group that knows its commands by name, by the module that holds each, and by one line of help. Only
the module of the command that is run is loaded; it exposes its `click.Command` as `command`. `run` runs a program: it turns
wrong usage, Ctrl-C and a reader that has closed into an exit code.
"""

import contextlib
import importlib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from publisher import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

EXIT_USAGE: Final = 2
INTERRUPTED: Final = 130
"""The exit code after Ctrl-C, as shells have it."""
WIDTH: Final = 80
"""Columns of a terminal that every help fits into."""

Options = SimpleNamespace
"""The options and arguments of one command, an attribute each."""


class Command(click.Command):
    """A command whose help is printed as it is written, and whose options may exclude each other.

    Args:
        one_of: Options of which at most one may be given.
        required: Whether one of them must be given.
        kwargs: Click's own.
    """

    def __init__(self, *args: Any, one_of: Sequence[str] = (), required: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._one_of, self._required = one_of, required

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; two options that exclude each other are wrong usage."""
        rest = super().parse_args(ctx, args)
        given = [
            option.opts[-1]
            for option in self.params
            if option.opts[-1] in self._one_of and ctx.params.get(option.name or "") not in (None, False)
        ]
        if not ctx.resilient_parsing and (len(given) > 1 or (self._required and not given)):
            ctx.fail(f"give {'one' if self._required else 'only one'} of {', '.join(self._one_of)}")
        return rest

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the text of the help: paragraphs are filled, and lines that begin with a blank stay lines."""
        formatter.write(f"\n{filled(self.help or '')}\n")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what follows the options in the same way."""
        if self.epilog:
            formatter.write(f"\n{filled(self.epilog)}\n")


class Group(Command, click.Group):
    """A command that has commands. One that also does something by itself hands its options on to them.

    What was typed before a nested command, as in `checkpoint --json list`, is the default of the nested command's option of
    that name.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(self.commands)


class Table(click.Group):
    """A group that loads the module of the command that is run, and no other.

    Args:
        name: The program's name.
        table: Each command: the module that exposes it as `command`, and its line of the help.
        kwargs: Click's own.
    """

    def __init__(self, name: str, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(name, context_settings={"help_option_names": ["-h", "--help"]}, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command; None if there is no such one."""
        if cmd_name not in self.table:
            return None
        module, _ = self.table[cmd_name]
        command: click.Command = importlib.import_module(module).command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant; of an unknown one it is said which it may be."""
        if args[0] not in self.table and not ctx.resilient_parsing:
            raise click.NoSuchCommand(args[0], possibilities=list(self.table), ctx=ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem"]:
        """Complete from the table, without loading anything."""
        from click.shell_completion import CompletionItem

        items = [CompletionItem(name, help=line) for name, (_, line) in self.table.items() if name.startswith(incomplete)]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the text of the help."""
        formatter.write(f"{filled(self.help or '')}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands; the options stand in the line of usage."""
        width = max(map(len, self.table))
        lines = [f"  {name:<{width}}  {line}" for name, (_, line) in self.table.items()]
        formatter.write("\n" + "\n".join(lines) + "\n")

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the line of usage, with the options."""
        flags = "".join(f" [{option.opts[-1]}]" for option in self.params)
        formatter.write(f"Usage: {ctx.command_path}{flags} COMMAND ...\n")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what follows the commands."""
        formatter.write(f"\n{filled(self.epilog or '')}\n")


def version_option() -> Callable[[Any], Any]:
    """Return the option that prints the version and ends."""
    return click.version_option(__version__, prog_name="solowriter", message="%(prog)s %(version)s")


json_option: Final = click.option("--json", is_flag=True, help="print JSON")


def with_environment(body: Callable[[Options, Mapping[str, str]], int]) -> Callable[..., int | None]:
    """Return the callback of a command whose body takes the options, and the variables that the program was started with."""

    def call(**params: Any) -> int | None:
        context = click.get_current_context()
        if context.invoked_subcommand is not None:
            _hand_on(context)
            return None
        return body(Options(**params), context.obj)

    call.__doc__ = body.__doc__
    return call


def _hand_on(context: click.Context) -> None:
    """Make what was given before a nested command the default of its options."""
    typed = click.core.ParameterSource.COMMANDLINE
    given = {name: value for name, value in context.params.items() if context.get_parameter_source(name) is typed}
    context.default_map = {str(context.invoked_subcommand): given}


def run(program: click.Command, argv: Sequence[str], *, name: str, environ: Mapping[str, str]) -> int:
    """Run one command; its exit code.

    Args:
        program: What is run.
        argv: What was typed after its name.
        name: Its name, as the help shows it.
        environ: The variables that the commands read.

    Raises:
        SystemExit: The command line cannot be parsed, asked for help, or is completed for a shell.
    """
    try:
        variable = f"_{name}_COMPLETE".upper()
        if instruction := os.environ.get(variable):
            from click.shell_completion import shell_complete

            raise SystemExit(shell_complete(program, {}, name, variable, instruction))
        with program.make_context(name, list(argv), obj=environ) as context:
            code: int | None = program.invoke(context)
        sys.stdout.flush()
        return code or 0
    except click.exceptions.Exit as end:
        raise SystemExit(end.exit_code) from None
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
    except click.UsageError as error:
        where = name if error.ctx is None else error.ctx.command_path
        print(f"error: {_wording(error)}\nhelp:  {where} --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has closed; the flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def end(code: int) -> NoReturn:
    """Leave the process. After Ctrl-C at once: a request that still hangs on a thread must not hold up the end."""
    if code == INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _wording(error: click.UsageError) -> str:
    """What is wrong, after the name of the option or argument."""
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter) and error.param is not None:
        argument = isinstance(error.param, click.Argument)
        return f"{(error.param.metavar or '').strip('[].') if argument else error.param.opts[-1]}: {error.message}"
    text = error.format_message()
    return text[:1].lower() + text[1:]


_ITEM: Final = re.compile(r"( *\S.*?  +)(?=\S)")
"""The beginning of a line whose second column is continued below itself: `  --name  what it is`."""


def filled(text: str, width: int = WIDTH - 2) -> str:
    """Fill the paragraphs of a text; of a paragraph with indented lines each line, below its second column."""
    paragraphs = []
    for paragraph in text.strip("\n").split("\n\n"):
        lines = paragraph.splitlines()
        if any(line.startswith(" ") for line in lines):
            paragraphs.append("\n".join(_line(line, width) for line in lines))
        else:
            paragraphs.append(textwrap.fill(" ".join(lines), width, break_long_words=False, break_on_hyphens=False))
    return "\n\n".join(paragraphs)


def _line(line: str, width: int) -> str:
    item = _ITEM.match(line)
    indent = " " * (len(item[1]) if item and len(item[1]) <= width // 2 else len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent,
        drop_whitespace=True,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
