"""`wosac leaderboard`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wosac_toolkit.cli.help import Command, Group
from wosac_toolkit.cli.tables import FORMATS, Table, counted, render

if TYPE_CHECKING:
    from wosac_toolkit.cli.tables import Cell
    from wosac_toolkit.leaderboard.entry import Entry

_YEARS = ("2025", "2024", "2023", "other")
_COLUMNS = {
    "realism": "realism_meta_metric",
    "kinematic": "kinematic_metrics",
    "interactive": "interactive_metrics",
    "map_based": "map_based_metrics",
    "min_ade": "min_ade",
}

_entries_option = click.option(
    "--entries",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Entries (*.json) to take in place of the published ones that come with this package.",
)
_runs_option = click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="[NAME=]DIR",
    help="A run of wosac score to show beside the entries; may be repeated. Without a name it has "
    "that of its folder.",
)


@click.group(
    "leaderboard",
    cls=Group,
    examples=(
        "wosac leaderboard show --year 2025 --split test",
        "wosac leaderboard build --run mine=runs/my_model --out board/",
        "wosac leaderboard add runs/my_model --name 'My model' --entries leaderboard/entries",
    ),
)
def command() -> None:
    """Published WOSAC results, with your runs beside them."""


@command.command(
    "show",
    cls=Command,
    examples=(
        "wosac leaderboard show",
        "wosac leaderboard show --year 2024 --split all --format csv",
        "wosac leaderboard show --split validation --run mine=runs/my_model",
    ),
)
@click.option(
    "--year",
    type=click.Choice(_YEARS),
    default="2025",
    show_default=True,
    help="Version of the metric; other: results of none of them.",
)
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "all"]),
    default="test",
    show_default=True,
    help="The scenes; all: also parts of a split, other scenes, and where they are not stated.",
)
@_runs_option
@_entries_option
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="What is printed; json has all that is known of an entry.",
)
def show(year: str, split: str, runs: Sequence[str], entries: Path | None, format_: str) -> None:
    """Print the board.

    Entries have a place where they can be compared: one version of the metric, one whole split.
    Those that were scored otherwise follow without a place, and the last column says why. Of a
    split, only whole ones are shown, and your runs.
    """
    from wosac_toolkit.leaderboard.board import load_entries, ranks, select

    board = [*load_entries(entries), *_local_entries(runs)]
    click.echo(_shown(select(board, year, split), ranks(board), year, split, format_))


def _shown(
    entries: Sequence[Entry], places: Mapping[str, int], year: str, split: str, format_: str
) -> str:
    from wosac_toolkit.leaderboard.board import obstacles_beside
    from wosac_toolkit.leaderboard.entry import number_text, parameters_text

    rows: list[dict[str, Any]] = []
    table_rows: list[tuple[int, tuple[Cell, ...]]] = []
    exact = format_ == "csv"
    for entry in entries:
        why = obstacles_beside(entry, year, split)
        place: Cell = None if why else places.get(entry.id)
        fields = {"id": entry.id, "place": place, "obstacles": why}
        rows.append({**fields, **json.loads(entry.to_json())})
        remarks = [f"not comparable: {', '.join(why)}"] if why else []
        remarks += ["local run"] * entry.local + ["reference"] * entry.reference
        remarks += ["conflict noted"] * bool(entry.conflicts)
        remarks += ["other figures noted"] * bool(entry.other_results)
        parameters: Cell = entry.parameters
        numbers: list[Cell] = [entry[field] for field in _COLUMNS.values()]
        if not exact:
            parameters = "-" if entry.parameters is None else parameters_text(entry.parameters)
            numbers = [number_text(entry.results, field) or "-" for field in _COLUMNS.values()]
            place = place or "-"
        last = (parameters, entry.split, entry.tier, "; ".join(remarks))
        table_rows.append((0, (entry.method, place, *numbers, *last)))
    if format_ == "json":
        return json.dumps(rows, indent=2)
    header = ("method", "place", *_COLUMNS, "parameters", "split", "tier", "remarks")
    metric = "metrics other than the official ones" if year == "other" else f"WOSAC {year} metric"
    where = "all splits" if split == "all" else f"the whole {split} split"
    return render(Table(header, table_rows, [f"{metric}, {where}: {_counted(len(rows))}"]), format_)


def _local_entries(runs: Iterable[str]) -> list[Entry]:
    from wosac_toolkit.errors import WosacError
    from wosac_toolkit.leaderboard.add import entry_of_run

    entries: dict[str, Entry] = {}
    for run in runs:
        name, folder = _name_and_folder(run)
        entry = entry_of_run(folder, name, local=True)
        if entry.id in entries:
            raise WosacError(
                f"two runs are called {name!r}", where=run, mend="name them: --run NAME=DIR"
            )
        entries[entry.id] = entry
    return list(entries.values())


def _name_and_folder(run: str) -> tuple[str, str]:
    name, equals, folder = run.partition("=")
    if equals and name and not Path(run).exists():
        return name, folder
    return Path(run).resolve().name, run


@command.command(
    "add",
    cls=Command,
    examples=(
        "wosac leaderboard add runs/my_model --name 'My model' --parameters 7M",
        "wosac leaderboard add runs/trial --name Trial --local --entries my_entries/",
    ),
)
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", required=True, help="Of the method.")
@click.option("--paper", metavar="URL", help="Address of its report.")
@click.option("--code", metavar="URL", help="Address of its code.")
@click.option("--venue", metavar="TEXT", help="Where the report was published.")
@click.option("--parameters", metavar="N", help="Of the model: 7M, 0.5B, 120000.")
@click.option("--date", metavar="YYYY-MM[-DD]", help="When it was published.")
@click.option("--note", "notes", multiple=True, metavar="TEXT", help="A sentence; may be repeated.")
@click.option(
    "--local",
    is_flag=True,
    help="Take a run on any scenes, and mark it as local. Without this a run must be on a whole "
    "split of WOMD.",
)
@click.option(
    "--entries",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    default=Path("leaderboard/entries"),
    show_default=True,
    help="Folder that gets the entry.",
)
@click.option("--overwrite", is_flag=True, help="Replace an entry that is there already.")
def add(
    run: Path,
    name: str,
    paper: str | None,
    code: str | None,
    venue: str | None,
    parameters: str | None,
    date: str | None,
    notes: Sequence[str],
    local: bool,
    entries: Path,
    overwrite: bool,
) -> None:
    """Make an entry of a run of wosac score.

    RUN is the folder that wosac score --out wrote. Its means are computed anew from the rows of its
    scenes, with 95 % intervals. Refused are runs on a part of a split and runs whose signature is
    not that of wosac score.
    """
    from wosac_toolkit.leaderboard.add import add_entry, entry_of_run
    from wosac_toolkit.leaderboard.entry import parse_parameters

    details: dict[str, Any] = {
        "paper": None if paper is None else {"text": paper, "url": paper},
        "code": code,
        "venue": venue,
        "parameters": None if parameters is None else parse_parameters(parameters),
        "date": date,
        "notes": list(notes),
    }
    given = {field: value for field, value in details.items() if value is not None}
    entry = entry_of_run(run, name, local=local, details=given)
    click.echo(f"added: {add_entry(entry, entries, overwrite)}")


@command.command(
    "validate",
    cls=Command,
    examples=("wosac leaderboard validate", "wosac leaderboard validate --entries my_entries/"),
)
@_entries_option
@click.pass_context
def validate(ctx: click.Context, entries: Path | None) -> None:
    """Check every entry.

    Checked are the form of each file, and that buckets and meta-metric are the weighted sums of
    their parts, as far as rounding allows. Where they are not and the entry notes the conflict,
    that is a warning; errors end with exit code 1.
    """
    from wosac_toolkit.leaderboard.board import validate_folder

    n_files, remarks = validate_folder(entries)
    for remark in remarks:
        click.echo(str(remark))
    n_errors = sum(remark.level == "error" for remark in remarks)
    n_warnings = len(remarks) - n_errors
    click.echo(
        f"{_counted(n_files)}: {counted(n_errors, 'error')}, {counted(n_warnings, 'warning')}"
    )
    ctx.exit(1 if n_errors else 0)


@command.command(
    "build",
    cls=Command,
    examples=(
        "wosac leaderboard build --out board/",
        "wosac leaderboard build --run mine=runs/my_model --run runs/baseline --out board/",
    ),
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    required=True,
    help="Folder of the page; a page that is there already is replaced.",
)
@_runs_option
@_entries_option
def build(out: Path, runs: Sequence[str], entries: Path | None) -> None:
    """Build the page that shows the board.

    Open its index.html in a browser, no network needed: a table to sort, filter and search, a tab a
    version of the metric, a page an entry. Your runs stand beside the published results and are
    marked where they cannot be compared.
    """
    from wosac_toolkit.leaderboard.board import load_entries
    from wosac_toolkit.leaderboard.pages import build_pages

    board = [*load_entries(entries), *_local_entries(runs)]
    build_pages(board, out)
    click.echo(f"{_counted(len(board))}: {out / 'index.html'}")


def _counted(n: int) -> str:
    return f"{n} {'entry' if n == 1 else 'entries'}"
