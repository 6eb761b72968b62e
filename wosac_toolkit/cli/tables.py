"""Results as text: a table for people, JSON and CSV for machines, Markdown and LaTeX for papers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wosac_toolkit.results import Summary

FORMATS = ("table", "json", "csv", "markdown", "latex")

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, the first of which names the row.

    Attributes:
        header: name of each column.
        rows: (level, cells): a row of level 1 belongs to the row of level 0 above it.
        notes: lines to be read with the table.
        title: a line above the table.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[int, tuple[Cell, ...]]]
    notes: Sequence[str] = ()
    title: str = ""


def render(table: Table, format_: str) -> str:
    """A table as `table`, `csv`, `markdown` or `latex`, without a line break at its end.

    Numbers have 4 decimals, but in `csv` all digits; a None is `n/a`, in `csv` nothing. The title
    and the notes are comments in `latex` and absent in `csv`.
    """
    return _RENDERERS[format_](table)


def _text(table: Table) -> str:
    lines = [table.header, *(_shown(cells, "  " * level) for level, cells in table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    body = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    body.insert(1, "-" * max(len(line) for line in body))
    title = [table.title] if table.title else []
    return "\n".join([*title, *body, *(["", *table.notes] if table.notes else [])])


def _markdown(table: Table) -> str:
    lines = [table.header, ("---", *("---:" for _ in table.header[1:]))]
    lines += [_shown(cells, "&nbsp;&nbsp;" * level) for level, cells in table.rows]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    title = [f"**{table.title}**", ""] if table.title else []
    return "\n".join([*title, *body, *(line for note in table.notes for line in ("", note))])


def _latex(table: Table) -> str:
    body = [
        "\\quad " * level + " & ".join(map(_latex_text, _shown(cells, ""))) + r" \\"
        for level, cells in table.rows
    ]
    header = " & ".join(_latex_text(cell) for cell in table.header) + r" \\"
    columns = "l" + "r" * (len(table.header) - 1)
    return "\n".join(
        [
            *(f"% {note}" for note in (table.title, *table.notes) if note),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            header,
            r"\hline",
            *body,
            r"\hline",
            r"\end{tabular}",
        ]
    )


def _latex_text(cell: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in cell)
    # A hyphen before a number is a minus.
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)


_LATEX = {
    **{character: "\\" + character for character in "_%&#${}"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": "$<$",
    ">": "$>$",
}


def _csv(table: Table) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.header)
    for _, cells in table.rows:
        writer.writerow(["" if cell is None else cell for cell in cells])
    return stream.getvalue().rstrip("\n")


_RENDERERS = {"table": _text, "csv": _csv, "markdown": _markdown, "latex": _latex}


def _shown(cells: Sequence[Cell], indent: str) -> tuple[str, ...]:
    name, *values = cells
    return (f"{indent}{name}", *(_number(value) for value in values))


def _number(value: Cell) -> str:
    if value is None:
        return "n/a"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def counted(number: int, noun: str) -> str:
    """`1 scene`, `2 scenes`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def summary_text(summary: Summary, format_: str) -> str:
    """A summary of scores in one of `FORMATS`; `json` is the content of `summary.json`."""
    if format_ == "json":
        return summary.to_json().rstrip("\n")
    rows = _summary_rows(summary)
    if format_ == "csv":
        body = [(0, (*cells, summary.signature)) for _, cells in rows]
        return render(Table(("metric", "value", "scenes", "signature"), body), format_)
    if summary.left_out:
        return render(Table(("metric", "value", "scenes"), rows, _notes(summary)), format_)
    # The number of scenes is the same in all rows, and a note tells it.
    pairs = [(level, cells[:2]) for level, cells in rows]
    return render(Table(("metric", "value"), pairs, _notes(summary)), format_)


def _summary_rows(summary: Summary) -> list[tuple[int, tuple[Cell, ...]]]:
    """(level, (field, mean, scenes)) in the order of `field_tree`."""
    from wosac_toolkit.challenge import get_challenge
    from wosac_toolkit.results import field_tree

    means = {**summary.metrics, **summary.buckets}
    return [
        (level, (name, means[name], summary.n_averaged(name)))
        for level, name in field_tree(get_challenge(summary.challenge))
        # A field that this version of the metric does not have is no row.
        if means[name] is not None or name in summary.left_out
    ]


def _notes(summary: Summary) -> list[str]:
    from wosac_toolkit.errors import some_ids

    scenes = counted(summary.n_scenarios, "scene")
    rollouts = "differing numbers of" if summary.n_rollouts is None else summary.n_rollouts
    notes = [
        f"WOSAC {summary.challenge} metric ({summary.official_release}), {scenes}, "
        f"{rollouts} rollouts each"
    ]
    if summary.n_scenarios_without_rollouts or summary.n_rollouts_without_scenario:
        notes.append(
            f"passed over: scenarios without rollouts {summary.n_scenarios_without_rollouts}, "
            f"rollouts without scenario {summary.n_rollouts_without_scenario}"
        )
    by_reason: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    shown = {name for _, (name, *_) in _summary_rows(summary)}
    for name, left_out in summary.left_out.items():
        for reason, ids in left_out.reasons.items():
            if name in shown:
                by_reason.setdefault((reason, tuple(ids)), []).append(name)
    notes += [
        f"left out of {', '.join(names)}: {len(ids)} of {scenes}, {reason} ({some_ids(ids)})"
        for (reason, ids), names in by_reason.items()
    ]
    return [*notes, f"signature: {summary.signature}"]
