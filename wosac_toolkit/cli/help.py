"""Help texts with examples."""

from __future__ import annotations

from typing import Any

import click


class _Examples:
    """Examples, one a line, at the end of a command's help."""

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are, since wrapped lines cannot be pasted into a shell."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class Command(_Examples, click.Command):
    """A command whose help ends with examples."""


class Group(_Examples, click.Group):
    """A group whose help ends with examples."""
