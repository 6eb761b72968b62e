"""What costs a scene its score: losses, bins, events, and the command that tells them."""

from __future__ import annotations

import json
import math
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy_oracle as oracle
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wosac_toolkit import (
    CHALLENGES,
    Rollouts,
    Scenario,
    WosacError,
    compute_features,
    generate_scenarios,
    load_scenarios,
    score_scenario,
    simulate_baseline,
)
from wosac_toolkit.challenge import Bernoulli, Challenge, Histogram, KernelDensity, get_challenge
from wosac_toolkit.cli.explain import explanation_text
from wosac_toolkit.cli.group import LazyGroup
from wosac_toolkit.explain import Event, Explanation, explain_scenario, load_scenes
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.scenarios import write_scenarios
from wosac_toolkit.io.submission import SubmissionMetadata, write_submission
from wosac_toolkit.kernels.nearest_object import shrunken_boxes
from wosac_toolkit.likelihood import PER_STEP
from wosac_toolkit.results import read_run
from wosac_toolkit.scenario import MapFeatureKind, ObjectType
from wosac_toolkit.scoring import ScoringError, score_dataset

YEARS = sorted(CHALLENGES)
RED = 4
KIND_OF_FEATURE = {
    "collision_per_step": "collision",
    "offroad_per_step": "offroad",
    "traffic_light_violation_per_step": "red_light",
}

MakeScenario = Callable[..., Scenario]
Scene = tuple[Scenario, Rollouts]


def log_rollouts(scenario: Scenario, n_rollouts: int = 4) -> Rollouts:
    return simulate_baseline(scenario, "log", n_rollouts)


def moved(rollouts: Rollouts, object_id: int, steps: slice, by: Sequence[float]) -> Rollouts:
    """Rollouts in which an object is somewhere else for some steps, in the first rollout."""
    states = rollouts.states.copy()
    column = rollouts.object_ids.tolist().index(object_id)
    states[0, column, steps, :2] += np.float32(by)
    return replace(rollouts, states=states)


def lose(scenario: Scenario, row: int, steps: slice) -> Scenario:
    """The scene with a track that is not valid at some steps after the current one."""
    valid = scenario.tracks.valid.copy()
    valid[row, 11:][steps] = False
    return replace(scenario, tracks=replace(scenario.tracks, valid=valid))


@pytest.fixture(scope="module")
def synthetic() -> list[Scene]:
    """Busy scenes whose agents, blind to each other, collide, leave the road and run red lights."""
    return [
        (scenario, simulate_baseline(scenario, "constant_velocity", 6))
        for scenario in generate_scenarios(6, seed=11)
    ]


@pytest.fixture(scope="module")
def road(make_scenario: MakeScenario) -> Scenario:
    """Three vehicles side by side at 5 m/s, all evaluated, and a signal that is red for one."""
    lanes = {i: np.array([[x, 4.0 * i] for x in np.arange(-20.0, 90.0, 2)]) for i in range(3)}
    return make_scenario(
        n_tracks=3,
        tracks_to_predict=[1, 2],
        lanes=lanes,
        signals=[[(1, RED, (60.0, 4.0)), (2, RED, (70.0, 8.0))]] * 91,
    )


# --------------------------------------------------------------------------------------------------
# Losses


def assert_adds_up(explanation: Explanation, challenge: Challenge) -> None:
    score = explanation.score
    parts = explanation.components
    assert [part.component for part in parts] == list(challenge.components)
    for part in parts:
        assert part.likelihood == score.metrics()[part.component.field]
        assert part.replay == explanation.replay.metrics()[part.component.field]
        assert part.agent_loss.sum() == pytest.approx(part.loss, abs=1e-14)
        assert part.agent_avoidable.sum() == pytest.approx(part.avoidable, abs=1e-14)
    weight = sum(component.weight for component in challenge.components)
    assert explanation.agent_loss.sum() == pytest.approx(weight - score.metametric, abs=1e-13)
    assert explanation.agent_avoidable.sum() == pytest.approx(
        explanation.ceiling - score.metametric, abs=1e-13
    )


