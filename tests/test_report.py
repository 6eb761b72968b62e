from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find_chromium
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from wosac_toolkit.attributes import MANOEUVRES, SLICINGS, SceneAttributes
from wosac_toolkit.behaviour import measure_dataset, read_behaviours, watch, write_behaviours
from wosac_toolkit.challenge import get_challenge
from wosac_toolkit.compare import compare_runs, read_models
from wosac_toolkit.errors import WosacError
from wosac_toolkit.leaderboard.board import load_entries
from wosac_toolkit.results import SCORE_FIELDS, Request, SceneResult, summarise, write_run
from wosac_toolkit.scoring import score_dataset
from wosac_toolkit.simulation import simulate_dataset
from wosac_toolkit.synthetic import generate_scenarios

pytest.importorskip("jinja2", reason="the page needs jinja2, of the extra 'report'")
pytest.importorskip("matplotlib", reason="pictures need matplotlib, of the extra 'report'")

from wosac_toolkit import report as report_package
from wosac_toolkit.cli.report import command
from wosac_toolkit.features import compute_features
from wosac_toolkit.io.rollouts import load_rollouts
from wosac_toolkit.io.scenarios import load_scenarios, write_scenarios
from wosac_toolkit.report import (
    BEHAVIOUR_FILE,
    build_report,
    render_page,
    scenes,
    write_report,
)
from wosac_toolkit.report.figures import axis
from wosac_toolkit.report.model import Report, choose_beside, own_obstacles

META = "realism_meta_metric"
EVIL = "<img src=x onerror=\"document.title='evil'\"><script>document.title='evil'</script>'\"&amp;"


# --------------------------------------------------------------------------------------------------
# Runs


def rows(values: Sequence[float], ids: Sequence[str] | None = None) -> list[SceneResult]:
    """A scene a value, which all of its fields have."""
    return [
        SceneResult(
            scenario_id=f"s{k:04}" if ids is None else ids[k],
            values=tuple(float(v) for _ in SCORE_FIELDS),
            n_rollouts=32,
            n_sim_agents=5 + 7 * (k % 13),
            n_evaluated_agents=4,
            attributes=SceneAttributes(
                n_evaluated_vehicles=1 + k % 3,
                n_evaluated_pedestrians=k % 2,
                n_evaluated_cyclists=k // 2 % 2,
                has_traffic_lights=k % 3 == 0,
                sdc_at_intersection=k % 5 < 2,
                mean_speed=0.7 * (k % 20),
                sdc_manoeuvre=MANOEUVRES[k % 3],
            ),
            non_finite={} if np.isfinite(v) else {"metametric": "no agent is valid"},
        )
        for k, v in enumerate(values)
    ]


def a_run(folder: Path, scenes: Sequence[SceneResult], **request: Any) -> Path:
    """A run as `smart-r1 evaluate` leaves it: its rollouts are nowhere."""
    asked = {
        **dict(challenge="2025", engine="", toolkit_version="0.1.0"),
        **dict(rollouts=f"smart-{folder.name} top_k=48 seed=0", rollouts_files=""),
        **dict(scenarios="/nowhere", scenarios_files="", n_rollouts=32, per_agent=False),
        **dict(limit=None, scenario_ids=None, missing="error"),
        **request,
    }
    made = Request(**asked)
    write_run(folder, summarise(scenes, made, get_challenge(made.challenge)), scenes)
    return folder


def build(*runs: Any, **options: Any) -> Report:
    return build_report(read_models(runs), **{"resamples": 200, **options})


def page_of(*runs: Any, **options: Any) -> str:
    return render_page(build(*runs, **options)).decode()


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(1).beta(5, 2, size=60)


