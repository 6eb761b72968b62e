"""`wosac report`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from wosac_toolkit.cli.help import Command


@click.command(
    "report",
    cls=Command,
    examples=(
        "wosac report runs/smart --out report.html",
        "wosac report before=runs/a after=runs/b0,runs/b1 --out report.html",
        "wosac report runs/smart --beside 2025-test-smart-r1 --scenes 100 --out report.html",
    ),
)
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    required=True,
    help="The HTML file; an older report there is replaced.",
)
@click.option("--title", default="", metavar="TEXT", help="Title of the page.")
@click.option(
    "--beside",
    multiple=True,
    metavar="ENTRY_ID",
    help="A leaderboard entry to show beside the runs (see `wosac leaderboard show --format csv`); "
    "can be repeated; `none` for none.  [default: the log, constant velocity, the best entry, and "
    "the best that tells its components]",
)
@click.option(
    "--entries",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Leaderboard entries (*.json) in place of the published ones.",
)
@click.option(
    "--scenes",
    type=click.IntRange(0, 500),
    metavar="N",
    default=20,
    show_default=True,
    help="Compare simulated with logged features on N scenes, drawn by --seed.",
)
@click.option(
    "--worst",
    type=click.IntRange(0, 50),
    metavar="N",
    default=6,
    show_default=True,
    help="Show the N scenes of each run that score lowest.",
)
@click.option(
    "--scenarios",
    metavar="PATH",
    help="The scenes (WOMD TFRecords).  [default: where they were when they were scored]",
)
@click.option(
    "--missing",
    type=click.Choice(["error", "intersect"]),
    default="error",
    show_default=True,
    help="Scenes that not all runs have: refuse the runs, or compare the scenes that all have and "
    "count the others.",
)
@click.option(
    "--resamples",
    type=click.IntRange(100, 1_000_000),
    metavar="N",
    default=10_000,
    show_default=True,
    help="Draws of the bootstrap and of the randomisation.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the draws and of the choice of scenes: the same gives the same file.",
)
def command(
    runs: tuple[str, ...],
    out: Path,
    title: str,
    beside: tuple[str, ...],
    entries: Path | None,
    scenes: int,
    worst: int,
    scenarios: str | None,
    missing: Literal["error", "intersect"],
    resamples: int,
    seed: int,
) -> None:
    """Write an HTML report on runs, with figures and pictures, in one file.

    RUNS are folders that `wosac score --out` or `smart-r1 evaluate --out` wrote; of several, the
    first is the baseline. Several seeds of one model are given as name=folder,folder,... The page
    has scores with 95 % intervals, components beside leaderboard entries, simulated against logged
    features, slices, the comparison of the runs, and the worst scenes with pictures where the
    rollouts are still there; and what the metric does not look at, where the folder of a run has a
    behaviour.parquet (`wosac behaviour RUN --out RUN/behaviour.parquet`). It opens without a
    network.
    """
    from wosac_toolkit.report import write_report

    write_report(
        runs,
        out,
        title=title,
        beside=None if not beside else [id_ for id_ in beside if id_ != "none"],
        entries=entries,
        scenes=scenes,
        worst=worst,
        scenarios=scenarios,
        missing=missing,
        resamples=resamples,
        seed=seed,
        progress=True,
    )
    click.echo(out)
