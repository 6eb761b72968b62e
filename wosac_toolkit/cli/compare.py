"""`wosac compare`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import click

from wosac_toolkit.attributes import SLICINGS
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import FORMATS, Cell, Table, counted, render

if TYPE_CHECKING:
    from wosac_toolkit.compare import Against, Comparison, Difference, Estimate, ModelScores


@click.command(
    "compare",
    cls=Command,
    examples=(
        "wosac compare runs/before runs/after",
        "wosac compare base=runs/b0,runs/b1,runs/b2 mine=runs/m0,runs/m1,runs/m2 --slice all",
        "wosac compare runs/main runs/branch --fail-if-worse --format json",
    ),
)
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--metric",
    default="realism_meta_metric",
    show_default=True,
    metavar="FIELD",
    help="The field of the verdict, the slices and the scenes listed.",
)
@click.option(
    "--slice",
    "slices",
    type=click.Choice([*SLICINGS, "all"]),
    multiple=True,
    help="Also compare the scenes of each kind, by: simulated agents, types of the evaluated "
    "agents, traffic lights, whether the autonomous vehicle is at an intersection, mean speed of "
    "the evaluated agents, manoeuvre of the autonomous vehicle. Can be repeated.",
)
@click.option(
    "--scenes",
    "largest",
    type=click.IntRange(min=0),
    metavar="N",
    default=10,
    show_default=True,
    help="List the N scenes with the largest losses and gains.",
)
@click.option(
    "--power",
    "power_difference",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DIFFERENCE",
    help="Tell how many scenes would show this difference of each field with 80 % power.",
)
@click.option(
    "--fail-if-worse",
    is_flag=True,
    help="Exit with code 1 where a run is significantly worse than the first.",
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
    type=click.IntRange(min=100),
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
    runs: tuple[str, ...],
    metric: str,
    slices: tuple[str, ...],
    largest: int,
    power_difference: float | None,
    fail_if_worse: bool,
    missing: Literal["error", "intersect"],
    resamples: int,
    seed: int,
    format_: str,
) -> None:
    """Compare runs scene by scene with the first of them.

    RUNS are folders that `wosac score --out` wrote: the baseline, then one or more others. Several
    seeds of one model are given as name=folder,folder,... Prints means, paired differences with
    95 % intervals and p-values, on how many scenes each is better, and a verdict.
    """
    from wosac_toolkit.compare import compare_runs, read_models

    comparison = compare_runs(
        read_models(runs),
        metric=metric,
        slices=list(SLICINGS) if "all" in slices else list(dict.fromkeys(slices)),
        largest=largest,
        power_difference=power_difference,
        missing=missing,
        resamples=resamples,
        seed=seed,
    )
    click.echo(comparison_text(comparison, format_))
    if format_ == "csv":
        for other in comparison.against:
            click.echo(other.verdict.text, err=True)
    if fail_if_worse and comparison.worse:
        worse = ", ".join(comparison.worse)
        click.echo(f"wosac: significantly worse than {comparison.baseline}: {worse}", err=True)
        click.get_current_context().exit(1)


def comparison_text(comparison: Comparison, format_: str) -> str:
    """A comparison in one of `FORMATS`; `csv` is one long table of fields, slices and scenes."""
    if format_ == "json":
        return comparison.to_json().rstrip("\n")
    if format_ == "csv":
        return render(_long_table(comparison), format_)
    tables = list(_tables(comparison))
    tables[-1] = replace(tables[-1], notes=_notes(comparison))
    return "\n\n".join(render(table, format_) for table in tables)


def _tables(comparison: Comparison) -> Iterator[Table]:
    for other in comparison.against:
        yield _fields_table(comparison, other)
        if other.slices:
            yield _slices_table(comparison, other)
        if other.losses or other.gains:
            yield _scenes_table(comparison, other)
    several = [model for model in comparison.models if len(model.folders) > 1]
    if several:
        yield _seeds_table(comparison, several)


def _levels(comparison: Comparison) -> list[tuple[int, str]]:
    """(level, field) of the fields compared."""
    from wosac_toolkit.challenge import get_challenge
    from wosac_toolkit.results import field_tree

    compared = comparison.models[0].means
    tree = field_tree(get_challenge(comparison.challenge))
    return [(level, field) for level, field in tree if field in compared]


_STATISTICS = ("difference", "95 % interval", "p", "p (Holm)", "win/tie/loss", "effect")


def _statistics(difference: Difference) -> tuple[Cell, ...]:
    """The cells below `_STATISTICS`."""
    return (
        f"{difference.difference.value:+.5f}",
        _interval(difference.difference),
        difference.p,
        "" if difference.p_holm is None else difference.p_holm,
        f"{difference.wins}/{difference.ties}/{difference.losses}",
        None if difference.effect is None else f"{difference.effect:+.3f}",
    )


def _interval(estimate: Estimate) -> str | None:
    if estimate.low is None or estimate.high is None:
        return None
    return f"[{estimate.low:+.5f}, {estimate.high:+.5f}]"


def _fields_table(comparison: Comparison, other: Against) -> Table:
    needed = comparison.power_difference
    header = ["metric", comparison.baseline, other.name, *_STATISTICS]
    if comparison.left_out:
        header.append("scenes")
    if needed is not None:
        header.append(f"scenes for {needed:g}")
    rows = []
    for level, field in _levels(comparison):
        one = other.differences[field]
        cells = [field, one.baseline, one.mean, *_statistics(one)]
        if comparison.left_out:
            cells.append(one.n_scenes)
        if needed is not None:
            cells.append(one.scenes_needed)
        rows.append((level, tuple(cells)))
    return Table(tuple(header), rows, title=f"{other.name} against {comparison.baseline}")


def _slices_table(comparison: Comparison, other: Against) -> Table:
    header = (comparison.metric, "scenes", comparison.baseline, other.name, *_STATISTICS)
    rows: list[tuple[int, tuple[Cell, ...]]] = []
    for attribute in dict.fromkeys(part.attribute for part in other.slices):
        rows.append((0, (attribute, *[""] * (len(header) - 1))))
        for part in other.slices:
            one = part.difference
            if part.attribute == attribute:
                cells = (part.level, one.n_scenes, one.baseline, one.mean, *_statistics(one))
                rows.append((1, cells))
    title = f"{other.name} against {comparison.baseline}, by kind of scene"
    return Table(header, rows, title=title)


def _scenes_table(comparison: Comparison, other: Against) -> Table:
    rows: list[tuple[int, tuple[Cell, ...]]] = []
    for heading, changes in (("losses", other.losses), ("gains", other.gains)):
        if changes:
            rows.append((0, (heading, "", "", "")))
            rows += [
                (
                    1,
                    (
                        change.scenario_id,
                        change.baseline,
                        change.score,
                        f"{change.difference:+.5f}",
                    ),
                )
                for change in changes
            ]
    header = (comparison.metric, comparison.baseline, other.name, "difference")
    title = f"{other.name} against {comparison.baseline}, the scenes that differ most"
    return Table(header, rows, title=title)


def _seeds_table(comparison: Comparison, models: list[ModelScores]) -> Table:
    header = ["metric"]
    for model in models:
        header += [f"{model.name}: sd", "lowest", "highest"]
    rows = []
    for level, field in _levels(comparison):
        cells: list[Cell] = [field]
        for model in models:
            means, spread = model.seed_means[field], model.seed_spread[field]
            cells += [None if spread is None else f"{spread:.5f}", min(means), max(means)]
        rows.append((level, tuple(cells)))
    several = ", ".join(f"{model.name} {len(model.folders)}" for model in models)
    return Table(tuple(header), rows, title=f"means of single seeds ({several})")


_FEW_SCENES = 30


def _notes(comparison: Comparison) -> list[str]:
    scenes = counted(comparison.n_scenes, "scene")
    rollouts = comparison.n_rollouts
    notes = [
        f"WOSAC {comparison.challenge} metric ({comparison.official_release}), {scenes}, "
        f"{'differing numbers of' if rollouts is None else rollouts} rollouts each"
    ]
    if comparison.not_compared:
        lacking = ", ".join(f"{run} {n}" for run, n in comparison.not_compared.items())
        notes.append(f"passed over: scenes that other runs lack, of {lacking}")
    by_count: dict[int, list[str]] = {}
    for field, n in comparison.left_out.items():
        by_count.setdefault(n, []).append(field)
    notes += [
        f"left out of {', '.join(fields)}: {n} of {scenes}, not finite in every run"
        for n, fields in by_count.items()
    ]
    draws = f"{comparison.resamples} resamples, seed {comparison.seed}"
    if any(len(model.folders) > 1 for model in comparison.models):
        notes.append(
            "intervals and p-values with several seeds: bootstrap over scenes and seeds; with one: "
            f"bootstrap over scenes and paired randomisation; {draws}"
        )
        if comparison.power_difference is not None:
            notes.append("scenes needed: with as many seeds, if seeds differed by chance alone")
    else:
        notes += [
            f"intervals: paired bootstrap over scenes; p: paired randomisation; {draws}",
            "one seed each: how much another training or seed would change is not in the intervals",
        ]
    notes += [
        "p (Holm): p adjusted over the components, and over the slices of one kind",
        "win: more is better but for min_ade, average_displacement_error and simulated rates; "
        "effect: difference in standard deviations of the paired differences",
    ]
    if len(comparison.against) > 1:
        notes.append(
            f"p of the verdicts: adjusted over the {len(comparison.against)} runs compared with "
            f"{comparison.baseline}"
        )
    if comparison.n_scenes < _FEW_SCENES:
        notes.append(f"intervals of less than {_FEW_SCENES} scenes are too narrow")
    if len(comparison.toolkit_versions) > 1:
        notes.append(f"scored by toolkit versions {', '.join(comparison.toolkit_versions)}")
    notes += [
        f"signature of {model.name}: {signature}"
        for model in comparison.models
        for signature in dict.fromkeys(model.signatures)
    ]
    return [*notes, *(f"verdict: {other.verdict.text}" for other in comparison.against)]


_LONG_HEADER = (
    *("baseline", "model", "field", "attribute", "slice", "scenario_id", "scenes"),
    *("baseline_mean", "mean", "difference", "low", "high", "p", "p_holm"),
    *("wins", "ties", "losses", "spread", "effect", "detectable", "scenes_needed"),
    *("baseline_seed_spread", "seed_spread"),
)


def _long_table(comparison: Comparison) -> Table:
    """A row a field, slice or scene; columns that do not apply are empty."""
    rows: list[dict[str, Cell]] = []
    baseline, *others = comparison.models
    for model, other in zip(others, comparison.against, strict=True):
        for field, difference in other.differences.items():
            rows.append(
                {
                    "model": other.name,
                    **_long_cells(difference),
                    "baseline_seed_spread": baseline.seed_spread[field],
                    "seed_spread": model.seed_spread[field],
                }
            )
        rows += [
            {
                "model": other.name,
                **_long_cells(part.difference),
                "attribute": part.attribute,
                "slice": part.level,
            }
            for part in other.slices
        ]
        rows += [
            {
                "model": other.name,
                "field": comparison.metric,
                "scenario_id": change.scenario_id,
                "baseline_mean": change.baseline,
                "mean": change.score,
                "difference": change.difference,
            }
            for change in (*other.losses, *other.gains)
        ]
    cells = [
        (0, tuple({**row, "baseline": comparison.baseline}.get(name) for name in _LONG_HEADER))
        for row in rows
    ]
    return Table(_LONG_HEADER, cells)


def _long_cells(difference: Difference) -> dict[str, Cell]:
    change = difference.difference
    return {
        "field": difference.field,
        "scenes": difference.n_scenes,
        "baseline_mean": difference.baseline,
        "mean": difference.mean,
        "difference": change.value,
        "low": change.low,
        "high": change.high,
        "p": difference.p,
        "p_holm": difference.p_holm,
        "wins": difference.wins,
        "ties": difference.ties,
        "losses": difference.losses,
        "spread": difference.spread,
        "effect": difference.effect,
        "detectable": difference.detectable,
        "scenes_needed": difference.scenes_needed,
    }
