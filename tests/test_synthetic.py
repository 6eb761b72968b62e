"""What a synthetic scene promises: form, a sound map, lights with phases, lawful traffic."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wosac_toolkit.errors import WosacError
from wosac_toolkit.scenario import LaneType, MapFeatureKind, ObjectType, Scenario, SignalState
from wosac_toolkit.synthetic import curves, generate_scenario, generate_scenarios
from wosac_toolkit.synthetic.layouts import LAYOUTS
from wosac_toolkit.synthetic.right_of_way import right_of_way
from wosac_toolkit.synthetic.road_network import Mode, Turn, build_network
from wosac_toolkit.synthetic.signals import CAUTION_SECONDS, signal_states

NOW = 10
RED = (SignalState.STOP, SignalState.ARROW_STOP)
CAUTION = (SignalState.CAUTION, SignalState.ARROW_CAUTION)
GREEN = (SignalState.GO, SignalState.ARROW_GO)


@pytest.fixture(scope="module")
def scenes() -> list[Scenario]:
    return list(generate_scenarios(30, seed=7))


def assert_same(a: object, b: object) -> None:
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    else:
        np.testing.assert_array_equal(a, b)


# --- the series ---------------------------------------------------------------------------------


def test_scene_depends_on_seed_and_index_alone(scenes: list[Scenario]) -> None:
    assert_same(generate_scenario(seed=7, index=3), scenes[3])
    other = generate_scenario(seed=8, index=3)
    assert other.tracks.position.shape != scenes[3].tracks.position.shape or not np.array_equal(
        other.tracks.position, scenes[3].tracks.position
    )


def test_same_scene_in_another_process(scenes: list[Scenario]) -> None:
    program = (
        "import sys, hashlib; from wosac_toolkit.synthetic import generate_scenario;"
        "s = generate_scenario(7, 0); sys.stdout.write("
        "hashlib.sha256(s.tracks.position.tobytes() + s.road_map.points.tobytes()).hexdigest());"
        "assert not {'numba', 'pandas', 'pyarrow'} & set(sys.modules)"
    )
    there = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    position, points = scenes[0].tracks.position, scenes[0].road_map.points
    assert there == hashlib.sha256(position.tobytes() + points.tobytes()).hexdigest()


def test_ids_are_sixteen_hex_digits_and_differ(scenes: list[Scenario]) -> None:
    ids = {scene.scenario_id for scene in scenes}
    assert len(ids) == len(scenes)
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in ids)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_seed_or_index_is_refused(seed: int, index: int) -> None:
    with pytest.raises(WosacError, match="negative"):
        generate_scenario(seed, index)


# --- the form of a record -----------------------------------------------------------------------


def test_steps_and_dtypes_are_those_of_womd(scenes: list[Scenario]) -> None:
    for scene in scenes:
        tracks = scene.tracks
        n = len(tracks.object_ids)
        assert scene.current_time_index == NOW
        np.testing.assert_allclose(scene.timestamps, np.arange(91) * 0.1, atol=1e-3)
        for array, shape, dtype in (
            (tracks.object_ids, (n,), np.int64),
            (tracks.object_types, (n,), np.int8),
            (tracks.position, (n, 91, 3), np.float64),
            (tracks.size, (n, 91, 3), np.float32),
            (tracks.heading, (n, 91), np.float32),
            (tracks.velocity, (n, 91, 2), np.float32),
            (tracks.valid, (n, 91), np.bool_),
        ):
            assert array.shape == shape
            assert array.dtype == dtype
        assert len(set(tracks.object_ids.tolist())) == n
        hidden = ~tracks.valid
        for array in (tracks.position, tracks.size, tracks.heading, tracks.velocity):
            assert not array[hidden].any()
            assert np.isfinite(array).all()
        assert (tracks.size[tracks.valid] > 0.3).all()


def test_counts_of_agents(scenes: list[Scenario]) -> None:
    for scene in scenes:
        now = scene.tracks.valid[:, NOW].sum()
        assert 10 <= now <= 128
        assert len(scene.tracks.valid) > now
        assert scene.tracks.valid.any(axis=1).all()
    kinds = np.concatenate([scene.tracks.object_types for scene in scenes])
    for kind in (ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.CYCLIST):
        assert (kinds == kind).mean() > 0.01


def test_autonomous_vehicle_is_always_seen(scenes: list[Scenario]) -> None:
    for scene in scenes:
        sdc = scene.sdc_track_index
        assert scene.tracks.valid[sdc].all()
        assert scene.tracks.object_types[sdc] == ObjectType.VEHICLE


def test_tracks_to_predict(scenes: list[Scenario]) -> None:
    moving, kinds = [], set()
    for scene in scenes:
        rows, tracks = scene.tracks_to_predict, scene.tracks
        assert 2 <= len(rows) == len(set(rows.tolist())) <= 8
        assert len(scene.difficulties) == len(rows)
        assert set(scene.difficulties.tolist()) <= {0, 1, 2}
        assert scene.sdc_track_index not in rows
        assert tracks.valid[rows, NOW].all()
        assert tracks.valid[rows, NOW + 1 :].any(axis=1).all()
        kinds |= set(tracks.object_types[rows].tolist())
        for row in rows:
            seen = np.flatnonzero(tracks.valid[row, NOW:]) + NOW
            ends = tracks.position[row, seen[[0, -1]], :2]
            moving.append(np.hypot(*(ends[1] - ends[0])) > 2.0)
    assert kinds == {ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.CYCLIST}
    assert np.mean(moving) > 0.75


def test_objects_of_interest_are_pairs_of_tracks(scenes: list[Scenario]) -> None:
    pairs = [scene.objects_of_interest for scene in scenes]
    assert {len(pair) for pair in pairs} == {0, 2}
    for scene, pair in zip(scenes, pairs, strict=True):
        assert np.isin(pair, scene.tracks.object_ids).all()
        assert len(set(pair.tolist())) == len(pair)


def test_agents_come_late_leave_early_and_flicker(scenes: list[Scenario]) -> None:
    late = early = gaps = 0
    for scene in scenes:
        valid = scene.tracks.valid
        late += (~valid[:, : NOW + 1].any(axis=1)).sum()
        early += (valid[:, NOW] & ~valid[:, -1]).sum()
        comings = valid[:, 0] + (valid[:, 1:] & ~valid[:, :-1]).sum(axis=1)
        gaps += (comings > 1).sum()
    n = sum(len(scene.tracks.valid) for scene in scenes)
    assert late > 0.05 * n
    assert early > 0.05 * n
    assert gaps > 0.02 * n


def test_global_frames_differ_as_in_womd(scenes: list[Scenario]) -> None:
    far = np.array([np.hypot(*scene.tracks.position[-1, NOW, :2]) for scene in scenes])
    heights = np.array([scene.tracks.position[-1, NOW, 2] for scene in scenes])
    assert far.min() < 500
    assert 8000 < far.max() < 21000
    assert heights.std() > 50
    wrapped = [np.abs(scene.tracks.heading).max() <= np.pi + 1e-6 for scene in scenes]
    assert 0.3 < np.mean(wrapped) < 1


# --- the map ------------------------------------------------------------------------------------


def lanes_by_id(scene: Scenario) -> dict[int, int]:
    rows = scene.road_map.of_kind(MapFeatureKind.LANE)
    return {int(scene.road_map.feature_ids[row]): int(row) for row in rows}


def test_map_is_as_rich_as_a_real_one(scenes: list[Scenario]) -> None:
    for scene in scenes:
        road_map = scene.road_map
        assert len(set(road_map.feature_ids.tolist())) == len(road_map.feature_ids)
        assert len(road_map.of_kind(MapFeatureKind.ROAD_EDGE)) >= 2
        assert len(road_map.of_kind(MapFeatureKind.LANE)) >= 10
        assert len(road_map.points) > 1000
    kinds = {int(kind) for scene in scenes for kind in scene.road_map.kinds}
    assert kinds == {int(kind) for kind in MapFeatureKind} - {MapFeatureKind.NONE}
    lane_types = {
        int(t)
        for scene in scenes
        for t in scene.road_map.types[scene.road_map.of_kind(MapFeatureKind.LANE)]
    }
    assert lane_types == {LaneType.FREEWAY, LaneType.SURFACE_STREET, LaneType.BIKE_LANE}
    assert np.median([len(scene.road_map.points) for scene in scenes]) > 6000


def test_polylines_have_a_point_every_half_metre(scenes: list[Scenario]) -> None:
    for scene in scenes:
        for kind in (MapFeatureKind.LANE, MapFeatureKind.ROAD_LINE, MapFeatureKind.ROAD_EDGE):
            for row in scene.road_map.of_kind(kind):
                gaps = np.linalg.norm(np.diff(scene.road_map.polyline(row), axis=0), axis=1)
                assert gaps.max() < 0.55
                assert gaps.min() > 0.05


def test_lane_graph_is_mutual_and_continuous(scenes: list[Scenario]) -> None:
    for scene in scenes:
        road_map, lanes = scene.road_map, lanes_by_id(scene)
        for feature_id, row in lanes.items():
            for exit_id in road_map.exit_lanes.of(row):
                after = lanes[int(exit_id)]
                assert feature_id in road_map.entry_lanes.of(after)
                gap = road_map.polyline(after)[0] - road_map.polyline(row)[-1]
                assert np.linalg.norm(gap) < 0.1
            for entry_id in road_map.entry_lanes.of(row):
                assert feature_id in road_map.exit_lanes.of(lanes[int(entry_id)])
            if road_map.interpolating[row]:
                assert len(road_map.entry_lanes.of(row)) == len(road_map.exit_lanes.of(row)) == 1


def test_neighbors_are_mutual_and_lie_on_their_side(scenes: list[Scenario]) -> None:
    for scene in scenes:
        road_map, lanes = scene.road_map, lanes_by_id(scene)
        links = {(int(n[0]), int(n[1]), lanes[int(n[2])]) for n in road_map.neighbors}
        for row, side, other in links:
            assert (other, 1 - side, row) in links
            mine, theirs = road_map.polyline(row)[:, :2], road_map.polyline(other)[:, :2]
            along = mine[-1] - mine[-2]
            across = theirs[-1] - mine[-1]
            left = along[0] * across[1] - along[1] * across[0] > 0
            assert left == (side == 0)
            assert 3.0 < np.hypot(*across) < 4.6


def signed_distance(points: np.ndarray, scene: Scenario) -> np.ndarray:
    """To the nearest road edge (heights stretched by 3), negative on its port side."""
    road_map = scene.road_map
    edges = [road_map.polyline(row) for row in road_map.of_kind(MapFeatureKind.ROAD_EDGE)]
    start = np.concatenate([edge[:-1] for edge in edges])
    delta = np.concatenate([np.diff(edge, axis=0) for edge in edges])
    result = []
    for point in points:
        to_point = point - start
        along = (to_point[:, :2] * delta[:, :2]).sum(1) / (delta[:, :2] ** 2).sum(1)
        away = to_point - delta * np.clip(along, 0, 1)[:, None]
        nearest = np.argmin((away**2 * [1, 1, 9]).sum(1))
        a, b = delta[nearest], to_point[nearest]
        result.append(np.hypot(*away[nearest, :2]) * np.sign(a[1] * b[0] - a[0] * b[1]))
    return np.array(result)


def test_road_edges_have_the_road_on_their_port_side(scenes: list[Scenario]) -> None:
    off_road: list[bool] = []
    for scene in scenes[:12]:
        road_map, tracks = scene.road_map, scene.tracks
        lanes = road_map.of_kind(MapFeatureKind.LANE)
        centres = np.concatenate([road_map.polyline(row)[3:-3:15] for row in lanes])
        assert (signed_distance(centres, scene) < 0).all()
        walkers = np.flatnonzero(
            (tracks.object_types == ObjectType.PEDESTRIAN) & tracks.valid[:, NOW]
        )
        off_road += (
            signed_distance(tracks.position[walkers, NOW] - [0, 0, 0.9], scene) > 0
        ).tolist()
    # The others are crossing.
    assert 0.6 < np.mean(off_road) <= 1


def test_bottom_of_boxes_is_on_the_lanes(scenes: list[Scenario]) -> None:
    for scene in scenes[:12]:
        tracks, road_map = scene.tracks, scene.road_map
        lanes = road_map.of_kind(MapFeatureKind.LANE)
        centres = np.concatenate([road_map.polyline(row) for row in lanes])
        for row in scene.evaluated_agents():
            if tracks.object_types[row] == ObjectType.VEHICLE:
                bottom = tracks.position[row, NOW] - [0, 0, tracks.size[row, NOW, 2] / 2]
                nearest = np.linalg.norm(centres - bottom, axis=1).min()
                assert nearest < 1.0


def test_some_scenes_have_lanes_that_cross_at_two_heights(scenes: list[Scenario]) -> None:
    clearances = []
    for scene in scenes:
        rows = scene.road_map.of_kind(MapFeatureKind.LANE)
        points = np.concatenate([scene.road_map.polyline(row)[::4] for row in rows])
        away = points[None, :, :2] - points[::10, None, :2]
        close = (away**2).sum(-1) < 1.5**2
        rise = np.abs(points[None, :, 2] - points[::10, None, 2])
        clearances.append(rise[close].max())
    clearances = np.array(clearances)
    assert (clearances > 5.5).any()
    assert (clearances < 0.5).any()
    assert not ((clearances > 0.5) & (clearances < 5.5)).any()


# --- the lights ---------------------------------------------------------------------------------


def lights_of(scene: Scenario) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lane ids [K], states [T, K] and stop points [T, K, 3]; the same lanes at each step."""
    lights = scene.traffic_lights
    k = int(lights.step_offsets[1])
    return (
        lights.lane_ids[:k],
        lights.states.reshape(91, k),
        lights.stop_points.reshape(91, k, 3),
    )