@pytest.mark.parametrize("year", YEARS)
def test_the_losses_of_agents_add_up_to_what_the_score_lacks(
    synthetic: list[Scene], year: str
) -> None:
    for scenario, rollouts in synthetic[:3]:
        explanation = explain_scenario(scenario, rollouts, year)
        assert explanation.score.metrics() == score_scenario(scenario, rollouts, year).metrics()
        assert_adds_up(explanation, get_challenge(year))


def test_the_losses_of_steps_add_up_to_those_of_agents(synthetic: list[Scene]) -> None:
    explanation = explain_scenario(*synthetic[0])
    spans = explanation.spans()
    for part in explanation.components:
        if isinstance(part.component.estimator, Bernoulli):
            assert part.bins is None
            continue
        for agent, object_id in enumerate(explanation.object_ids.tolist()):
            own = [
                s for s in spans if (s.object_id, s.component) == (object_id, part.component.name)
            ]
            assert sum(s.loss for s in own) == pytest.approx(part.agent_loss[agent], abs=1e-14)
            n_steps = sum(s.last - s.first + 1 for s in own)
            assert n_steps == part.logged[agent].sum()
            total = sum(s.log_likelihood * (s.last - s.first + 1) for s in own)
            assert total / n_steps == pytest.approx(part.log_likelihood[agent])
    assert [s.log_likelihood for s in spans] == sorted(s.log_likelihood for s in spans)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10**6), noise=st.sampled_from([0.0, 0.01, 0.1, 2.0]))
