"""`wosac behaviour`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from wosac_toolkit.challenge import CHALLENGES
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import FORMATS, Cell, Table, counted, render
from wosac_toolkit.errors import WosacError

if TYPE_CHECKING:
    from wosac_toolkit.behaviour import BehaviourReport, Watched
    from wosac_toolkit.compare import Estimate


@click.command(
    "behaviour",
    cls=Command,
    examples=(
        "wosac behaviour rollouts/",
        "wosac behaviour rollouts/rft --reference rollouts/sft --fail-on-watch",
        "wosac behaviour rollouts/rft --scenarios womd/validation --out behaviour.parquet",
    ),
)
@click.argument("rollouts")
@click.option(
    "--scenarios",
    metavar="PATH",
    help="The scenes (WOMD TFRecords): a file, folder, glob or list of shards. Without it: the "
    "path in the manifest.json beside the rollouts, else the environment variable "
    "WOSAC_SCENARIOS.",
)
@click.option(
    "--reference",
    metavar="PATH",
    help="Also compare with what an earlier model did on these scenes: its rollouts, run folder or "
    "behaviour.parquet.",
)
@click.option(
    "--challenge",
    "challenges",
    type=click.Choice(list(CHALLENGES)),
    multiple=True,
    default=("2025", "2024"),
    show_default=True,
    help="Version of the metric whose realism is told. Can be repeated; 2023 takes long.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a row a scene to this Parquet file.",
)
@click.option(
    "--missing",
    type=click.Choice(["error", "intersect"]),
    default="error",
    show_default=True,
    help="Scenes without rollouts or reference, and rollouts without scene: refuse them, or pass "
    "over and count them.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Measure at most so many scenes: the first in the scenario files; of a .tar.gz, the first "
    "in the archive.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes.  [default: one a CPU, fewer for few scenes]",
)
@click.option(
    "--fail-on-watch",
    is_flag=True,
    help="Exit with code 1 where something is to be watched.",
)
@click.option(
    "--resamples",
    type=click.IntRange(min=100),
    metavar="N",
    default=10_000,
    show_default=True,
    help="Draws of the bootstrap.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the draws: the same gives the same numbers.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="What is printed; json and csv have all digits.",
)
def command(
    rollouts: str,
    scenarios: str | None,
    reference: str | None,
    challenges: tuple[str, ...],
    out: Path | None,
    missing: Literal["error", "intersect"],
    limit: int | None,
    workers: int | None,
    fail_on_watch: bool,
    resamples: int,
    seed: int,
    format_: str,
) -> None:
    """Watch for what the metric does not see: standing still, wrong ways, sharp boxes.

    ROLLOUTS is what `wosac score` takes, or a run folder of it, or a behaviour.parquet of --out.
    Prints quantities outside the metric with 95 % intervals over scenes, beside those of the log,
    and marks what departs from the log, or from the reference, on the suspect side.
    """
    from wosac_toolkit.behaviour import load_behaviours, watch, write_behaviours

    if out is not None and not out.parent.is_dir():
        raise WosacError("no such folder", where=str(out.parent), mend="make it, or change --out")
    measured = load_behaviours(
        rollouts,
        scenarios,
        challenges=tuple(dict.fromkeys(challenges)),
        missing=missing,
        limit=limit,
        workers=workers,
        progress=True,
    )
    if out is not None:
        write_behaviours(out, measured.behaviours)
    earlier = None
    if reference is not None:
        earlier = load_behaviours(
            reference,
            scenarios,
            challenges=tuple(dict.fromkeys(challenges)),
            missing=missing,
            scenario_ids=[behaviour.scenario_id for behaviour in measured.behaviours],
            workers=workers,
            progress=True,
        ).behaviours
    report = watch(measured.behaviours, earlier, missing=missing, resamples=resamples, seed=seed)
    click.echo(behaviour_text(report, format_))
    if measured.n_passed_over:
        click.echo(f"passed over: {measured.n_passed_over} scenarios or rollouts alone", err=True)
    if fail_on_watch and report.to_watch:
        click.echo(f"wosac: to be watched: {', '.join(report.to_watch)}", err=True)
        click.get_current_context().exit(1)


def behaviour_text(report: BehaviourReport, format_: str) -> str:
    """A report in one of `FORMATS`."""
    if format_ == "json":
        return report.to_json().rstrip("\n")
    if format_ == "csv":
        return render(_long_table(report), format_)
    header = ["behaviour", "rollouts", "95 % interval", "log", "less the log"]
    if report.has_reference:
        header += ["reference", "change", "95 % interval"]
    rows = []
    for row in report.rows:
        unit = f" [{row.quantity.unit}]" if row.quantity.unit else ""
        cells: list[Cell] = [
            row.quantity.name + unit,
            _value(row.simulated),
            _interval(row.simulated),
            _value(row.logged),
            "" if row.departure is None else f"{row.departure.value:+.4f}",
        ]
        if report.has_reference:
            change = "" if row.change is None else f"{row.change.value:+.4f}"
            cells += [_value(row.reference), change, _interval(row.change)]
        rows.append((0, (*cells, " ".join(row.watch))))
    return render(Table((*header, "watch"), rows, _notes(report)), format_)


def _value(estimate: Estimate | None) -> Cell:
    return "" if estimate is None else estimate.value


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"[{estimate.low:.4f}, {estimate.high:.4f}]"


def _notes(report: BehaviourReport) -> list[str]:
    rollouts = "differing numbers of" if report.n_rollouts is None else report.n_rollouts
    notes = [f"{counted(report.n_scenes, 'scene')}, {rollouts} rollouts each"]
    if report.n_without_reference:
        notes.append(
            f"passed over: {counted(report.n_without_reference, 'scene')} not in reference"
        )
    notes += [
        f"{row.quantity.name} is of {row.n_scenes} scenes: there is none in the others"
        for row in report.rows
        if row.n_scenes < report.n_scenes
    ]
    if report.n_scenes < _FEW_SCENES:
        notes.append(f"intervals of less than {_FEW_SCENES} scenes are rather too narrow")
    return notes


_FEW_SCENES = 30


def _long_table(report: BehaviourReport) -> Table:
    """A row a quantity, with all that is known of it."""
    parts = ("simulated", "logged", "departure", "reference", "change")
    header = ["behaviour", "unit", "suspect", "margin", "scenes"]
    header += [f"{part}{end}" for part in parts for end in ("", "_low", "_high")]

    def cells(row: Watched) -> tuple[Cell, ...]:
        quantity = row.quantity
        values: list[Cell] = [quantity.name, quantity.unit, quantity.suspect, quantity.margin]
        values.append(row.n_scenes)
        for part in parts:
            one: Estimate | None = getattr(row, part)
            values += [None] * 3 if one is None else [one.value, one.low, one.high]
        return (*values, " ".join(row.watch), quantity.meaning)

    return Table((*header, "watch", "meaning"), [(0, cells(row)) for row in report.rows])
