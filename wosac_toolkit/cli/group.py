"""Groups of commands that load when they are called, and errors told in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from wosac_toolkit.cli.help import Group

_MOST_FINDINGS = 20

# Packages that come with an extra, and which.
_EXTRAS = {
    **dict.fromkeys(("torch", "safetensors", "tensorboard"), "train"),
    **dict.fromkeys(("jinja2", "matplotlib", "PIL"), "report"),
    "wandb": "wandb",
}


class LazyGroup(Group):
    """A group whose commands are imported when they are called.

    Exit codes: 0 all is well; 1 findings, in commands that look for them; 2 wrong usage or input;
    130 interrupted from the keyboard; 141 the reader of the output went away.

    Args:
        program: the name that errors begin with.
        commands: name -> (module with `command`, what the group's help says of it: the first
            sentence of its own help).
    """

    def __init__(
        self, *args: Any, program: str, commands: Mapping[str, tuple[str, str]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.program, self.lazy_commands = program, commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(self.lazy_commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one."""
        if cmd_name not in self.lazy_commands:
            return None
        command: click.Command = import_module(self.lazy_commands[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List them without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.lazy_commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run one, and tell what a user can cause in one line."""
        from wosac_toolkit.errors import WosacError

        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # What is still buffered must not fail once more when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(141)
        except WosacError as error:
            for line in _findings(error):
                click.echo(line, err=True)
            self._fail(ctx, f"error: {error}", 2)
        except ModuleNotFoundError as error:
            if error.name not in _EXTRAS:
                raise
            mend = f"pip install 'wosac-toolkit[{_EXTRAS[error.name]}]'"
            self._fail(ctx, f"error: this needs {error.name}, which is not installed ({mend})", 2)
        except OSError as error:
            place = "" if error.filename is None else f"{error.filename}: "
            self._fail(ctx, f"error: {place}{error.strerror or error}", 2)
        except KeyboardInterrupt as error:
            self._fail(ctx, f"interrupted: {error or 'nothing was kept'}", 130)
        return result

    def _fail(self, ctx: click.Context, message: str, code: int) -> None:
        click.echo(f"{self.program}: {message}", err=True)
        ctx.exit(code)


def _findings(error: Exception) -> list[str]:
    """The findings of a ScoringError, a line each."""
    findings = getattr(error, "findings", ())
    lines = [f"  {finding}" for finding in findings[:_MOST_FINDINGS]]
    if len(findings) > _MOST_FINDINGS:
        lines.append(f"  ... and {len(findings) - _MOST_FINDINGS} more")
    return lines


def print_version(program: str) -> Any:
    """The option `--version` of a program."""

    def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            from wosac_toolkit import __version__

            click.echo(f"{program} {__version__}")
            ctx.exit()

    return click.option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the version and exit.",
    )
