"""The entries of the leaderboard: where they lie, and who is compared with whom."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from wosac_toolkit.errors import FormatError, WosacError
from wosac_toolkit.leaderboard.entry import Entry, Remark, check_sums, parse_entry

_LARGEST_FILE = 1 << 20


def published_folder() -> Path:
    """The entries that come with this package; in a checkout, those at its top."""
    package = Path(__file__).parent
    installed = package / "entries"
    return installed if installed.is_dir() else package.parents[1] / "leaderboard" / "entries"


def read_entry(path: Path) -> Entry:
    """Read one file.

    Raises:
        FormatError: it is no entry.
    """
    with path.open("rb") as stream:
        content = stream.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise FormatError("larger than 1 MiB, which no entry is", where=str(path))
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise FormatError("not UTF-8 text", where=str(path)) from None
    return parse_entry(text, path.stem, str(path))


def load_entries(folder: str | os.PathLike[str] | None = None) -> list[Entry]:
    """All entries of a folder, best first (see `by_score`).

    Args:
        folder: of `*.json` files; by default the published entries that come with the package.

    Raises:
        WosacError: there are none.
        FormatError: a file is no entry; the first is named, `validate_folder` names all.
    """
    return by_score(read_entry(path) for path in _files(folder))


def _files(folder: str | os.PathLike[str] | None) -> list[Path]:
    directory = published_folder() if folder is None else Path(folder)
    files = sorted(p for p in directory.glob("*.json") if not p.name.startswith("."))
    if not files:
        what = "no such folder" if not directory.is_dir() else "no entries (*.json) here"
        raise WosacError(what, where=str(directory), mend="give --entries DIR")
    return files


def validate_folder(folder: str | os.PathLike[str] | None = None) -> tuple[int, list[Remark]]:
    """Check every entry of a folder: its form, its sums, and whether it is there twice.

    Returns:
        How many files there are, and what there is to say of them, in the order of their names.

    Raises:
        WosacError: there are none.
    """
    files = _files(folder)
    remarks = []
    first: dict[tuple[str, ...], str] = {}
    for path in files:
        try:
            entry = read_entry(path)
        except FormatError as error:
            place = error.where.replace(str(path), path.name, 1)
            remarks.append(Remark("error", place, error.what))
            continue
        remarks.extend(check_sums(entry, path.name))
        scored = (entry.challenge, entry.split, str(entry.n_scenarios), entry.conditions)
        other = first.setdefault((entry.method.casefold(), *scored), path.name)
        if other != path.name:
            what = f"the same method, metric and scenes as {other}"
            remarks.append(Remark("error", path.name, what))
    return len(files), remarks


def by_score(entries: Iterable[Entry]) -> list[Entry]:
    """Entries in the order of the board: those of the latest metric first, then the best."""
    return sorted(entries, key=lambda e: (_age(e), -e.score, e.id))


def _age(entry: Entry) -> int:
    return -int(entry.challenge) if entry.challenge.isdigit() else 0


def whole_split(entry: Entry) -> str | None:
    """The split that an entry was scored on by the official rules, None where it was otherwise."""
    return None if entry.obstacles else entry.split


def ranks(entries: Iterable[Entry]) -> dict[str, int]:
    """Entry id -> its place among those it can be compared with; equal scores share one.

    Places are counted within a version of the metric and a whole split. Entries that were scored
    otherwise have none, nor have yardsticks such as the log itself, nor the reader's own runs.
    """
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        split = whole_split(entry)
        if split is not None and not entry.reference and not entry.local:
            groups[entry.challenge, split].append(entry)
    return {
        entry.id: 1 + sum(other.score > entry.score for other in group)
        for group in groups.values()
        for entry in group
    }


def select(entries: Iterable[Entry], challenge: str, split: str) -> list[Entry]:
    """The entries of one version of the metric, best first, and after them what else is local.

    Args:
        entries: the board.
        challenge: version of the metric.
        split: `test` or `validation`, for those on the whole of it; `all` for all.
    """
    entries = list(entries)
    shown = [
        entry
        for entry in entries
        if entry.challenge == challenge and split in ("all", whole_split(entry))
    ]
    # Runs of the reader's own are never hidden: `obstacles_beside` says what keeps them from
    # comparison.
    shown += [entry for entry in entries if entry.local and entry not in shown]
    return sorted(shown, key=lambda e: (e.challenge != challenge, -e.score, e.id))


def obstacles_beside(entry: Entry, challenge: str, split: str) -> tuple[str, ...]:
    """Why an entry cannot be compared with those that `select` shows; empty where it can."""
    why = list(entry.obstacles)
    if entry.challenge != challenge:
        why.insert(0, f"{entry.challenge} metric")
    if not entry.obstacles and split not in ("all", entry.split):
        why.append(f"{entry.split} split")
    return tuple(why)
