"""`wosac doctor`."""

from __future__ import annotations

import click

from wosac_toolkit.cli.help import Command


@click.command(
    "doctor",
    cls=Command,
    examples=("wosac doctor", "wosac doctor --scenarios womd/validation --format json"),
)
@click.option(
    "--scenarios",
    metavar="PATH",
    envvar="WOSAC_SCENARIOS",
    help="Scenes (WOMD TFRecords) to look at as well: a file, folder, glob or list of shards.  "
    "[environment: WOSAC_SCENARIOS]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What is printed.",
)
@click.pass_context
def command(ctx: click.Context, scenarios: str | None, format_: str) -> None:
    """Check this installation: packages, threads, kernel cache, scenes, and exactness.

    A recorded scene is scored by the rules of each year and compared with what the official package
    says of it. Every line is ok, a warning or a problem, with what mends it. Exits with 1 if there
    is a problem. To be pasted into bug reports.
    """
    import dataclasses
    import json

    from wosac_toolkit.doctor import examine

    checks = []
    for check in examine(scenarios):
        checks.append(check)
        if format_ == "text":
            click.echo(f"{check.status:8} {check.name:20} {check.what}")
            if check.mend:
                click.echo(f"{'':29} -> {check.mend}")
    n_problems = sum(check.status == "problem" for check in checks)
    n_warnings = sum(check.status == "warning" for check in checks)
    if format_ == "json":
        listed = [dataclasses.asdict(check) for check in checks]
        counts = {"n_problems": n_problems, "n_warnings": n_warnings}
        click.echo(json.dumps({**counts, "checks": listed}, indent=2))
    else:
        click.echo(f"\n{len(checks)} checks: {n_problems} problems, {n_warnings} warnings")
    if n_problems:
        ctx.exit(1)