@pytest.fixture(scope="module")
def before(values: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_run(tmp_path_factory.mktemp("runs") / "before", rows(values))


@pytest.fixture(scope="module")
def after(values: np.ndarray, before: Path) -> Path:
    """Better in almost every scene."""
    gains = np.random.default_rng(2).normal(0.03, 0.02, size=len(values))
    return a_run(before.parent / "after", rows(np.minimum(values + gains, 1)))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four scenes, two watched runs of baseline policies on them, and rollouts."""
    folder = tmp_path_factory.mktemp("simulated")
    (folder / "scenes").mkdir()
    write_scenarios(folder / "scenes" / "synthetic", generate_scenarios(4, seed=3), n_shards=1)
    for policy in ("constant_velocity", "log"):
        rollouts = folder / f"rollouts_{policy}"
        simulate_dataset(
            str(folder / "scenes"), rollouts, policy, n_rollouts=3, seed=0, workers=1, format_="npz"
        )
        score_dataset(
            rollouts, str(folder / "scenes"), out=folder / policy, n_rollouts=None, workers=1
        )
        measured = measure_dataset(rollouts, str(folder / "scenes"), workers=1)
        write_behaviours(folder / policy / BEHAVIOUR_FILE, measured.behaviours)
    return folder


@pytest.fixture(scope="module")
def seen(simulated: Path) -> Report:
    """A report on both policies, with features and pictures."""
    return build(simulated / "constant_velocity", simulated / "log", scenes=3, worst=2)


# --------------------------------------------------------------------------------------------------
# What it says of a run


def test_means_are_to_the_last_digit_those_that_score_prints(before: Path) -> None:
    (model,) = build(before).models
    summary = json.loads((before / "summary.json").read_text())
    assert model.means[META].value == summary["buckets"][META]
    for field, mean in model.means.items():
        assert mean.value == {**summary["metrics"], **summary["buckets"]}[field]
        assert mean.low is not None
        assert mean.high is not None
        assert mean.low < mean.value < mean.high


def test_intervals_of_means_are_those_of_compare(before: Path, after: Path) -> None:
    told = build(before, after)
    comparison = compare_runs(read_models([before, after]), resamples=200)
    for model, compared in zip(told.models, comparison.models, strict=True):
        assert dict(model.means) == dict(compared.means)


def test_several_seeds_have_their_mean_and_their_spread(before: Path, after: Path) -> None:
    (model,) = build(f"both={before},{after}").models
    single = [build(run).models[0].means[META].value for run in (before, after)]
    assert model.means[META].value == pytest.approx(np.mean(single), abs=1e-12)
    assert model.seed_spread[META] == pytest.approx(np.std(single, ddof=1), abs=1e-12)
    assert "Mean of 2 seeds" in page_of(f"both={before},{after}")


def test_the_distribution_counts_every_scene_in_the_bin_that_begins_at_its_score(
    tmp_path: Path,
) -> None:
    (model,) = build(a_run(tmp_path / "r", rows([0.0, 0.019, 0.02, 0.58, 0.58, 1.0]))).models
    assert model.distribution is not None
    counts = {k: n for k, n in enumerate(model.distribution.counts) if n}
    assert counts == {0: 2, 1: 1, 29: 2, 49: 1}
    assert model.distribution.quantiles[0] == 0.0
    assert model.distribution.quantiles[-1] == 1.0
    assert sum(model.distribution.shares) == pytest.approx(1)


def test_the_slices_of_an_attribute_hold_every_scene_once(before: Path, values: np.ndarray) -> None:
    (model,) = build(before).models
    for attribute in SLICINGS:
        parts = [part for part in model.slices if part.attribute == attribute]
        assert sum(part.n_scenes for part in parts) == len(values)
        mean = sum(part.n_scenes * part.mean.value for part in parts) / len(values)
        assert mean == pytest.approx(values.mean(), abs=1e-12)


def test_the_worst_scenes_come_in_order_with_what_each_component_takes_off(
    before: Path, values: np.ndarray
) -> None:
    (model,) = build(before, worst=5).models
    assert [scene.score for scene in model.worst] == sorted(values)[:5]
    for scene in model.worst:
        assert sum(cost.loss for cost in scene.costs) == pytest.approx(1 - scene.score)
        assert [c.loss for c in scene.costs] == sorted((c.loss for c in scene.costs), reverse=True)
    assert build(before, worst=0).models[0].worst == ()


def test_scenes_without_a_finite_score_are_left_out_and_told(tmp_path: Path) -> None:
    run = a_run(tmp_path / "r", rows([0.5, float("nan"), 0.7, 0.6]))
    told = build(run)
    (model,) = told.models
    assert model.means[META].value == pytest.approx(0.6)
    assert model.left_out[META] == 1
    assert [scene.scenario_id for scene in model.worst] == ["s0000", "s0003", "s0002"]
    assert "no agent is valid" in render_page(told).decode()


def test_a_run_without_any_finite_score_is_told_to_have_none(tmp_path: Path) -> None:
    page = page_of(a_run(tmp_path / "r", rows([float("nan")] * 3)))
    assert "No scene of r has a finite score." in page
    Elements(page)


def test_a_single_scene_has_no_interval(tmp_path: Path) -> None:
    told = build(a_run(tmp_path / "r", rows([0.5])))
    assert (told.models[0].means[META].low, told.models[0].means[META].high) == (None, None)
    assert "95 % interval 0" not in render_page(told).decode()


@pytest.mark.parametrize("challenge", ["2023", "2024", "2025"])
def test_every_version_of_the_metric_has_its_own_components(tmp_path: Path, challenge: str) -> None:
    page = page_of(a_run(tmp_path / "r", rows([0.5, 0.6, 0.7]), challenge=challenge))
    assert ("Traffic light violation" in page) == (challenge == "2025")
    assert f"WOSAC {challenge} metric" in page


# --------------------------------------------------------------------------------------------------
# Several runs


def test_runs_are_compared_with_the_first(before: Path, after: Path) -> None:
    told = build(before, after)
    comparison = compare_runs(
        read_models([before, after]), slices=list(SLICINGS), largest=5, resamples=200
    )
    assert told.comparison == comparison
    page = render_page(told).decode()
    assert "after is better than before: realism meta-metric" in page
    assert "Paired by scene, over the 60 scenes that all runs have" in page


def test_runs_that_cannot_be_compared_are_refused(before: Path, tmp_path: Path) -> None:
    other = a_run(tmp_path / "other", rows([0.5, 0.6, 0.7]))
    with pytest.raises(WosacError, match="different scenes"):
        build(before, other)
    assert build(before, other, missing="intersect").comparison is not None
    old = a_run(tmp_path / "old", rows([0.5, 0.6]), challenge="2024")
    new = a_run(tmp_path / "new", rows([0.5, 0.6]))
    with pytest.raises(WosacError, match="different versions"):
        build(old, new)
    with pytest.raises(WosacError, match="different metrics"):
        build(f"seeds={old},{new}")
    with pytest.raises(WosacError, match="of 1 to 8 models"):
        build(*[f"r{k}={before}" for k in range(9)])


# --------------------------------------------------------------------------------------------------
# Leaderboard entries


def test_beside_a_run_stand_the_yardsticks_and_the_best(before: Path) -> None:
    told = build(before)
    ids = [each.entry.id for each in told.beside]
    assert {"2025-test-logged-oracle", "2025-test-constant-velocity"} <= set(ids)
    best = next(e for e in load_entries() if e.split == "test" and not e.reference)
    assert best.id in ids
    components = {component.field for component in told.challenge.components}
    assert any(components <= set(each.entry.results.values) for each in told.beside)


def test_entries_are_marked_where_they_cannot_be_compared(before: Path) -> None:
    told = build(before, beside=["2025-test-smart-r1", "2024-test-vbd"])
    assert [bool(each.obstacles) for each in told.beside] == [False, True]
    assert told.obstacles == ("the runs are on 60 scenes, no whole split",)
    page = render_page(told).decode()
    assert "the runs are on 60 scenes, no whole split." in page
    assert "not comparable: 2024 metric" in page
    # The whole validation split can be compared with entries of it, and with no others.
    (model,) = told.models
    whole = (replace(model, n_scenes=44_097, split="validation"),)
    assert own_obstacles(whole, "2025") == ()
    ids = ["2025-val-rlftsim-reward-rmm-mloo", "2025-test-smart-r1"]
    chosen = choose_beside(load_entries(), whole, "2025", ids)
    assert [each.obstacles for each in chosen] == [(), ("test split",)]
    few = (replace(whole[0], n_rollouts=16),)
    assert own_obstacles(few, "2025") == ("the runs do not have 32 rollouts a scene",)


def test_an_unknown_entry_is_refused_with_one_that_is_like_it(before: Path) -> None:
    with pytest.raises(WosacError, match="do you mean 2025-test-smart-r1"):
        build(before, beside=["2025-test-smart-r2"])
    assert build(before, beside=[]).beside == ()


# --------------------------------------------------------------------------------------------------
# Features and pictures


def test_the_log_is_simulated_as_it_is_logged(seen: Report) -> None:
    assert seen.features.models == ("constant_velocity", "log")
    assert len(seen.features.scenario_ids) == 3
    assert {h.component for h in seen.features.histograms} >= {"linear_speed", "time_to_collision"}
    for histogram in seen.features.histograms:
        for shares in (histogram.logged, *histogram.simulated.values()):
            assert sum(shares) == pytest.approx(1)
        if histogram.component not in ("distance_to_nearest_object", "time_to_collision"):
            assert histogram.distance("log") == 0
        # Objects that the log loses sight of stay where they were, which others can be near.
        assert histogram.distance("log") < 0.05
    assert max(h.distance("constant_velocity") for h in seen.features.histograms) > 0.05
    (offroad,) = (r for r in seen.features.rates if r.component == "offroad_indication")
    assert offroad.simulated["log"] == pytest.approx(offroad.logged)


def test_histograms_count_the_steps_that_the_log_is_scored_at(
    simulated: Path, seen: Report
) -> None:
    rollouts = {
        one.scenario_id: one for one in load_rollouts(simulated / "rollouts_constant_velocity")
    }
    distances, logged = [], []
    for scenario in load_scenarios(str(simulated / "scenes")):
        if scenario.scenario_id in seen.features.scenario_ids:
            log, features = compute_features(scenario, rollouts[scenario.scenario_id])
            logged.append(log.distance_to_road_edge[log.valid])
            distances.append(features.distance_to_road_edge[:, log.valid[0]].ravel())
    (found,) = (h for h in seen.features.histograms if h.component == "distance_to_road_edge")
    for values, shares in (
        (np.concatenate(logged), found.logged),
        (np.concatenate(distances), found.simulated["constant_velocity"]),
    ):
        counts, _ = np.histogram(np.clip(values, -20, 40), bins=10, range=(-20, 40))
        assert shares == pytest.approx(counts / counts.sum())


def test_the_sample_is_drawn_by_the_seed(simulated: Path) -> None:
    run = simulated / "log"
    models = read_models([run])
    drawn = [scenes.choose_sample(models, 2, seed) for seed in range(20)]
    assert {n for _, n in drawn} == {4}
    assert len({tuple(ids) for ids, _ in drawn}) == 6
    assert drawn[0] == scenes.choose_sample(models, 2, 0)
    assert len(scenes.choose_sample(models, 20, 0)[0]) == 4


def test_the_worst_scenes_have_pictures_and_what_happens_in_them(seen: Report) -> None:
    for model in seen.models:
        found = seen.findings[model.name]
        assert found.absent == ""
        assert set(found.scenes) == {scene.scenario_id for scene in model.worst}
        for finding in found.scenes.values():
            assert finding.picture is not None
            assert finding.picture.content.startswith(b"\x89PNG")
            assert finding.remark == ""
            assert all(0 <= n <= finding.n_rollouts for n in finding.events.values())
    for scene in seen.models[1].worst:
        assert seen.findings["log"].scenes[scene.scenario_id].replay == scene.score


def test_pictures_are_left_out_where_the_page_would_become_too_large(
    simulated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "_PICTURE_BYTES", 0)
    page = page_of(simulated / "log", scenes=0, worst=1)
    assert "<img" not in page
    assert "Its picture is left out to keep this page small." in page


def test_a_run_that_kept_no_rollouts_has_all_the_rest(before: Path) -> None:
    page = page_of(before)
    assert "the run kept no rollouts (smart-before top_k=48 seed=0)" in page
    assert "Without pictures" in page
    assert "<img" not in page
    for heading in ("Summary", "Slices", "Scores over scenes", "Worst scenes"):
        assert heading in page


def test_rollouts_that_are_gone_or_others_are_not_shown_as_if_they_were_scored(
    simulated: Path, tmp_path: Path
) -> None:
    for name in ("rollouts_log", "scenes"):
        shutil.copytree(simulated / name, tmp_path / name)
    score_dataset(
        tmp_path / "rollouts_log",
        str(tmp_path / "scenes"),
        out=tmp_path / "run",
        n_rollouts=None,
        workers=1,
    )
    # Scenes that were moved are found with the option.
    (tmp_path / "scenes").rename(tmp_path / "moved")
    told = build(tmp_path / "run", scenes=1, worst=1)
    assert "give --scenarios" in told.features.absent["run"]
    told = build(tmp_path / "run", scenes=1, worst=1, scenarios=str(tmp_path / "moved"))
    assert (told.features.absent, told.features.models) == ({}, ("run",))
    file = next((tmp_path / "rollouts_log").glob("*.npz"))
    file.write_bytes(file.read_bytes() + b" ")
    told = build(tmp_path / "run", scenes=1, worst=1, scenarios=str(tmp_path / "moved"))
    assert "changed since they were scored" in told.features.absent["run"]
    shutil.rmtree(tmp_path / "rollouts_log")
    told = build(tmp_path / "run", scenes=1, worst=1, scenarios=str(tmp_path / "moved"))
    assert "they are gone" in told.features.absent["run"]
    assert told.features.models == ()
    assert told.findings["run"].scenes == {}


def test_runs_with_rollouts_stand_beside_runs_without(simulated: Path, tmp_path: Path) -> None:
    shutil.copytree(simulated / "log", tmp_path / "bare")
    text = (tmp_path / "bare" / "summary.json").read_text()
    summary = json.loads(text)
    summary["request"] |= {"rollouts": "smart seed=1", "rollouts_files": ""}
    (tmp_path / "bare" / "summary.json").write_text(json.dumps(summary))
    told = build(simulated / "log", tmp_path / "bare", scenes=2, worst=1)
    assert told.features.models == ("log",)
    assert list(told.features.absent) == ["bare"]
    assert "bare: its rollouts could not be looked at" in render_page(told).decode()


# --------------------------------------------------------------------------------------------------
# What the metric does not look at


def behaviour_rows(page: str) -> dict[str, list[str]]:
    """The rows of the table of behaviour: what stands first in each -> its other cells."""
    table = page.split('<h2 id="behaviour">')[1].split("<tbody>")[1].split("</tbody>")[0]
    found = {}
    for row in table.split("<tr>")[1:]:
        name = row.split('<th scope="row">')[1].split("<")[0]
        cells = row.split('<td class="num">')[1:]
        # Without the dash, which is for those who see the page.
        found[name] = [
            " ".join(re.sub("<[^>]+>", " ", cell).split()).lstrip("\N{EN DASH} ") for cell in cells
        ]
    return found


def test_behaviour_is_that_of_watch_with_the_first_run_as_the_reference(
    simulated: Path, seen: Report
) -> None:
    one, other = (
        read_behaviours(simulated / name / BEHAVIOUR_FILE) for name in ("constant_velocity", "log")
    )
    assert seen.behaviours == {
        "constant_velocity": watch(one, resamples=200),
        "log": watch(other, one, resamples=200),
    }


def test_behaviour_stands_beside_the_log_and_what_is_suspect_is_marked(simulated: Path) -> None:
    told = build(f"replay={simulated / 'log'}", simulated / "constant_velocity", scenes=0, worst=0)
    page = render_page(told).decode()
    table = behaviour_rows(page)
    rows = {row.quantity.name: row for row in told.behaviours["constant_velocity"].rows}
    jerk = rows["jerk"]
    assert jerk.logged is not None
    assert jerk.simulated is not None
    logged, replayed, simulated_ = table["Jerk (m/s³)"]
    assert (logged, simulated_) == (f"{jerk.logged.value:.4f}", f"{jerk.simulated.value:.4f}")
    assert replayed == logged
    error = rows["min_ade"].simulated
    assert error is not None
    assert table["minADE (m)"] == ["not known", "0.0000", f"{error.value:.4f} watch: replay"]
    assert set(table) >= {"Speed ratio", "Stall rate", "Wrong-way rate", "Sharp collision rate"}
    assert set(table) >= {"Diversity (m)", "Realism 2024"}
    # What is told above is what is marked below.
    (line,) = re.findall(r"constant_velocity is worse than replay in: (.*) \(see", page)
    marked = [name.split(" (")[0] for name, cells in table.items() if "watch: replay" in cells[2]]
    assert line.lower() == ", ".join(marked).lower()
    assert len(marked) == len([row for row in rows.values() if "reference" in row.watch])
    assert "replay is worse than" not in page


def test_behaviour_of_several_seeds_is_their_mean(simulated: Path) -> None:
    folders = [simulated / name for name in ("constant_velocity", "log")]
    told = build(f"both={folders[0]},{folders[1]}", scenes=0, worst=0)
    for row in told.behaviours["both"].rows:
        name = row.quantity.name
        values = [
            [one.values()[name] for one in read_behaviours(folder / BEHAVIOUR_FILE)]
            for folder in folders
        ]
        means = np.mean(values, axis=0)
        assert row.n_scenes == np.isfinite(means).sum()
        if row.simulated is not None:
            assert row.simulated.value == pytest.approx(np.nanmean(means))


def test_runs_whose_behaviour_is_not_measured_have_none(
    before: Path, simulated: Path, tmp_path: Path
) -> None:
    assert build(before).behaviours == {}
    assert "Behaviour" not in page_of(before)
    shutil.copytree(simulated / "log", tmp_path / "bare")
    (tmp_path / "bare" / BEHAVIOUR_FILE).unlink()
    told = build(tmp_path / "bare", simulated / "constant_velocity", scenes=0, worst=0)
    assert list(told.behaviours) == ["constant_velocity"]
    assert not told.behaviours["constant_velocity"].has_reference
    rows = behaviour_rows(render_page(told).decode())
    assert {cells[1] for cells in rows.values()} == {"not known"}


def test_behaviour_of_other_rollouts_or_scenes_is_refused(simulated: Path, tmp_path: Path) -> None:
    run = tmp_path / "log"
    shutil.copytree(simulated / "log", run)
    own = read_behaviours(run / BEHAVIOUR_FILE)
    for others in (read_behaviours(simulated / "constant_velocity" / BEHAVIOUR_FILE), own[1:]):
        write_behaviours(run / BEHAVIOUR_FILE, others)
        with pytest.raises(WosacError, match="other scenes or rollouts than those") as caught:
            build(run)
        assert caught.value.where == str(run / BEHAVIOUR_FILE)
    write_behaviours(run / BEHAVIOUR_FILE, own[::-1])
    assert build(run).behaviours == build(simulated / "log").behaviours


# --------------------------------------------------------------------------------------------------
# The file


class Elements(HTMLParser):
    """The elements of a page in order, each with its path; checks that they are closed in order."""

    VOID = ("meta", "link", "input", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), tuple(self._open)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs, _ in self.found if name == tag]


@pytest.fixture(scope="module")
def pages(seen: Report, before: Path) -> dict[str, str]:
    return {"several": render_page(seen).decode(), "one": page_of(before)}


@pytest.mark.parametrize("name", ["one", "several"])
def test_the_page_needs_no_other_file_and_runs_nothing(pages: dict[str, str], name: str) -> None:
    elements = Elements(pages[name])
    assert elements.all("script") == []
    ids = [attrs["id"] for _, attrs, _ in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs, _ in elements.found:
        assert not any(key.startswith("on") for key in attrs)
        for key in ("href", "src"):
            address = attrs.get(key)
            if address is not None and address.startswith("#"):
                assert address[1:] in ids
            elif address is not None:
                assert address.startswith("data:")
    for word in ("url(", "@import", "http:", "https:"):
        assert word not in pages[name]


@pytest.mark.parametrize("name", ["one", "several"])
def test_headings_tables_and_figures_are_told_to_those_who_do_not_see_them(
    pages: dict[str, str], name: str
) -> None:
    elements = Elements(pages[name])
    levels = [int(tag[1]) for tag, _, _ in elements.found if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels)), levels
    tables = elements.all("table")
    assert len(tables) == len(elements.all("caption")) > 3
    assert all("scope" in attrs for attrs in elements.all("th"))
    ids = {attrs.get("id") for _, attrs, _ in elements.found}
    for _, attrs, _ in elements.found:
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
    drawings = [attrs for _, attrs, _ in elements.found if attrs.get("role") == "img"]
    assert len(drawings) > 2
    assert all(attrs["aria-label"] for attrs in drawings)
    assert all(attrs["alt"] for attrs in elements.all("img"))
    # Each drawing has its numbers in a table of the same figure.
    figures = pages[name].split("<figure")[1:]
    assert all('role="img"' in figure and "<table" in figure for figure in figures)


def test_the_same_runs_give_the_same_bytes(simulated: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report([simulated / "log"], tmp_path / name, scenes=1, worst=1, resamples=100)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_order_of_the_scenes_does_not_matter(values: np.ndarray, tmp_path: Path) -> None:
    told = rows(values)
    one, two = (a_run(tmp_path / k / "r", s) for k, s in (("1", told), ("2", told[::-1])))
    assert page_of(f"r={one}") == page_of(f"r={two}")


def test_text_of_others_stays_text(tmp_path: Path, values: np.ndarray) -> None:
    ids = [f"{EVIL}{k}" for k in range(len(values))]
    one = a_run(tmp_path / "one", rows(values, ids), rollouts=EVIL)
    two = a_run(tmp_path / "two", rows(values[::-1], ids), rollouts=EVIL + "2")
    models = read_models([one, two])
    models = [replace(model, name=f"{EVIL} {k}") for k, model in enumerate(models)]
    told = build_report(models, title=EVIL, resamples=200)
    entry = replace(told.beside[0].entry, method=EVIL)
    told = replace(told, beside=(replace(told.beside[0], entry=entry, obstacles=(EVIL,)),))
    elements = Elements(render_page(told).decode())
    assert elements.all("script") == []
    assert elements.all("img") == []


def test_the_page_does_not_grow_with_the_scenes(tmp_path: Path) -> None:
    sizes = []
    for n in (300, 3_000):
        told = rows(np.random.default_rng(3).beta(8, 3, size=n))
        runs = [a_run(tmp_path / f"{k}-{n}", told, rollouts=f"{k}") for k in range(2)]
        sizes.append(len(page_of(*runs, resamples=100)))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    assert sizes[1] < 400_000


def test_an_older_report_is_replaced_and_nothing_else(before: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    for title in ("first", "second"):
        write_report([before], out, title=title, resamples=200)
        assert f"<title>{title}</title>" in out.read_text()
    other = tmp_path / "thesis.html"
    other.write_text("<p>years of work</p>")
    with pytest.raises(WosacError, match="something else"):
        write_report([before], other)
    assert other.read_text() == "<p>years of work</p>"
    with pytest.raises(WosacError, match="something else"):
        write_report([before], tmp_path)
    with pytest.raises(WosacError, match="no such folder"):
        write_report([before], tmp_path / "absent" / "report.html")


@pytest.mark.parametrize(
    ("option", "value"), [("scenes", -1), ("worst", 51), ("resamples", 10), ("seed", -1)]
)
def test_numbers_out_of_their_range_are_refused(before: Path, option: str, value: int) -> None:
    with pytest.raises(WosacError, match="is not between"):
        build(before, **{option: value})


def test_the_command_writes_the_file_and_prints_its_name(before: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    arguments = [str(before), "--out", str(out), "--beside", "none", "--resamples", "100"]
    result = CliRunner().invoke(command, arguments)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.output
    assert "Components</h2>" in out.read_text()
    result = CliRunner().invoke(command, [str(tmp_path / "nothing"), "--out", str(out)])
    assert isinstance(result.exception, WosacError)


def test_the_package_offers_what_it_names() -> None:
    assert all(hasattr(report_package, name) for name in report_package.__all__)


# --------------------------------------------------------------------------------------------------
# Axes


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-1e4, 1e4),
    st.floats(1e-4, 1e4),
    st.booleans(),
)
def test_an_axis_spans_its_values_with_round_distinct_ticks(
    low: float, width: float, percent: bool
) -> None:
    scale = axis(low, low + width, percent=percent)
    slack = 1e-6 * width
    assert scale.low <= low + slack
    assert scale.high >= low + width - slack
    assert scale.high - scale.low <= 3 * width + slack
    places = [tick.at for tick in scale.ticks]
    assert (places[0], places[-1]) == (0, 100)
    assert places == sorted(places)
    assert 2 <= len(places) <= 8
    assert len({tick.label for tick in scale.ticks}) == len(places)
    assert 0 <= scale.place(low - 1) <= scale.place(low + width / 2) <= scale.place(low + width)


def test_a_single_value_has_an_axis_around_it() -> None:
    scale = axis(0.5, 0.5)
    assert scale.low < 0.5 < scale.high


# --------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    find_chromium()
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def files(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, "utf-8")
    return {name: folder / f"{name}.html" for name in pages}


# The lowest contrast of text and the first opaque background behind it, by the formula of WCAG 2.
CONTRAST = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  let lowest = { ratio: 21, text: "" };
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = element.tagName === "text" ? style.fill : style.color;
    const [a, b] = [parse(ink), behind(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < lowest.ratio) lowest = { ratio, text: element.textContent.trim() };
  }
  return lowest;
})()"""

# Elements that stick out of the window, but for what scrolls by itself.
TOO_WIDE = """[...document.querySelectorAll("body *")].filter((e) =>
  !e.closest(".scroll, .skip, .hidden") && e.checkVisibility() &&
  e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1366])
def test_it_fits_the_window_and_can_be_read_in_light_and_dark(
    browser: Browser, files: dict[str, Path], width: int, dark: bool
) -> None:
    browser.resize(width, 850, dark=dark, mobile=width < 600)
    for name, file in files.items():
        browser.open(file)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        # Wide tables scroll by themselves, the page does not.
        assert browser.run("document.documentElement.scrollWidth") == width
        assert browser.run(TOO_WIDE) == []
        lowest = browser.run(CONTRAST)
        assert lowest["ratio"] >= 4.5, (name, lowest)
        assert browser.problems == []
        assert all(url.startswith(("file:", "data:")) for url in browser.requests)
        assert len([url for url in browser.requests if url.startswith("file:")]) == 1


def test_it_can_be_read_with_assistive_technology(browser: Browser, files: dict[str, Path]) -> None:
    browser.resize(1366, 850)
    browser.open(files["several"])
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in tree:
        if not node.get("ignored"):
            role = node["role"]["value"]
            named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert named["navigation"] == ["Sections"]
    assert len(named["main"]) == 1
    for role in ("heading", "table", "image", "figure", "region", "link"):
        assert named[role], role
        assert all(named[role]), role
    # The first stop of the Tab key skips what stands before the content.
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"


def test_hostile_text_does_nothing_in_a_browser(
    browser: Browser, tmp_path: Path, values: np.ndarray
) -> None:
    ids = [f"{EVIL}{k}" for k in range(len(values))]
    run = a_run(tmp_path / "run", rows(values, ids), rollouts=EVIL)
    (model,) = read_models([run])
    told = build_report([replace(model, name=EVIL)], title=EVIL, resamples=200)
    (tmp_path / "report.html").write_bytes(render_page(told))
    browser.open(tmp_path / "report.html")
    assert browser.run("document.title") == EVIL
    assert browser.run("document.images.length") == 0
    assert browser.problems == []
    assert EVIL in browser.run("document.body.innerText")
