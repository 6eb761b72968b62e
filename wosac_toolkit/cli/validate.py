"""`wosac validate`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from wosac_toolkit.challenge import ALL_CHALLENGES
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import counted
from wosac_toolkit.errors import WosacError

if TYPE_CHECKING:
    from wosac_toolkit.submission.check import Checked, Split
    from wosac_toolkit.validation import Finding

_SHOWN = 20


@click.command(
    "validate",
    cls=Command,
    examples=(
        "wosac validate submission.tar.gz --scenarios womd/testing",
        "wosac validate submission.tar.gz --scenarios womd --split test --format json",
        "wosac validate rollouts/",
        "wosac validate generated.tar.gz --scenarios womd --challenge scenario_gen_2025",
    ),
)
@click.argument("submission")
@click.option(
    "--scenarios",
    metavar="PATH",
    help="The scenes of the split (WOMD TFRecords): a file, folder, glob or list of shards. "
    "Without it: the path in the manifest.json beside the rollouts, else the environment variable "
    "WOSAC_SCENARIOS.",
)
@click.option(
    "--split",
    type=click.Choice(["test", "val"]),
    help="The split that the submission is for: takes its subfolder of --scenarios where there is "
    "one, and refuses scenes of the other.",
)
@click.option(
    "--challenge",
    type=click.Choice(list(ALL_CHALLENGES)),
    default="2025",
    show_default=True,
    help="What the submission is for; scenario_gen_2025 has 91 steps and sizes, the years are all "
    "alike.",
)
@click.option(
    "--no-scenarios",
    is_flag=True,
    help="Check without scenes: all but coverage, objects and distances from their places.",
)
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes.  [default: one a CPU, fewer for few scenes]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help=f"text shows {_SHOWN} findings of a kind and counts the others; json has all.",
)
@click.pass_context
def command(
    ctx: click.Context,
    submission: str,
    scenarios: str | None,
    split: Split | None,
    challenge: str,
    no_scenarios: bool,
    strict: bool,
    workers: int | None,
    format_: str,
) -> None:
    """Find what the evaluation server would refuse, before the upload.

    SUBMISSION is the .tar.gz to be uploaded; or a folder or a file of shards, .npz or pickles,
    whose rollouts are checked alike. Looks at coverage of the split, objects, lengths, values,
    metadata and the layout of the archive in one pass. Ends with 1 where there are errors.
    """
    if no_scenarios:
        if scenarios is not None or split is not None:
            raise click.UsageError("--no-scenarios goes with neither --scenarios nor --split")
    elif scenarios is None:
        from wosac_toolkit.manifest import find_scenarios

        try:
            scenarios = find_scenarios(submission)
        except WosacError as error:
            mend = f"{error.mend}; or --no-scenarios"
            raise WosacError(error.what, where=error.where, mend=mend) from None
        click.echo(f"scenes: {scenarios}", err=True)
    checked = run(
        submission,
        scenarios,
        challenge=challenge,
        split=split,
        workers=workers,
        format_=format_,
    )
    if checked.n_errors or (strict and checked.n_warnings):
        ctx.exit(1)


def run(
    submission: str | os.PathLike[str],
    scenarios: str | None,
    *,
    challenge: str = "2025",
    split: Split | None = None,
    workers: int | None = None,
    format_: str = "text",
) -> Checked:
    """Check a submission and print what is found."""
    from wosac_toolkit.submission.check import check_submission

    def check(report: Callable[[Finding], object]) -> Checked:
        return check_submission(
            submission,
            scenarios,
            report,
            challenge=challenge,
            split=split,
            workers=workers,
            progress=True,
        )

    try:
        return (_print_json if format_ == "json" else _print_text)(os.fspath(submission), check)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the check is not complete") from None


def _print_text(
    submission: str, check: Callable[[Callable[[Finding], object]], Checked]
) -> Checked:
    from wosac_toolkit.submission.findings import ERRORS, WARNINGS

    first: dict[str, list[str]] = {}

    def keep(finding: Finding) -> None:
        lines = first.setdefault(finding.code, [])
        if len(lines) < _SHOWN:
            lines.append(str(finding))

    checked = check(keep)
    for kind, codes in (("error", ERRORS), ("warning", WARNINGS)):
        for code in sorted(codes.keys() & first.keys()):
            n = checked.counts[code]
            click.echo(f"{kind} {code}: {codes[code]} ({n})")
            for line in first[code]:
                click.echo(f"  {line}")
            if n > _SHOWN:
                click.echo(f"  ... and {n - _SHOWN} more")
    click.echo(_verdict(submission, checked))
    return checked


def _verdict(submission: str, checked: Checked) -> str:
    found = [
        counted(n, what)
        for n, what in ((checked.n_errors, "error"), (checked.n_warnings, "warning"))
        if n
    ]
    scenes = counted(checked.n_scenarios, "scene")
    if checked.n_expected is None:
        scenes += " (coverage and objects not checked)"
    else:
        scenes += f" of {checked.n_expected}"
    size = f"{counted(checked.n_shards, 'shard')}, {checked.n_bytes / 1e6:,.1f} MB"
    verdict = "invalid" if checked.n_errors else "valid"
    return f"{verdict}: {submission}: {', '.join(found) or 'no findings'}; {scenes}, {size}"


def _print_json(
    submission: str, check: Callable[[Callable[[Finding], object]], Checked]
) -> Checked:
    """Print findings as they come, since a broken submission has millions."""
    import dataclasses

    from wosac_toolkit.submission.findings import severity

    # Printed with the first finding, since nothing must be where the check cannot even start.
    head = f'{{\n  "submission": {json.dumps(submission)},\n  "findings": ['
    separator = f"{head}\n"

    def show(finding: Finding) -> None:
        nonlocal separator
        row = {"severity": severity(finding), **dataclasses.asdict(finding)}
        click.echo(f"{separator}    {json.dumps(row)}", nl=False)
        separator = ",\n"

    checked = check(show)
    summary: dict[str, Any] = dataclasses.asdict(checked)
    text = json.dumps(summary, indent=2).replace("\n", "\n  ")
    if not checked.counts:
        click.echo(head, nl=False)
    click.echo(f'\n  ],\n  "valid": {json.dumps(not checked.n_errors)},\n  "summary": {text}\n}}')
    return checked
