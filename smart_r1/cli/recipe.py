"""`smart-r1 recipe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smart_r1.cli.options import assigned, stage_options
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import FORMATS, Cell, Table, counted, render

if TYPE_CHECKING:
    from smart_r1.recipe import Change, Summary
    from wosac_toolkit.compare import Estimate

_SCORES = {
    "realism": "realism_meta_metric",
    "kinematic": "kinematic_metrics",
    "interactive": "interactive_metrics",
    "map-based": "map_based_metrics",
    "minADE": "min_ade",
}


@click.command(
    "recipe",
    cls=Command,
    examples=(
        "smart-r1 recipe sft-rft-sft",
        "smart-r1 recipe bc-sft-rft-sft --config recipes/smart_r1_womd.yaml --processes 8 "
        "--scenarios womd/training --val-scenarios womd/validation --out runs/smart-r1",
        "smart-r1 recipe sft-rft-sft --config recipes/smart_r1_single_gpu.yaml "
        "--checkpoint runs/bc/final --scenarios womd/training --val-scenarios womd/validation",
        "smart-r1 recipe rft --checkpoint runs/sft/final --scenarios womd/training "
        "--val-scenarios womd/validation --out runs/mloo rft.policy.algo=mloo",
    ),
)
@click.argument("stages")
@click.option(
    "--checkpoint",
    "begins_with",
    metavar="DIR",
    help="Folder of the model to begin with, where the first stage is not bc.  [default: with "
    "synthetic scenes a small model of the package]",
)
@click.option(
    "--scenarios",
    metavar="PATH",
    help="Scenes (WOMD TFRecords) to train on.  [default: synthetic scenes, made in RUN]",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Processes that train together, each with a GPU if there are any.",
)
@stage_options(out="runs/recipe")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="What is printed; json is RUN/summary.json, and csv has all digits.",
)
def command(
    out: Path,
    config: Path | None,
    device: str | None,
    assignments: tuple[str, ...],
    processes: int,
    format_: str,
    **options: str,
) -> None:
    """Train in stages, and compare the models after each (SMART-R1).

    STAGES are bc (pretrain), sft and rft (finetune), joined by -, such as sft-rft-sft; SMART-R1 is
    bc-sft-rft-sft. Settings are those of the stages' own commands, as sft.epochs=16; sft2.epochs=8
    is of the second sft alone. With neither scenes nor --config it takes minutes on two cores. RUN
    gets a folder for each stage, the scores of the model before and after it, summary.json, and
    report.html.
    """
    from smart_r1 import builtin
    from smart_r1.recipe import is_synthetic, load_recipe_config, run_recipe

    given = [*assigned(options), *assignments]
    settings = load_recipe_config(config, given)
    if config is None and is_synthetic(settings):
        settings = load_recipe_config(builtin.RECIPE, builtin.fitting(given, "rft.policy"))
    try:
        done = run_recipe(settings, out, processes=processes, device=device, progress=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(out)) from None
    if done.summary is None:
        raise KeyboardInterrupt(_kept(out))
    if done.finished_before:
        click.echo(f"{out} holds this recipe already, finished; nothing was done again", err=True)
    else:
        click.echo(f"finished: {out / 'report.html'}", err=True)
    click.echo(recipe_text(done.summary, format_))


def _kept(out: Path) -> str:
    return f"what is done is kept in {out}, and the same command resumes"


def recipe_text(summary: Summary, format_: str) -> str:
    """A summary in one of `FORMATS`; in `csv` without the behaviours."""
    if format_ == "json":
        return summary.to_json().rstrip("\n")
    if format_ == "csv":
        return render(_score_table(summary, exact=True), format_)
    tables = (_score_table(summary), _behaviour_table(summary))
    return "\n\n".join(render(table, format_) for table in tables)


def _score_table(summary: Summary, *, exact: bool = False) -> Table:
    """A row a model; `exact` has the ends of the interval in columns of their own."""
    baseline, *others = (model.name for model in summary.models)
    change: list[str] = []
    if exact:
        change = ["difference", "low", "high"]
    elif others:
        change = ["difference", "95 % interval"]
    rows: list[tuple[int, tuple[Cell, ...]]] = []
    for model in summary.models:
        scores = [model.scores.get(field) for field in _SCORES.values()]
        found = model.changes.get(_SCORES["realism"])
        cells: tuple[Cell, ...] = (None if exact else "",) * len(change)
        if found is not None:
            exactly = (found.value, found.low, found.high)
            cells = exactly if exact else (f"{found.value:+.4f}", _interval(found))
        rows.append((0, (model.name, *scores, *cells)))
    told = (
        f"WOSAC {summary.challenge} metric, {counted(summary.n_scenes, 'scene')}, "
        f"{summary.n_rollouts} rollouts each"
    )
    return Table(
        ("stage", *_SCORES, *change),
        rows,
        [
            told + (f"; differences of realism to {baseline}" if others else ""),
            f"signature: {summary.signature}",
        ],
    )


def _interval(change: Change) -> str:
    if change.low is None or change.high is None:
        return ""
    return f"[{change.low:+.4f}, {change.high:+.4f}]"


def _behaviour_table(summary: Summary) -> Table:
    """A row a quantity, a column a model, and which models are to be watched for it.

    They are watched against the first one, which alone is against the log.
    """
    first, *others = summary.models
    against = "reference" if others else "log"
    rows: list[tuple[int, tuple[Cell, ...]]] = []
    for number, row in enumerate(first.behaviour.rows):
        quantity = row.quantity
        name = f"{quantity.name} [{quantity.unit}]" if quantity.unit else quantity.name
        values = [model.behaviour.rows[number].simulated for model in summary.models]
        to_watch = [
            model.name
            for model in others or [first]
            if against in model.behaviour.rows[number].watch
        ]
        cells = (_value(row.logged), *map(_value, values), " ".join(to_watch))
        rows.append((0, (name, *cells)))
    return Table(
        ("behaviour", "log", *(model.name for model in summary.models), "watch"),
        rows,
        [
            f"watch: models that differ from {first.name if others else 'the log'} as one that "
            "games the metric would"
        ],
    )


def _value(estimate: Estimate | None) -> Cell:
    return "" if estimate is None else estimate.value
