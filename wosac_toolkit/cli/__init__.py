"""The command `wosac`.

Each subcommand is a module of this package that is imported when it is called, so that
`wosac --help` imports neither numba nor pandas nor pyarrow.

Exit codes: 0 all is well; 1 findings, in commands that look for them; 2 wrong usage or input;
130 interrupted from the keyboard; 141 the reader of the output went away.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from wosac_toolkit.cli.help import Group

# name -> (module, what `wosac --help` says of it: the first sentence of its own help)
_COMMANDS = {
    "score": ("wosac_toolkit.cli.score", "Score rollouts with the WOSAC metric."),
    "simulate": ("wosac_toolkit.cli.simulate", "Simulate scenes with a baseline policy."),
    "synth": ("wosac_toolkit.cli.synth", "Generate synthetic scenes, in the format of WOMD."),
    "warmup": ("wosac_toolkit.cli.warmup", "Compile the kernels, once a machine."),
}


class _Commands(Group):
    """A group whose commands are imported when they are called, and errors told in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
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
            _fail(ctx, f"error: {error}", 2)
        except OSError as error:
            place = "" if error.filename is None else f"{error.filename}: "
            _fail(ctx, f"error: {place}{error.strerror or error}", 2)
        except KeyboardInterrupt as error:
            _fail(ctx, f"interrupted: {error or 'nothing was kept'}", 130)
        return result


def _fail(ctx: click.Context, message: str, code: int) -> None:
    click.echo(f"wosac: {message}", err=True)
    ctx.exit(code)


_MOST_FINDINGS = 20


def _findings(error: Exception) -> list[str]:
    """The findings of a ScoringError, a line each."""
    findings = getattr(error, "findings", ())
    lines = [f"  {finding}" for finding in findings[:_MOST_FINDINGS]]
    if len(findings) > _MOST_FINDINGS:
        lines.append(f"  ... and {len(findings) - _MOST_FINDINGS} more")
    return lines


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from wosac_toolkit import __version__

        click.echo(f"wosac {__version__}")
        ctx.exit()


@click.group(
    cls=_Commands,
    examples=(
        "wosac synth --n 100 --out scenes/",
        "wosac simulate --policy constant_velocity --scenarios scenes/ --out rollouts/",
        "wosac score rollouts/",
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """The metric of the Waymo Open Sim Agents Challenge, exact and fast."""
