"""The static page of the leaderboard: HTML, one style sheet and one script, without a network.

::

    index.html        the table
    entries/<id>.html a page an entry
    board.css, board.js

The table is whole without the script, which adds tabs, filters, search and sorting. The same
entries give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from wosac_toolkit.challenge import CHALLENGES
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.leaderboard.board import by_score, ranks, whole_split
from wosac_toolkit.leaderboard.entry import (
    BUCKETS,
    DISPLACEMENTS,
    META_METRIC,
    METRIC_VERSIONS,
    RATES,
    TIERS,
    VALUE_FIELDS,
    Entry,
    Results,
    decimals,
    number_text,
    parameters_text,
    sums,
)

_GENERATOR = '<meta name="generator" content="wosac leaderboard">'
_STATIC = ("board.css", "board.js")

#: Columns of numbers: field -> (head, what it says at length, whether larger is better).
_COLUMNS = {
    META_METRIC: ("Realism", "Realism meta-metric", True),
    "kinematic_metrics": ("Kinematic", "Kinematic metrics", True),
    "interactive_metrics": ("Interactive", "Interactive metrics", True),
    "map_based_metrics": ("Map-based", "Map-based metrics", True),
    "min_ade": ("minADE", "Minimum average displacement error, metres", False),
    "simulated_collision_rate": ("Collisions", "Simulated collision rate", False),
    "simulated_offroad_rate": ("Off-road", "Simulated off-road rate", False),
    "simulated_traffic_light_violation_rate": (
        "Red lights",
        "Simulated traffic-light violation rate",
        False,
    ),
}

#: How far the score of one model was seen to move with the seed of its rollouts, on 1,680 scenes.
_SEED_SPREAD = 0.0008

_TIER_MEANING = {
    "official server": "the numbers are those of the official server, as the source quotes them.",
    "re-scored from rollouts": "this toolkit computed the numbers from the rollouts themselves.",
    "self-reported": "the authors, or others who compare with them, computed the numbers.",
}


def build_pages(entries: Iterable[Entry], out: str | os.PathLike[str]) -> None:
    """Write the page of a board into a folder, and delete what an earlier one left there.

    Args:
        entries: the board.
        out: the folder; made where absent. A folder with anything but such a page is refused.

    Raises:
        WosacError: two entries have one id, or the folder holds something else.
    """
    board = by_score(entries)
    pages = render_pages(board)
    folder = Path(out)
    _refuse_other_content(folder)
    (folder / "entries").mkdir(parents=True, exist_ok=True)
    # The index is written last: it never leads to a page that is not there.
    for name in sorted(pages, key=lambda name: name == "index.html"):
        with atomic_write(folder / name) as stream:
            stream.write(pages[name])
    for page in (folder / "entries").glob("*.html"):
        if f"entries/{page.name}" not in pages:
            page.unlink()


def _refuse_other_content(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    index = folder / "index.html"
    if not index.is_file() or _GENERATOR not in index.read_text("utf-8", errors="replace"):
        raise WosacError(
            "the folder holds something else than a page of wosac leaderboard",
            where=str(folder),
            mend="give an empty or a new --out DIR",
        )


def render_pages(board: Sequence[Entry]) -> dict[str, bytes]:
    """Path -> content of every file of the page.

    Args:
        board: the entries in the order of the table.

    Raises:
        WosacError: two entries have one id.
    """
    import jinja2

    by_id = {entry.id: entry for entry in board}
    if len(by_id) != len(board):
        twice = sorted(e.id for e in board if by_id[e.id] is not e)
        raise WosacError(f"two entries have the id {twice[0]!r}", mend="rename one")
    here = files(__package__)
    templates = {
        path.name: path.read_text("utf-8")
        for path in (here / "templates").iterdir()
        if path.name.endswith(".html")
    }
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    places = ranks(board)
    best = _best(board)
    rows = [_row(entry, places, best) for entry in board]
    years = [year for year in METRIC_VERSIONS if any(e.challenge == year for e in board)]
    index = environment.get_template("index.html").render(
        rows=rows,
        columns=_COLUMNS,
        rates=RATES,
        years=years,
        tiers=[tier for tier in TIERS if any(e.tier == tier for e in board)],
        n_local=sum(entry.local for entry in board),
        tier_meaning=_TIER_MEANING,
        seed_spread=_SEED_SPREAD,
    )
    pages = {name: (here / "static" / name).read_bytes() for name in _STATIC}
    pages["index.html"] = index.encode()
    template = environment.get_template("entry.html")
    for entry, row in zip(board, rows, strict=True):
        text = template.render(**_entry_page(entry, row))
        pages[f"entries/{entry.id}.html"] = text.encode()
    return pages


def _best(board: Iterable[Entry]) -> dict[tuple[str, str], tuple[float, int]]:
    """Version and whole split -> the best published score, and how many entries have a place."""
    places = ranks(board)
    groups: dict[tuple[str, str], list[float]] = {}
    for entry in board:
        if entry.id in places:
            groups.setdefault((entry.challenge, entry.split), []).append(entry.score)
    return {group: (max(scores), len(scores)) for group, scores in groups.items()}


def _row(
    entry: Entry,
    places: Mapping[str, int],
    best: Mapping[tuple[str, str], tuple[float, int]],
) -> dict[str, Any]:
    """What the templates say of an entry in the table."""
    split = whole_split(entry)
    leader, n_placed = best.get((entry.challenge, split or ""), (None, 0))
    place = places.get(entry.id)
    behind = None if leader is None or place in (None, 1) else leader - entry.score
    words = (entry.method, entry.venue, entry.conditions, entry.paper and entry.paper.text)
    return {
        "entry": entry,
        "scored_on": split or "otherwise",
        "place": place,
        "n_placed": n_placed,
        "behind": None if behind is None else f"{behind:.4f}",
        "near": behind is not None and behind <= _SEED_SPREAD,
        "texts": {field: number_text(entry.results, field) for field in VALUE_FIELDS},
        "interval": _interval(entry.results, META_METRIC),
        "scenes": {"other": "other scenes", "not stated": "split not stated"}.get(
            entry.split, entry.split
        ),
        # A run of the reader's own has it under its name.
        "otherwise": "" if entry.local else ", ".join(_told_beside_split(entry)),
        "parameters": None if entry.parameters is None else parameters_text(entry.parameters),
        "search": " ".join(word for word in words if word).casefold(),
    }


def _told_beside_split(entry: Entry) -> list[str]:
    return [reason for reason in entry.obstacles if reason != "split not stated"]


def _interval(results: Results, field: str) -> str | None:
    ends = results.intervals.get(field)
    # A hyphen would read as a minus sign.
    return None if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def _entry_page(entry: Entry, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the template says of an entry on its own page."""
    sets = [entry.results, *entry.other_results]
    names = {field: name.lower() for _, field, name in _fields(entry.challenge)}
    return {
        **row,
        "tier_meaning": _TIER_MEANING[entry.tier],
        "sets": sets,
        "numbers": [
            {
                "name": name,
                "level": level,
                "texts": [_full_text(results, field) for results in sets],
                "differs": [_differs(entry.results, results, field) for results in sets],
                "interval": _interval(entry.results, field),
                # How far along a bar from 0 to 1; displacements have none.
                "share": entry[field] if field not in DISPLACEMENTS else None,
            }
            for level, field, name in _fields(entry.challenge)
            if any(field in results.values for results in sets)
        ],
        "sums": [
            {
                "source": number,
                "field": names[total.field],
                "parts": ", ".join(names[part] for part in total.parts),
                "printed": _full_text(results, total.field),
                "computed": f"{total.computed:.{digits}f}",
                "difference": f"{total.difference:+.{digits}f}",
                "agrees": total.agrees,
            }
            for number, results in enumerate(sets, start=1)
            for total in sums(results, entry.challenge)
            for digits in [min(5, 1 + decimals(results.values, total.field))]
        ],
    }


def _full_text(results: Results, field: str) -> str:
    """A number as it was printed; of one with all its digits, the first four."""
    printed = field in results.values and decimals(results.values, field) <= 6
    return number_text(results, field, most=6 if printed else 4)


def _differs(shown: Results, results: Results, field: str) -> bool:
    both = field in shown.values and field in results.values
    return both and shown.values[field] != results.values[field]


def _fields(challenge: str) -> list[tuple[int, str, str]]:
    """(level, field, name) of all numbers, the components below their bucket."""
    version = CHALLENGES.get(challenge, CHALLENGES["2025"])
    fields = [(0, META_METRIC, "Realism meta-metric")]
    for bucket in BUCKETS:
        fields.append((0, bucket, _COLUMNS[bucket][1]))
        fields += [
            (1, c.field, c.field.removesuffix("_likelihood").replace("_", " "))
            for c in version.components
            if f"{c.bucket}_metrics" == bucket
        ]
    fields.append((0, "min_ade", "minADE (m)"))
    fields.append((0, "average_displacement_error", "ADE (m)"))
    return [*fields, *((0, rate, _COLUMNS[rate][1]) for rate in RATES)]
