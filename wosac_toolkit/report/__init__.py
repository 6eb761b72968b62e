"""Runs of `wosac score` as one HTML file: `write_report`.

===========  =================================================================================
`model`      what a report says, from the folders of the runs
`scenes`     what it shows of single scenes, from their rollouts
`figures`    its figures as values
`page`       the HTML file
===========  =================================================================================

>>> from wosac_toolkit.report import write_report
>>> write_report(["before=runs/a", "after=runs/b0,runs/b1"], "report.html")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from wosac_toolkit import __version__
from wosac_toolkit.attributes import SLICINGS
from wosac_toolkit.challenge import get_challenge
from wosac_toolkit.compare import Model, compare_runs, read_models
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.leaderboard.board import load_entries
from wosac_toolkit.report.model import (
    BEHAVIOUR_FILE,
    Report,
    choose_beside,
    model_report,
    own_obstacles,
    watch_models,
)
from wosac_toolkit.report.page import GENERATOR, render_page
from wosac_toolkit.report.scenes import Wanted, choose_sample, look_at_scenes
from wosac_toolkit.workers import progress_bar

__all__ = ["BEHAVIOUR_FILE", "Report", "build_report", "render_page", "write_report"]

_MOST_MODELS = 8
_MOST_SCENES = 500
_MOST_WORST = 50


def write_report(
    runs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    title: str = "",
    beside: Sequence[str] | None = None,
    entries: str | os.PathLike[str] | None = None,
    scenes: int = 20,
    worst: int = 6,
    scenarios: str | None = None,
    missing: Literal["error", "intersect"] = "error",
    resamples: int = 10_000,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Write a report on runs of `wosac score` or `smart-r1 evaluate`.

    Of runs whose folder has a `BEHAVIOUR_FILE` it tells what the metric does not look at, too. The
    file holds all it needs, and appears whole or not at all. An older report is replaced.

    Args:
        runs: what `read_models` takes: folders, or `name=folder,folder` for several seeds. The
            first is the baseline that the others are compared with.
        out: the HTML file.
        title: of the page; the names of the runs where empty.
        beside: ids of leaderboard entries; None for a usual choice, see `choose_beside`.
        entries: folder of leaderboard entries; the published ones by default.
        scenes: how many scenes, drawn by `seed`, features are compared on; 0 for none.
        worst: how many of each model's worst scenes are shown; 0 for none.
        scenarios: where the scenes are now, if they were moved.
        missing: `intersect` compares the scenes that all runs have.
        resamples: draws of the bootstrap and of the randomisation.
        seed: of these draws, and of the choice of scenes.
        progress: show a bar on stderr.

    Raises:
        WosacError: a run that is not finished, runs that cannot be compared, a `BEHAVIOUR_FILE` of
            other rollouts, an unknown entry, a wrong argument, or `out` is something else than a
            report.
    """
    path = Path(out)
    _refuse_other_content(path)
    report = build_report(
        read_models(runs),
        title=title,
        beside=beside,
        entries=entries,
        scenes=scenes,
        worst=worst,
        scenarios=scenarios,
        missing=missing,
        resamples=resamples,
        seed=seed,
        progress=progress,
    )
    page = render_page(report)
    with atomic_write(path) as stream:
        stream.write(page)


def _refuse_other_content(path: Path) -> None:
    """Before anything is computed, make sure that the report can be written."""
    if not path.parent.is_dir():
        raise WosacError("no such folder", where=str(path.parent), mend="make it")
    if not path.exists():
        return
    head = b""
    if path.is_file():
        with path.open("rb") as stream:
            head = stream.read(4096)
    if not path.is_file() or (head and GENERATOR.encode() not in head):
        raise WosacError(
            "this is something else than a report", where=str(path), mend="give another --out"
        )


def build_report(
    models: Sequence[Model],
    *,
    title: str = "",
    beside: Sequence[str] | None = None,
    entries: str | os.PathLike[str] | None = None,
    scenes: int = 20,
    worst: int = 6,
    scenarios: str | None = None,
    missing: Literal["error", "intersect"] = "error",
    resamples: int = 10_000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """All that a report says; for the arguments and errors see `write_report`."""
    _check_arguments(models, scenes, worst, resamples, seed)
    challenge = get_challenge(models[0].runs[0].summary.challenge)
    comparison = None
    if len(models) > 1:
        # It refuses runs that cannot be compared, and comes first.
        comparison = compare_runs(
            models,
            slices=list(SLICINGS),
            largest=5,
            missing=missing,
            resamples=resamples,
            seed=seed,
        )
    told = tuple(
        model_report(model, worst=worst, missing=missing, resamples=resamples, seed=seed)
        for model in models
    )
    behaviours = watch_models(models, missing=missing, resamples=resamples, seed=seed)
    sample, n_scenes = choose_sample(models, scenes, seed)
    wanted = [
        Wanted(model, sample, [scene.scenario_id for scene in one.worst])
        for model, one in zip(models, told, strict=True)
    ]
    chosen = choose_beside(load_entries(entries), told, challenge.name, beside)
    n_looks = sum(len(want.scenario_ids) for want in wanted)
    with progress_bar(n_looks, what="looking at", show=progress) as bar:
        features, findings = look_at_scenes(
            wanted, challenge, n_scenes=n_scenes, scenarios=scenarios, count=bar.update
        )
    return Report(
        title=title or "WOSAC report: " + ", ".join(model.name for model in models),
        toolkit_version=__version__,
        challenge=challenge,
        models=told,
        comparison=comparison,
        behaviours=behaviours,
        beside=chosen,
        obstacles=own_obstacles(told, challenge.name),
        features=features,
        findings=findings,
        resamples=resamples,
        seed=seed,
    )


def _check_arguments(
    models: Sequence[Model], scenes: int, worst: int, resamples: int, seed: int
) -> None:
    if not 1 <= len(models) <= _MOST_MODELS:
        raise WosacError(f"a report is of 1 to {_MOST_MODELS} models, not {len(models)}")
    for what, value, low, high in (
        ("scenes whose features are compared", scenes, 0, _MOST_SCENES),
        ("worst scenes", worst, 0, _MOST_WORST),
        ("resamples", resamples, 100, 1_000_000),
        ("the seed", seed, 0, 2**63),
    ):
        if not low <= value <= high:
            raise WosacError(f"{what}: {value} is not between {low} and {high}")
