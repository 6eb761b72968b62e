"""The command `smart-r1`: the group that the training and simulation commands join."""

from __future__ import annotations

import click

from wosac_toolkit import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="smart-r1")
def main() -> None:
    """Train and run the SMART traffic model. This release has no commands yet."""