def test_lights_are_given_for_every_step(scenes: list[Scenario]) -> None:
    lit = 0
    for scene in scenes:
        assert scene.traffic_lights.n_steps == 91
        ids, _, _ = lights_of(scene)
        np.testing.assert_array_equal(scene.traffic_lights.lane_ids, np.tile(ids, 91))
        lit += len(ids) > 0
    assert 0.3 < lit / len(scenes) < 0.9


def test_stop_points_are_where_the_approach_ends(scenes: list[Scenario]) -> None:
    for scene in scenes:
        road_map, lanes = scene.road_map, lanes_by_id(scene)
        ids, _, stops = lights_of(scene)
        for k, lane in enumerate(ids):
            row = lanes[int(lane)]
            assert road_map.interpolating[row]
            (entry,) = road_map.entry_lanes.of(row)
            assert (stops[:, k] == road_map.polyline(row)[0]).all()
            approach = road_map.polyline(lanes[int(entry)])
            assert np.linalg.norm(approach[-1] - stops[0, k]) < 0.1


def test_lights_go_through_their_phases_in_order(scenes: list[Scenario]) -> None:
    changes, shown = set(), set()
    for scene in scenes:
        _, states, _ = lights_of(scene)
        shown |= set(np.unique(states).tolist())
        for before, after in zip(states[:-1].ravel(), states[1:].ravel(), strict=True):
            if before != after:
                changes.add((SignalState(before), SignalState(after)))
    assert shown >= set(map(int, RED + CAUTION + GREEN))
    for before, after in changes:
        if before != SignalState.UNKNOWN:
            order = (RED, GREEN, CAUTION)
            kind = next(i for i, states in enumerate(order) if before in states)
            assert after in order[(kind + 1) % 3]
    assert len(changes) >= 6