def test_no_rollouts_pass_the_ceiling(road: Scenario, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    scenario = lose(road, 1, slice(40, 55))
    log = log_rollouts(scenario)
    drift = rng.normal(0, noise, (4, 3, 1, 4)) * np.arange(80)[:, None]
    rollouts = replace(log, states=(log.states + drift).astype(np.float32))
    explanation = explain_scenario(scenario, rollouts)
    for part in explanation.components:
        assert 0 < part.likelihood <= part.ceiling <= 1
        assert (part.agent_avoidable >= -1e-15).all()
        assert (part.agent_avoidable <= part.agent_loss + 1e-15).all()
    assert_adds_up(explanation, get_challenge("2025"))


def test_the_ceiling_is_one_where_each_agent_stays_in_its_bins(road: Scenario) -> None:
    explanation = explain_scenario(road, log_rollouts(road))
    by_name = {part.component.name: part for part in explanation.components}
    assert by_name["linear_speed"].ceiling == 1
    assert by_name["collision_indication"].ceiling == 1
    assert (by_name["linear_speed"].agent_avoidable == by_name["linear_speed"].agent_loss).all()


def test_the_ceiling_is_the_likelihood_under_the_logs_own_histogram(make_scenario) -> None:
    """20 steps of 80 at another speed: two bins, of which each step has its share."""
    scenario = make_scenario(n_tracks=1, tracks_to_predict=())
    speed = np.where(np.arange(91) < 71, 5.0, 20.0)
    scenario.tracks.position[0, :, 0] = np.cumsum(0.1 * speed)
    [speeds] = [
        part
        for part in explain_scenario(scenario, log_rollouts(scenario)).components
        if part.component.name == "linear_speed"
    ]
    counts = speeds.logged[0][speeds.logged[0] > 0]
    assert len(counts) > 1
    share = counts / counts.sum()
    assert speeds.ceiling == pytest.approx(math.exp((share * np.log(share)).sum()), abs=1e-15)


def test_the_log_itself_lacks_what_smoothing_and_the_last_steps_take(road: Scenario) -> None:
    explanation = explain_scenario(road, log_rollouts(road, 7))
    assert explanation.replay.metrics() == explanation.score.metrics()
    [speed] = [p for p in explanation.components if p.component.name == "linear_speed"]
    # Of 80 steps one has no speed, and counts as the highest; 10 bins are raised by 0.1 each.
    assert speed.likelihood == pytest.approx((79 * 7 + 0.1) / (80 * 7 + 1))
    assert speed.replay == speed.likelihood < speed.ceiling


def test_a_component_that_no_agent_has_is_not_a_number_and_left_out_of_agents(
    make_scenario: MakeScenario,
) -> None:
    scenario = make_scenario(n_tracks=1, object_types=[ObjectType.PEDESTRIAN], tracks_to_predict=())
    explanation = explain_scenario(scenario, log_rollouts(scenario))
    [ttc] = [p for p in explanation.components if p.component.name == "time_to_collision"]
    others = [p for p in explanation.components if p is not ttc]
    assert math.isnan(ttc.likelihood)
    assert math.isnan(ttc.ceiling)
    assert np.isnan(ttc.agent_loss).all()
    assert math.isnan(explanation.ceiling)
    assert explanation.agent_loss.sum() == pytest.approx(sum(p.loss for p in others))
    assert not [s for s in explanation.spans() if s.component == "time_to_collision"]
    record = json.loads(explanation.to_json())
    assert record["realism_meta_metric"] is None
    assert "no evaluated vehicle" in explanation_text(explanation, "table")
    assert "nan" not in explanation_text(explanation, "table")


def test_a_kernel_density_is_explained_step_by_step(road: Scenario) -> None:
    name = "distance_to_nearest_object"
    base = get_challenge("2025")
    components = tuple(
        replace(c, estimator=KernelDensity(0.5)) if c.name == name else c for c in base.components
    )
    challenge = replace(base, name="mine", components=components)
    log = log_rollouts(road)
    wider = replace(log, states=log.states + np.float32([[[0]], [[0.1]], [[0.4]]]))
    explanation = explain_scenario(lose(road, 2, slice(40, 45)), wider, challenge)
    assert_adds_up(explanation, challenge)
    [part] = [p for p in explanation.components if p.component.name == name]
    assert part.simulated is None
    spans = [s for s in explanation.spans() if s.component == name]
    assert len(spans) == 3 * 80 - 5
    assert sum(s.loss for s in spans) == pytest.approx(part.loss)
    assert all(s.simulated is None and math.isnan(s.low) for s in spans)
    explanation_text(explanation, "json")
    explanation_text(explanation, "table", top=300)


# --------------------------------------------------------------------------------------------------
# Bins


@pytest.mark.parametrize("year", YEARS)
def test_the_bins_are_those_of_the_logged_values(synthetic: list[Scene], year: str) -> None:
    scenario, rollouts = synthetic[1]
    logged, simulated = compute_features(scenario, rollouts, year)
    n_checked = 0
    for part in explain_scenario(scenario, rollouts, year).components:
        estimator, name = part.component.estimator, part.component.name
        if not isinstance(estimator, Histogram):
            continue
        assert part.edges is not None
        assert part.bins is not None
        assert part.simulated is not None
        np.testing.assert_array_equal(part.edges, estimator.edges())
        counts = part.bins >= 0
        values = getattr(logged, name)[0]
        expected = oracle.bins(values[counts], estimator.edges())
        np.testing.assert_array_equal(part.bins[counts], expected)
        assert not counts[~logged.valid[0]].any()
        for agent in range(len(part.bins)):
            bins = part.bins[agent][counts[agent]]
            np.testing.assert_array_equal(
                part.logged[agent], np.bincount(bins, minlength=estimator.n_bins)
            )
            of_simulated = oracle.bins(getattr(simulated, name)[:, agent], estimator.edges())
            np.testing.assert_array_equal(
                part.simulated[agent],
                np.bincount(of_simulated.ravel(), minlength=estimator.n_bins),
            )
        n_checked += counts.sum()
    assert n_checked > 1000


def test_yes_or_no_components_count_rollouts(road: Scenario) -> None:
    onto_neighbour = moved(log_rollouts(road), 10, slice(10, 20), (0.0, 3.0))
    [collision] = [
        part
        for part in explain_scenario(road, onto_neighbour).components
        if part.component.name == "collision_indication"
    ]
    assert collision.simulated is not None
    np.testing.assert_array_equal(collision.logged, [[1, 0]] * 3)
    np.testing.assert_array_equal(collision.simulated, [[3, 1], [3, 1], [4, 0]])


# --------------------------------------------------------------------------------------------------
# Events


def steps_of(events: Sequence[Event], kind: str, object_ids: Any, n_rollouts: int) -> Any:
    """bool [R, E, T]: the steps that events cover."""
    covered = np.zeros((n_rollouts, len(object_ids), 80), bool)
    for event in events:
        if event.kind == kind:
            agent = object_ids.tolist().index(event.object_id)
            covered[event.rollout or 0, agent, event.first : event.last + 1] = True
    return covered


def assert_events_are_the_features(scenario: Scenario, rollouts: Rollouts, year: str) -> int:
    logged, simulated = compute_features(scenario, rollouts, year)
    explanation = explain_scenario(scenario, rollouts, year)
    for features, events in (
        (simulated, explanation.events),
        (logged, explanation.log_events),
    ):
        n = len(features.distance_to_nearest_object)
        for name, kind in KIND_OF_FEATURE.items():
            happened = getattr(features, name)
            if happened is None:
                happened = np.zeros((n, len(features.object_id), 80), bool)
            np.testing.assert_array_equal(
                steps_of(events, kind, features.object_id, n), happened & logged.valid[0]
            )
        assert all((event.rollout is None) == (features is logged) for event in events)
        for event in events:
            agent = features.object_id.tolist().index(event.object_id)
            where = (event.rollout or 0, agent, slice(event.first, event.last + 1))
            if event.kind == "collision":
                assert event.partner_id in scenario.tracks.object_ids
                assert event.partner_id != event.object_id
                deepest = features.distance_to_nearest_object[where].min()
                assert deepest <= event.distance < 0
            elif event.kind == "offroad":
                farthest = features.distance_to_road_edge[where].max()
                assert event.distance == farthest > 0
                assert event.feature_id in scenario.road_map.feature_ids
    return len(explanation.events)


@pytest.mark.parametrize("year", YEARS)
def test_events_are_what_the_features_say(synthetic: list[Scene], year: str) -> None:
    n_events = [assert_events_are_the_features(*scene, year) for scene in synthetic[:3]]
    assert sum(n_events) > 20


@pytest.mark.womd
@pytest.mark.parametrize(
    ("bundle", "year"),
    [
        ("637f20cafde22ff8_submission_r32", "2025"),
        ("0fc8c94b61985210_lognoise", "2024"),
        ("2af8a17d6cee3f8_cv", "2025"),
        ("2af8a17d6cee3f8_cv", "2023"),
    ],
)
def test_events_of_real_scenes(bundle: str, year: str, womd_dir: Path, goldens_dir: Path) -> None:
    arrays = np.load(goldens_dir / f"{bundle}.npz")
    scenario_id = bundle.split("_")[0]
    scenario = next(s for s in load_scenarios(womd_dir) if s.scenario_id == scenario_id)
    rollouts = Rollouts(scenario_id, arrays["object_ids"], arrays["rollouts"])
    assert assert_events_are_the_features(scenario, rollouts, year)
    assert_adds_up(explain_scenario(scenario, rollouts, year), get_challenge(year))


def test_the_partners_of_a_collision_are_all_that_overlap(synthetic: list[Scene]) -> None:
    """Against every pair of boxes, by the oracle."""
    scenario, rollouts = max(synthetic, key=lambda scene: len(explain_scenario(*scene).events))
    explanation = explain_scenario(scenario, rollouts)
    row_of = {int(object_id): i for i, object_id in enumerate(scenario.tracks.object_ids)}
    size = scenario.tracks.size[[row_of[int(i)] for i in rollouts.object_ids], 10]
    length, width, shrinking = shrunken_boxes(size[:, 0], size[:, 1], 0.7)
    touched: dict[tuple[int, int, int], set[int]] = {}
    for event in explanation.events:
        if event.kind == "collision":
            for step in range(event.first, event.last + 1):
                assert event.rollout is not None
                assert event.partner_id is not None
                key = (event.rollout, event.object_id, step)
                touched.setdefault(key, set()).add(event.partner_id)
    assert touched
    for (rollout, object_id, step), partners in list(touched.items())[::7]:
        x, y, _, heading = rollouts.states[rollout, :, step].T
        cores = oracle.box_corners(x, y, np.sin(heading), np.cos(heading), length, width)
        own = rollouts.object_ids.tolist().index(object_id)
        found = {
            int(other)
            for n, other in enumerate(rollouts.object_ids)
            if n != own
            and oracle.polygon_distance(oracle.minkowski_difference(cores[own], cores[n]))
            - shrinking[own]
            - shrinking[n]
            < -1e-4
        }
        assert found <= partners
        assert len(partners) <= len(found) + 1  # one may touch by less than rounding


def test_a_collision_has_its_rollout_agents_steps_and_depth(road: Scenario) -> None:
    onto_neighbour = moved(log_rollouts(road), 10, slice(10, 20), (0.0, 3.0))
    explanation = explain_scenario(road, onto_neighbour)
    # Boxes 2 m wide whose middles are 1 m apart, of cores as rounded corners leave them.
    assert [
        (e.kind, e.rollout, e.object_id, e.partner_id, e.first, e.last) for e in explanation.events
    ] == [("collision", 0, 10, 11, 10, 19), ("collision", 0, 11, 10, 10, 19)]
    assert all(event.distance == pytest.approx(-1.0, abs=1e-4) for event in explanation.events)
    assert explanation.log_events == ()


def test_an_agent_that_touches_two_has_an_event_with_each(road: Scenario) -> None:
    between = moved(log_rollouts(road), 10, slice(30, 31), (0.0, 6.0))
    events = [e for e in explain_scenario(road, between).events if e.object_id == 10]
    assert [(e.partner_id, e.first, e.last) for e in events] == [(11, 30, 30), (12, 30, 30)]


def test_steps_that_the_log_lacks_do_not_count_and_end_an_event(road: Scenario) -> None:
    onto_neighbour = moved(log_rollouts(road), 10, slice(10, 20), (0.0, 3.0))
    events = explain_scenario(lose(road, 0, slice(13, 15)), onto_neighbour).events
    assert [(e.object_id, e.first, e.last) for e in events] == [
        (10, 10, 12), (10, 15, 19), (11, 10, 19)
    ]  # fmt: skip


def test_off_the_road_names_the_edge_that_was_crossed_and_how_far(road: Scenario) -> None:
    # Edges at y = -4 and, of the other side, at y = 12; the last agent drives at y = 8.
    off = moved(log_rollouts(road), 12, slice(70, 80), (0.0, 5.0))
    [event] = explain_scenario(road, off).events
    edges = road.road_map.feature_ids[road.road_map.of_kind(MapFeatureKind.ROAD_EDGE)]
    assert (event.kind, event.object_id, event.first, event.last) == ("offroad", 12, 70, 79)
    assert event.feature_id == edges[1]
    assert event.distance == pytest.approx(8 + 5 + 1 - 12, abs=1e-4)


def test_the_edge_that_was_crossed_is_the_nearest_to_a_corner(synthetic: list[Scene]) -> None:
    n_checked = 0
    for scenario, rollouts in synthetic:
        row_of = {int(object_id): i for i, object_id in enumerate(scenario.tracks.object_ids)}
        edges = {
            int(scenario.road_map.feature_ids[row]): scenario.road_map.polyline(row)[:, :2]
            for row in scenario.road_map.of_kind(MapFeatureKind.ROAD_EDGE).tolist()
        }
        for event in explain_scenario(scenario, rollouts).events:
            if event.kind != "offroad":
                continue
            column = rollouts.object_ids.tolist().index(event.object_id)
            x, y, _, heading = rollouts.states[event.rollout, column, event.first].astype(float)
            length, width, _ = scenario.tracks.size[row_of[event.object_id], 10]
            corners = oracle.box_corners(
                *np.array([x, y, np.sin(heading), np.cos(heading), length, width])
            )
            nearest = {
                min(edges, key=lambda i: float(planar_distance(corner, edges[i])))
                for corner in corners
            }
            assert event.feature_id in nearest
            n_checked += 1
    assert n_checked > 10


def planar_distance(point: Any, polyline: Any) -> Any:
    start, delta = polyline[:-1], np.diff(polyline, axis=0)
    square = (delta**2).sum(axis=1)
    along = ((point - start) * delta).sum(axis=1) / np.where(square > 0, square, 1)
    foot = start + np.clip(along, 0, 1)[:, None] * delta
    return np.hypot(*(point - foot).T).min()


def test_a_red_light_names_the_lane(road: Scenario) -> None:
    # At 5 m/s from the start x = 5.5 is passed at step 0; the stop point of lane 1 is at x = 60.
    jump = moved(log_rollouts(road), 11, slice(20, 40), (48.0, 0.0))
    events = explain_scenario(road, jump).events
    red = [event for event in events if event.kind == "red_light"]
    x = jump.states[0, 1, :, 0]
    passed = int(np.flatnonzero((x[1:] > 60) & (x[:-1] < 60))[0]) + 1
    assert [(e.object_id, e.feature_id, e.first, e.last) for e in red] == [(11, 1, passed, passed)]
    assert explain_scenario(road, jump, "2024").events == tuple(
        event for event in events if event.kind != "red_light"
    )


def test_what_the_replay_hits_and_the_log_does_not_is_told(road: Scenario) -> None:
    """The second vehicle disappears in the way of the first, and a replay holds it there."""
    scenario = lose(road, 1, slice(20, 80))
    scenario.tracks.position[0, :, 1] = np.linspace(0.0, 4.0, 91)
    scenario.tracks.position[0, :, 0] -= 12
    explanation = explain_scenario(scenario, log_rollouts(scenario))
    assert explanation.log_events == ()
    assert {(e.object_id, e.partner_id) for e in explanation.replay_events} == {(10, 11)}
    assert {event.rollout for event in explanation.replay_events} == {0}
    text = explanation_text(explanation, "table")
    assert "1 event that the log has not (collision of 10 with 11 at" in text


def test_the_order_of_objects_in_rollouts_does_not_matter(synthetic: list[Scene]) -> None:
    scenario, rollouts = synthetic[2]
    order = np.random.default_rng(0).permutation(len(rollouts.object_ids))
    other = Rollouts(rollouts.scenario_id, rollouts.object_ids[order], rollouts.states[:, order])
    once, again = (explain_scenario(scenario, r).to_json() for r in (rollouts, other))
    assert json.loads(once)["events"] == json.loads(again)["events"]
    assert once == again


# --------------------------------------------------------------------------------------------------
# JSON


def test_json_holds_all_of_it(synthetic: list[Scene]) -> None:
    scenario, rollouts = synthetic[0]
    explanation = explain_scenario(scenario, rollouts)
    record = json.loads(explanation.to_json())
    assert record["scenario_id"] == scenario.scenario_id
    assert record["n_rollouts"] == 6
    assert [a["object_id"] for a in record["agents"]] == explanation.object_ids.tolist()
    assert [a["is_sdc"] for a in record["agents"]].count(True) == 1
    assert len(record["spans"]) == len(explanation.spans())
    assert len(record["events"]) == len(explanation.events) > 0
    event, first = record["events"][0], explanation.events[0]
    assert event["start_seconds"] == round(0.1 * (first.first + 1), 1)
    assert event["partner_id"] == first.partner_id
    assert sum(a["loss"] for a in record["agents"]) == pytest.approx(
        1 - record["realism_meta_metric"]
    )
    speed = record["agents"][0]["components"]["linear_speed"]
    assert len(speed["bins"]) == 80
    assert speed["bins"].count(None) == 80 - sum(speed["logged"])


def test_features_of_events_are_those_of_the_likelihood() -> None:
    assert set(PER_STEP.values()) == set(KIND_OF_FEATURE)


# --------------------------------------------------------------------------------------------------
# The scenes of a run


@pytest.fixture(scope="module")
def folder(synthetic: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scenes/`, `rollouts/` of them, and a `run/`."""
    folder = tmp_path_factory.mktemp("explain")
    write_scenarios(folder / "scenes", (scenario for scenario, _ in synthetic), 2)
    (folder / "rollouts").mkdir()
    for _, rollouts in synthetic:
        write_npz(folder / "rollouts", rollouts)
    score_dataset(
        folder / "rollouts", str(folder / "scenes"), out=folder / "run", n_rollouts=None, workers=1
    )
    return folder


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy whose files a test may spoil; the run still points to the original."""
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def ids(scenes: list[Scene]) -> list[str]:
    return [scenario.scenario_id for scenario, _ in scenes]


def test_scenes_come_in_the_order_asked_for(folder: Path, synthetic: list[Scene]) -> None:
    wanted = [ids(synthetic)[i] for i in (4, 0, 2)]
    loaded = list(load_scenes(read_run(folder / "run"), wanted))
    assert [scenario.scenario_id for scenario, _ in loaded] == wanted
    for scenario, rollouts in loaded:
        [original] = [r for s, r in synthetic if s.scenario_id == scenario.scenario_id]
        np.testing.assert_array_equal(rollouts.states, original.states)


def test_rollouts_are_found_in_shards_and_archives(
    folder: Path, synthetic: list[Scene], tmp_path: Path
) -> None:
    shard = tmp_path / "all.binproto"
    write_submission(shard, (rollouts for _, rollouts in synthetic), SubmissionMetadata())
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        archive.add(shard, "all.binproto")
    run = read_run(folder / "run")
    for path in (shard, tmp_path / "all.tar.gz"):
        [(_, rollouts)] = load_scenes(run, ids(synthetic)[3:4], rollouts=path)
        np.testing.assert_array_equal(rollouts.states, synthetic[3][1].states)


def failing(run: Path, scenario_id: str, **paths: Any) -> str:
    with pytest.raises(WosacError) as caught:
        list(load_scenes(read_run(run), [scenario_id], **paths))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_scene_that_is_not_in_the_run_is_named_and_a_like_one_offered(
    folder: Path, synthetic: list[Scene]
) -> None:
    one = ids(synthetic)[0]
    told = failing(folder / "run", one[:-1])
    assert f"scenario {one[:-1]} is not among the 6 scenes of this run" in told
    assert f"do you mean {one}?" in told
    assert "it has" in failing(folder / "run", "*")


def test_files_that_were_moved_are_asked_for(own_folder: Path, synthetic: list[Scene]) -> None:
    one = ids(synthetic)[0]
    run = own_folder / "run"
    summary = (run / "summary.json").read_text()
    (run / "summary.json").write_text(re.sub(r'"/[^"]*/(rollouts|scenes)"', r'"/gone/\1"', summary))
    assert "give --rollouts PATH" in failing(run, one)
    assert "give --scenarios PATH" in failing(run, one, rollouts=own_folder / "rollouts")
    [(scenario, _)] = load_scenes(
        read_run(run), [one], rollouts=own_folder / "rollouts", scenarios=str(own_folder / "scenes")
    )
    assert scenario.scenario_id == one
    told = failing(run, one, rollouts=own_folder / "nowhere")
    assert "nowhere" in told
    assert "--rollouts" not in told


def test_rollouts_that_are_missing_double_or_wrong_are_named(
    own_folder: Path, synthetic: list[Scene]
) -> None:
    one, rollouts = synthetic[0]
    run, place = own_folder / "run", own_folder / "rollouts"
    name = one.scenario_id
    write_submission(place / "more.binproto", [rollouts], SubmissionMetadata())
    assert f"scenario {name} has rollouts here and in" in failing(run, name, rollouts=place)
    (place / "more.binproto").unlink()
    write_npz(place, replace(rollouts, object_ids=rollouts.object_ids + 1))
    with pytest.raises(ScoringError, match=name) as caught:
        list(load_scenes(read_run(run), [name], rollouts=place))
    assert {finding.code for finding in caught.value.findings} >= {"unknown_object"}
    (place / f"{name}.npz").unlink()
    assert f"no rollouts of scenario {name}" in failing(run, name, rollouts=place)


def test_a_scene_that_left_the_scenario_files_is_named(
    folder: Path, synthetic: list[Scene], tmp_path: Path
) -> None:
    write_scenarios(tmp_path, [synthetic[1][0]], 1)
    told = failing(folder / "run", ids(synthetic)[0], scenarios=str(tmp_path))
    assert "is not in the scenario files" in told


# --------------------------------------------------------------------------------------------------
# The command


def explain(*args: object) -> Result:
    group = LazyGroup(
        "wosac", program="wosac", commands={"explain": ("wosac_toolkit.cli.explain", "")}
    )
    return CliRunner().invoke(group, ["explain", *map(str, args)], prog_name="wosac")


def test_the_table_tells_components_agents_steps_bins_and_events(
    folder: Path, synthetic: list[Scene]
) -> None:
    scenario, rollouts = synthetic[0]
    result = explain(folder / "run", scenario.scenario_id)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    explanation = explain_scenario(scenario, rollouts)
    row = next(line for line in result.stdout.splitlines() if line.startswith("realism_meta"))
    score, replay, ceiling, loss, avoidable = map(float, row.split()[2:])
    assert score == pytest.approx(explanation.score.metametric, abs=1e-4)
    assert replay == pytest.approx(explanation.replay.metametric, abs=1e-4)
    assert ceiling == pytest.approx(explanation.ceiling, abs=1e-4)
    assert loss == pytest.approx(1 - score, abs=2e-4)
    assert avoidable == pytest.approx(ceiling - score, abs=2e-4)
    for object_id in explanation.object_ids:
        assert re.search(rf"^{object_id} (vehicle|pedestrian|cyclist)", result.stdout, re.MULTILINE)
    for told in (
        "agents, the costliest first",
        "the least likely logged steps",
        "log-probability",
        "events of evaluated agents",
        "ceiling: what no simulation can pass",
    ):
        assert told in result.stdout


def test_one_agent_is_told_of_alone(folder: Path, synthetic: list[Scene]) -> None:
    scenario, rollouts = synthetic[0]
    one, other, *_ = explain_scenario(scenario, rollouts).object_ids.tolist()
    name = scenario.scenario_id
    told = explain(folder / "run", name, "--agent", one, "--top", 0, "--bins", 1).stdout
    assert re.search(rf"^{one} ", told, re.MULTILINE)
    assert not re.search(rf"^{other} ", told, re.MULTILINE)
    assert "the least likely" not in told
    assert told.count("log-probability") == 1
    unknown = explain(folder / "run", name, "--agent", 10**9)
    assert unknown.exit_code == 2
    assert f"object {10**9} is not an evaluated agent" in unknown.stderr


def test_json_and_markdown(folder: Path, synthetic: list[Scene]) -> None:
    name = ids(synthetic)[0]
    record = json.loads(explain(folder / "run", name, "--format", "json").stdout)
    assert record["challenge"] == "2025"
    markdown = explain(folder / "run", name, "--format", "markdown").stdout
    assert markdown.startswith(f"**scenario {name}: what costs the score**")
    assert "| component | weight | score |" in markdown


def test_the_challenge_follows_the_run_unless_another_is_given(
    folder: Path, synthetic: list[Scene], tmp_path: Path
) -> None:
    score_dataset(
        folder / "rollouts", str(folder / "scenes"), challenge="2023", out=tmp_path / "run",
        n_rollouts=None, workers=1,
    )  # fmt: skip
    name = ids(synthetic)[0]
    result = explain(tmp_path / "run", name, "--format", "json")
    assert json.loads(result.stdout)["challenge"] == "2023"
    other = explain(tmp_path / "run", name, "--format", "json", "--challenge", "2024")
    assert json.loads(other.stdout)["challenge"] == "2024"
    assert other.stderr == ""


def test_a_score_that_is_no_longer_the_runs_is_told(
    own_folder: Path, synthetic: list[Scene]
) -> None:
    name = ids(synthetic)[0]
    write_npz(own_folder / "rollouts", log_rollouts(synthetic[0][0], 6))
    result = explain(own_folder / "run", name, "--rollouts", own_folder / "rollouts")
    assert result.exit_code == 0
    assert "files or toolkit have changed since" in result.stderr
    assert "\n" not in result.stderr.strip()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rollout", "seven"], "'seven' is neither a number nor 'all'"),
        (["--format", "latex"], "'latex' is not one of"),
        (["--challenge", "2019"], "'2019' is not one of"),
        (["--render", "scene.bmp"], "cannot be drawn as .bmp"),
        (["--render", "scene.png", "--rollout", "6"], "there is no rollout 6"),
        (["--render", "scene.png", "--at", "9"], "there is no moment 9 s"),
        (["--render", "scene.gif", "--at", "1"], "a film shows all moments"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(
    options: list[str], told: str, folder: Path, synthetic: list[Scene], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    result = explain(folder / "run", ids(synthetic)[0], *options)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    result = explain(tmp_path, "scene")
    assert result.exit_code == 2
    assert "no finished run of wosac score here" in result.stderr


def test_render_writes_the_picture(folder: Path, synthetic: list[Scene], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "scene.png"
    result = explain(folder / "run", ids(synthetic)[0], "--render", picture, "--rollout", 2)
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert result.stderr == f"drawn: {picture}\n"
