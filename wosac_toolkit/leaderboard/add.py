"""The entry of a run of `wosac score`."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from wosac_toolkit.challenge import CHALLENGES, SCENARIO_GEN
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.leaderboard.entry import (
    SCHEMA_VERSION,
    SPLIT_SIZES,
    VALUE_FIELDS,
    Conflict,
    Entry,
    parse_entry,
    sums,
)
from wosac_toolkit.results import BUCKET_SOURCES, read_run

if TYPE_CHECKING:
    import pandas as pd

    from wosac_toolkit.results import Run, Summary

#: Below so many scenes the normal distribution says little of the mean's.
_FEWEST_FOR_INTERVAL = 30
_QUANTILE = NormalDist().inv_cdf(0.975)


def entry_of_run(
    run: str | os.PathLike[str],
    name: str,
    *,
    local: bool = False,
    details: Mapping[str, Any] | None = None,
) -> Entry:
    """The entry of a finished run, with 95 % intervals of the means over its scenes.

    The means are computed anew from `scores.parquet` and must be those of `summary.json`.

    Args:
        run: folder of `wosac score --out`.
        name: of the method.
        local: take runs on any scenes; without it only those on a whole split of WOMD, with as many
            rollouts as the challenge asks for.
        details: further fields of the entry's file: `paper`, `code`, `parameters`, `date`, `venue`,
            `notes`.

    Raises:
        WosacError: the run is not finished or damaged, its signature is none of `wosac score`, it
            is on a part of a split and `local` is not set, or a field is not allowed.
    """
    finished = read_run(run)
    summary = finished.summary
    where = str(run)
    _check_signature(summary, where)
    split = _whole_split(summary)
    if not local:
        _refuse_partial(summary, split, where)
    values, intervals = _means(finished)
    fields = {
        **(details or {}),
        "schema_version": SCHEMA_VERSION,
        "method": name,
        "challenge": summary.challenge,
        "split": split or "other",
        "n_scenarios": summary.n_scenarios,
        "conditions": _conditions(summary, split),
        "tier": "re-scored from rollouts",
        "results": {
            "values": values,
            "source": {"text": f"wosac score {summary.toolkit_version}"},
            "intervals": intervals,
        },
        "local": local,
        "signature": summary.signature,
    }
    entry = parse_entry(json.dumps(fields), f"{'local-' * local}{_slug(summary, name)}", where)
    return _note_left_out(entry) if summary.left_out else entry


def _note_left_out(entry: Entry) -> Entry:
    """Note the sums that do not come out because their means are over different scenes."""
    note = "The means are over different scenes, since some scenes are left out of some of them."
    conflicts = tuple(
        Conflict(note, total.field, total.difference)
        for total in sums(entry.results, entry.challenge)
        if not total.agrees
    )
    return replace(entry, results=replace(entry.results, conflicts=conflicts))


def _slug(summary: Summary, name: str) -> str:
    split = _whole_split(summary) or f"{summary.n_scenarios}-scenes"
    words = re.sub(r"[^a-z0-9]+", "-", f"{summary.challenge} {split} {name}".lower())
    return words.strip("-")[:100].rstrip("-")


def _check_signature(summary: Summary, where: str) -> None:
    """Refuse a signature that another scorer wrote, or that does not fit its own summary."""
    program, *parts = summary.signature.split("|")
    pairs = [part.partition(":") for part in parts]
    stated = {name: value for name, _, value in pairs}
    expected = {
        "metric": summary.challenge,
        "rollouts": str(summary.n_rollouts or stated.get("rollouts")),
        "scenes": str(summary.n_scenarios),
        "list": summary.scenario_list_sha256[:8],
        "version": summary.toolkit_version,
    }
    unknown = sorted(set(stated) - {*expected, "left_out"})
    if program != "wosac" or unknown or len(stated) != len(pairs):
        what = f" ({', '.join(unknown)})" if unknown else ""
        raise WosacError(
            f"unknown signature{what}: {summary.signature[:200]!r}",
            where=where,
            mend="only runs of wosac score with the toolkit's own metric have a place here",
        )
    if summary.challenge == SCENARIO_GEN.name:
        raise WosacError(
            "the leaderboard is of Sim Agents, and this is a run of Scenario Generation",
            where=where,
        )
    if summary.challenge not in CHALLENGES:
        raise WosacError(f"unknown version of the metric {summary.challenge!r}", where=where)
    wrong = [name for name, value in expected.items() if stated.get(name) != value]
    if wrong:
        raise WosacError(
            f"the signature does not fit the summary in {', '.join(wrong)}: "
            f"{summary.signature[:200]!r}",
            where=where,
            mend="score it again",
        )


def _whole_split(summary: Summary) -> str | None:
    """The split that a run has as many scenes as, None where it is part of one or has others."""
    sizes = ((split, size) for split, all_ in SPLIT_SIZES.items() for size in all_)
    return next((split for split, size in sizes if size == summary.n_scenarios), None)


def _refuse_partial(summary: Summary, split: str | None, where: str) -> None:
    wanted = CHALLENGES[summary.challenge].n_rollouts
    if split is None:
        what = f"{summary.n_scenarios:,} scenes are no whole split of WOMD (" + "; ".join(
            f"{name} {' or '.join(f'{size:,}' for size in sizes)}"
            for name, sizes in SPLIT_SIZES.items()
        )
        what += ")"
    elif summary.n_rollouts != wanted:
        what = f"the challenge asks for {wanted} rollouts of every scene"
    elif "metametric" in summary.left_out:
        n_left_out = summary.left_out["metametric"].n_scenarios
        what = f"the meta-metric leaves out {n_left_out:,} scenes"
    else:
        return
    raise WosacError(what, where=where, mend="add it with --local")


def _conditions(summary: Summary, split: str | None) -> str:
    wanted = CHALLENGES[summary.challenge].n_rollouts
    parts = []
    if split is None:
        parts.append(
            f"{summary.n_scenarios:,} other scenes, list {summary.scenario_list_sha256[:8]}"
        )
    if summary.n_rollouts is None:
        parts.append("differing numbers of rollouts a scene")
    elif summary.n_rollouts != wanted:
        parts.append(f"{summary.n_rollouts} rollouts a scene")
    if "metametric" in summary.left_out:
        n_left_out = summary.left_out["metametric"].n_scenarios
        parts.append(f"{n_left_out:,} scenes left out of the mean")
    return ", ".join(parts)


def _means(run: Run) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Mean and interval of each number of an entry, from the rows of the scenes."""
    stated = {**run.summary.metrics, **run.summary.buckets}
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for field in VALUE_FIELDS:
        scores = _finite(run.scores[BUCKET_SOURCES.get(field, field)])
        if not scores:
            continue
        mean = math.fsum(scores) / len(scores)
        given = stated.get(field)
        if type(given) is not float or not math.isclose(mean, given, rel_tol=1e-9, abs_tol=1e-12):
            raise WosacError(
                f"{field} is {given} in summary.json and {mean} in scores.parquet",
                where=str(run.directory),
                mend="score it again",
            )
        values[field] = mean
        if len(scores) >= _FEWEST_FOR_INTERVAL:
            variance = math.fsum((s - mean) ** 2 for s in scores) / (len(scores) - 1)
            half = _QUANTILE * math.sqrt(variance / len(scores))
            intervals[field] = max(0.0, mean - half), mean + half
    return values, intervals


def _finite(column: pd.Series[float]) -> list[float]:
    return [value for value in column.tolist() if value is not None and math.isfinite(value)]


def add_entry(entry: Entry, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Write an entry into a folder of entries.

    Returns:
        Its file.

    Raises:
        WosacError: there is no such folder, or the entry is there already and `overwrite` is not
            set.
    """
    path = Path(folder) / f"{entry.id}.json"
    if not path.parent.is_dir():
        raise WosacError(
            "no such folder", where=str(folder), mend="make it, or give another --entries DIR"
        )
    if path.exists() and not overwrite:
        raise WosacError("the entry exists", where=str(path), mend="--overwrite replaces it")
    with atomic_write(path) as stream:
        stream.write(entry.to_json().encode())
    return path