def test_protected_arrows_never_meet_another_green() -> None:
    for seed in range(4):
        network = build_network(LAYOUTS["four_way_signal"][1](np.random.default_rng(seed)))
        rules = right_of_way(network)
        states = signal_states(network, rules.gated, 1500, np.random.default_rng(seed))
        conflict = np.isfinite(rules.clearance)
        gates = [network.lanes[lane].gate for lane in rules.gated]
        arrows = [i for i, gate in enumerate(gates) if gate.protected]
        walkways = np.array([gate.turn is Turn.CROSS for gate in gates])
        greens = np.isin(states, GREEN)
        for i in arrows:
            others = conflict[i] & ~walkways
            assert not (greens[:, [i]] & greens[:, others]).any()
        # Every light has its turn, and its caution lasts 3.5 s.
        for i in np.flatnonzero(~walkways):
            assert greens[:, i].any()
            amber = np.isin(states[:, i], CAUTION)
            changes = np.flatnonzero(np.diff(amber)) + 1
            runs = [run.size / 10 for run in np.split(amber, changes)[1:-1] if run[0]]
            assert runs
            assert np.allclose(runs, CAUTION_SECONDS, atol=0.11)


def test_stop_signs_stand_beside_the_lanes_they_control(scenes: list[Scenario]) -> None:
    found = 0
    for scene in scenes:
        road_map, lanes = scene.road_map, lanes_by_id(scene)
        for row in road_map.of_kind(MapFeatureKind.STOP_SIGN):
            controlled = road_map.stop_sign_lanes.of(row)
            assert len(controlled) > 0
            post = road_map.polyline(row)[0]
            for lane in controlled:
                start = road_map.polyline(lanes[int(lane)])[0]
                assert np.linalg.norm(start - post) < 15.0
                found += 1
    assert found > 10


# --- the traffic --------------------------------------------------------------------------------


def test_vehicles_do_not_run_red_lights(scenes: list[Scenario]) -> None:
    crossings = violations = 0
    for scene in scenes:
        lanes = lanes_by_id(scene)
        ids, states, stops = lights_of(scene)
        for k, lane in enumerate(ids):
            start = scene.road_map.polyline(lanes[int(lane)])[:2, :2]
            along = (start[1] - start[0]) / np.hypot(*(start[1] - start[0]))
            vehicles = scene.tracks.object_types == ObjectType.VEHICLE
            away = scene.tracks.position[vehicles][..., :2] - stops[0, k, :2]
            ahead = away @ along
            aside = np.abs(away @ np.array([-along[1], along[0]]))
            valid = scene.tracks.valid[vehicles]
            passes = (
                (valid[:, :-1] & valid[:, 1:])
                & ((ahead[:, :-1] <= 0) & (ahead[:, 1:] > 0) & (ahead[:, 1:] < 5))
                & (aside[:, 1:] < 1.0)
            )
            # Lanes that start together may show different lights: only those that do not.
            alike = [j for j in range(len(ids)) if np.allclose(stops[0, j], stops[0, k])]
            clear = np.array([len(set(step[alike].tolist())) == 1 for step in states[1:]])
            crossings += (passes & clear).sum()
            violations += (passes & clear & np.isin(states[1:, k], RED)).sum()
    assert crossings > 20
    assert violations <= 0.03 * crossings


def boxes(scene: Scenario, row: int, steps: np.ndarray) -> np.ndarray:
    """Corners [n, 4, 2] of the box of one track."""
    tracks = scene.tracks
    heading = tracks.heading[row, steps].astype(float)
    along = np.stack([np.cos(heading), np.sin(heading)], -1)
    across = np.stack([-along[:, 1], along[:, 0]], -1)
    half = tracks.size[row, steps] / 2
    return np.stack(
        [
            tracks.position[row, steps, :2] + i * half[:, :1] * along + j * half[:, 1:2] * across
            for i, j in ((1, 1), (1, -1), (-1, -1), (-1, 1))
        ],
        axis=1,
    )


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether rectangles [n, 4, 2] overlap, by separating axes."""
    apart = np.zeros(len(a), bool)
    for box in (a, b):
        for k in (0, 1):
            edge = box[:, k + 1] - box[:, k]
            normal = np.stack([-edge[:, 1], edge[:, 0]], -1)[:, None]
            one, other = (a * normal).sum(-1), (b * normal).sum(-1)
            apart |= (one.max(1) < other.min(1)) | (other.max(1) < one.min(1))
    return ~apart


def test_evaluated_agents_hardly_ever_collide(scenes: list[Scenario]) -> None:
    collided = []
    for scene in scenes:
        tracks = scene.tracks
        for row in scene.evaluated_agents():
            hits = 0
            for other in range(len(tracks.valid)):
                both = tracks.valid[row] & tracks.valid[other]
                away = np.abs(tracks.position[row] - tracks.position[other])
                steps = np.flatnonzero(both & (away[:, :2].max(1) < 10) & (away[:, 2] < 3))
                if other != row and len(steps):
                    hits += overlap(boxes(scene, row, steps), boxes(scene, other, steps)).sum()
            collided.append(hits > 0)
    assert np.mean(collided) <= 0.03


def test_evaluated_vehicles_stay_on_the_road(scenes: list[Scenario]) -> None:
    left = []
    for scene in scenes:
        tracks = scene.tracks
        for row in scene.evaluated_agents():
            if tracks.object_types[row] == ObjectType.VEHICLE:
                steps = np.flatnonzero(tracks.valid[row])[::12]
                corners = boxes(scene, row, steps).reshape(-1, 2)
                bottom = tracks.position[row, steps, 2] - tracks.size[row, steps, 2] / 2
                points = np.column_stack([corners, np.repeat(bottom, 4)])
                left.append((signed_distance(points, scene) > 0).any())
    assert np.mean(left) <= 0.03


def test_nobody_teleports(scenes: list[Scenario]) -> None:
    fastest = {ObjectType.VEHICLE: 38.0, ObjectType.CYCLIST: 9.0, ObjectType.PEDESTRIAN: 3.0}
    for scene in scenes:
        tracks = scene.tracks
        step = np.diff(tracks.position[..., :2], axis=1) / 0.1
        both = tracks.valid[:, 1:] & tracks.valid[:, :-1]
        for kind, limit in fastest.items():
            rows = tracks.object_types == kind
            assert np.hypot(*step[rows][both[rows]].T).max(initial=0) < limit
        # Accelerations over half a second, so that the sensor's jitter does not count.
        speed = np.hypot(*np.moveaxis(tracks.velocity, -1, 0))
        seen = tracks.valid[:, 5:] & tracks.valid[:, :-5]
        assert np.abs((speed[:, 5:] - speed[:, :-5])[seen] / 0.5).max() < 8.0


def test_velocity_and_heading_agree_with_the_path(scenes: list[Scenario]) -> None:
    for scene in scenes:
        tracks = scene.tracks
        step = (tracks.position[:, 2:, :2] - tracks.position[:, :-2, :2]) / 0.2
        three = tracks.valid[:, 2:] & tracks.valid[:, 1:-1] & tracks.valid[:, :-2]
        error = np.hypot(*(step - tracks.velocity[:, 1:-1])[three].T)
        assert np.percentile(error, 99) < 0.4
        vehicles = (tracks.object_types == ObjectType.VEHICLE)[:, None]
        moving = three & vehicles & (np.hypot(*np.moveaxis(step, -1, 0)) > 3.0)
        course = np.arctan2(step[..., 1], step[..., 0])
        slip = (course - tracks.heading[:, 1:-1] + np.pi) % (2 * np.pi) - np.pi
        assert np.abs(slip[moving]).max(initial=0) < 0.15


def test_there_is_something_to_learn(scenes: list[Scenario]) -> None:
    """Turning, stopping and starting are common: a constant velocity predicts badly."""
    turns, brakes, errors = [], [], []
    for scene in scenes:
        tracks = scene.tracks
        for row in scene.evaluated_agents():
            seen = np.flatnonzero(tracks.valid[row, NOW:]) + NOW
            if tracks.object_types[row] != ObjectType.VEHICLE or len(seen) < 40:
                continue
            heading = np.unwrap(tracks.heading[row, seen])
            speed = np.hypot(*tracks.velocity[row, seen].T)
            turns.append(np.ptp(heading) > np.radians(30))
            brakes.append(np.ptp(speed) > 3.0)
            straight = tracks.position[row, NOW, :2] + tracks.velocity[row, NOW] * (
                0.1 * (seen - NOW)[:, None]
            )
            errors.append(np.hypot(*(straight - tracks.position[row, seen, :2]).T).mean())
    assert np.mean(turns) > 0.08
    assert np.mean(brakes) > 0.4
    assert np.mean(errors) > 3.0


# --- the parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_every_layout_has_lanes_from_edge_to_edge(name: str, seed: int) -> None:
    network = build_network(LAYOUTS[name][1](np.random.default_rng(seed)))
    drive = [lane for lane in network.lanes if lane.mode == Mode.DRIVE]
    assert any(not lane.entries for lane in drive)
    for lane in drive:
        # No lane ends at a junction.
        if not lane.exits:
            ends = [way.axis[-1] for way in network.carriageways if way.end is None]
            assert min(np.hypot(*(lane.points[-1] - end)) for end in ends) < 25.0
    for edge in network.edges:
        assert len(edge.points) >= 2


@given(
    st.floats(-np.pi, np.pi),
    st.floats(-2.6, 2.6),
    st.floats(5.0, 40.0),
    st.floats(5.0, 40.0),
    st.floats(3.0, 30.0),
)
@settings(max_examples=60, deadline=None)
def test_connections_keep_both_poses(
    heading: float, turn: float, before: float, after: float, radius: float
) -> None:
    start = np.array([3.0, -2.0])
    end = start + before * curves.unit(heading) + after * curves.unit(heading + turn)
    path = curves.connect(start, heading, end, heading + turn, radius)
    np.testing.assert_allclose(path[[0, -1]], [start, end], atol=1e-6)
    found = curves.headings(path)
    assert abs(curves.wrap(found[0] - heading)) < 0.2
    assert abs(curves.wrap(found[-1] - heading - turn)) < 0.2
    assert np.hypot(*np.diff(path, axis=0).T).max() < 0.51


@given(st.floats(-np.pi, np.pi), st.floats(60.0, 300.0), st.floats(-1.0, 1.0))
@settings(max_examples=40, deadline=None)
def test_bends_are_straight_at_the_junction(heading: float, total: float, turn: float) -> None:
    axis = curves.bend(np.zeros(2), heading, total, turn, (25.0, 0.0))
    straight = axis[:25] - axis[0]
    assert np.abs(straight @ curves.unit(heading + np.pi / 2)).max() < 1e-6
    assert abs(curves.length(axis) - total) < 1e-6
    assert abs(curves.wrap(curves.headings(axis)[-1] - heading - turn)) < 0.05


def test_an_island_has_the_road_outside() -> None:
    core = np.column_stack([np.linspace(0, 20, 41), np.zeros(41)])
    outline = curves.loop_around(core, 1.5)
    np.testing.assert_array_equal(outline[0], outline[-1])
    x, y = outline.T
    area = 0.5 * np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])
    assert area < 0  # clockwise
    assert np.isclose(abs(area), 20 * 3 + np.pi * 1.5**2, rtol=0.02)
