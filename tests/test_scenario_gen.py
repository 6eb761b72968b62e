"""The metric of the Scenario Generation challenge.

Exact against recorded results of the official package, by the criterion of `test_parity.py`; and
rule by rule on scenes made by hand.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rollouts_examples import same
from test_parity import assert_features_match, assert_matches

from wosac_toolkit import (
    MetaScoreReward,
    Rollouts,
    RolloutsError,
    Scenario,
    WosacError,
    compute_features,
    get_reward,
    load_scenarios,
    score_scenario,
)
from wosac_toolkit.challenge import SCENARIO_GEN, KernelDensity, get_challenge
from wosac_toolkit.cli.group import LazyGroup
from wosac_toolkit.features import logged_features, prepare_scene
from wosac_toolkit.io.npz import read_npz, write_npz
from wosac_toolkit.io.rollouts import load_rollouts
from wosac_toolkit.io.scenarios import write_scenarios
from wosac_toolkit.io.submission import encode_scenario_rollouts
from wosac_toolkit.io.wire import encode_block, encode_varint
from wosac_toolkit.kernels import boxes, nearest_object, road_edges, time_to_collision
from wosac_toolkit.likelihood import count_log, count_simulation
from wosac_toolkit.metric import leave_one_out
from wosac_toolkit.scenario import ObjectType
from wosac_toolkit.validation import check_rollouts

OFFICIAL = Path(__file__).parent / "official" / "scenario_gen"
CHALLENGE = "scenario_gen_2025"
BUNDLES = sorted(p.name.split(".")[0] for p in OFFICIAL.glob(f"*.{CHALLENGE}.json"))
F = np.float32

MakeScenario = Callable[..., Scenario]


# --- as the official package --------------------------------------------------------------------


@cache
def scenes() -> dict[str, Scenario]:
    return {s.scenario_id: s for s in load_scenarios(OFFICIAL / "scenes.tfrecord.gz")}


@cache
def load_bundle(name: str) -> tuple[Scenario, Rollouts]:
    arrays = np.load(OFFICIAL / f"{name}.npz")
    rollouts = Rollouts(
        str(arrays["scenario_id"]),
        *(arrays[key] for key in ("object_ids", "states", "sizes", "object_types")),
    )
    return scenes()[rollouts.scenario_id], rollouts


@pytest.mark.parametrize("name", BUNDLES)
def test_scores_as_the_official_package(name):
    recorded = json.loads((OFFICIAL / f"{name}.{CHALLENGE}.json").read_text())
    score = score_scenario(*load_bundle(name), CHALLENGE)
    assert_matches(score, recorded["metrics"], recorded["buckets"])


@pytest.mark.parametrize("name", BUNDLES)
def test_features_are_the_official_ones(name):
    recorded = np.load(OFFICIAL / f"{name}.features.npz")
    both = compute_features(*load_bundle(name), CHALLENGE)
    for kind, features in zip(("log", "sim"), both, strict=True):
        prefix = f"{kind}."
        assert_features_match(
            features,
            {k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)},
        )


def test_recorded_results_show_what_can_go_wrong():
    """Bundles in which a rule does not matter would not notice its loss."""
    assert len(BUNDLES) == 6
    scenario, rollouts = load_bundle("about_origin")
    ids = scenario.tracks.object_ids[scenario.sim_agents()]
    assert (np.diff(ids) < 0).any()  # the record's order is not that of ids
    assert (ids != rollouts.object_ids).any()
    assert (np.ptp(rollouts.sizes, axis=2) > 0).any()
    assert (rollouts.object_types != scenario.tracks.object_types[0]).any()
    assert not scenario.tracks.valid[scenario.sim_agents()].all()
    # Some logged agent's nearest object is a box without size at the origin.
    logged, _ = compute_features(scenario, rollouts, CHALLENGE)
    tracks = scenario.tracks
    only_valid = replace(tracks, position=np.where(tracks.valid[..., None], tracks.position, 1e4))
    moved, _ = compute_features(replace(scenario, tracks=only_valid), rollouts, CHALLENGE)
    differ = logged.distance_to_nearest_object != moved.distance_to_nearest_object
    assert (differ & logged.valid).any()
    violations = [json.loads((OFFICIAL / f"{b}.{CHALLENGE}.json").read_text()) for b in BUNDLES]
    assert any(v["metrics"]["simulated_traffic_light_violation_rate"] > 0 for v in violations)


# --- rules --------------------------------------------------------------------------------------


def generated(scenario: Scenario, n_rollouts: int = 4, noise: float = 0.0) -> Rollouts:
    """The log, with a random walk on it."""
    tracks, rows = scenario.tracks, scenario.sim_agents()
    states = np.concatenate([tracks.position[rows], tracks.heading[rows, :, None]], axis=2)
    states = np.repeat(states[None].astype(F), n_rollouts, axis=0)
    walk = np.random.default_rng(0).normal(0, noise, states.shape).cumsum(axis=2)
    return Rollouts(
        scenario.scenario_id,
        tracks.object_ids[rows],
        states + walk.astype(F),
        sizes=np.repeat(tracks.size[None, rows], n_rollouts, axis=0),
    )


@pytest.fixture
def road(make_scenario: MakeScenario) -> Scenario:
    """Four vehicles beside each other, far from the origin; one of them is evaluated in WOSAC."""
    return make_scenario(n_tracks=4, origin=(300.0, 500.0))


def test_is_the_metric_of_2025_but_for_its_pooling():
    sim_agents = get_challenge("2025").components
    assert [replace(c, pooled=False) for c in SCENARIO_GEN.components] == list(sim_agents)
    assert [c.name for c in SCENARIO_GEN.components if not c.pooled] == ["traffic_light_violation"]
    assert get_challenge(CHALLENGE) is SCENARIO_GEN
    assert not any(c.pooled for year in ("2025", "2024", "2023")
                   for c in get_challenge(year).components)  # fmt: skip


def test_all_simulated_agents_are_evaluated_in_the_records_order(road):
    tracks = replace(road.tracks, object_ids=np.array([12, 10, 13, 11]))
    tracks.valid[3, 10] = False  # not simulated
    scenario = replace(road, tracks=tracks)
    score = score_scenario(scenario, generated(scenario), CHALLENGE)
    assert score.agents.object_ids.tolist() == [12, 10, 13]
    assert score.n_evaluated_agents == score.n_sim_agents == 3


def test_displacement_is_zero_wherever_agents_go(road):
    score = score_scenario(road, generated(road, noise=1.0), CHALLENGE)
    assert score.average_displacement_error == score.min_average_displacement_error == 0


def test_nothing_precedes_the_first_step(road):
    _, simulated = compute_features(road, generated(road), CHALLENGE)
    for kind, steps in (("speed", [0, 90]), ("acceleration", [0, 1, 89, 90])):
        for name in (f"linear_{kind}", f"angular_{kind}"):
            missing = np.isnan(getattr(simulated, name))
            assert np.array_equal(np.flatnonzero(missing[0, 0]), steps), name
            assert (missing == missing[0, 0]).all()


def test_steps_without_speed_count_as_top_speed(road):
    """As in the other versions, but at both ends: two steps in 91 of each agent."""
    scene = prepare_scene(road, CHALLENGE)
    logged, simulated = compute_features(road, generated(road, 3), CHALLENGE)
    tally = count_simulation(simulated, count_log(logged, scene.challenge), scene.challenge)
    assert tally["linear_speed"][0, 0].tolist() == [0, 0, 4 * 89, *[0] * 6, 4 * 2]


def test_distributions_are_those_of_the_scene(road):
    """One agent's collision in every rollout is a quarter of the scene's agents'."""
    rollouts = generated(road)
    rollouts.states[:, 0, 50, :2] = rollouts.states[:, 1, 50, :2]  # both collide
    score = score_scenario(road, rollouts, CHALLENGE)
    pooled = np.log((2 * 4 + 0.001) / (4 * 4 + 0.002))
    assert score.agents.log_likelihoods["collision_indication"] == pytest.approx([pooled] * 4)
    assert score.simulated_collision_rate == 0.5


def test_time_to_collision_pools_all_agents_but_asks_vehicles(road):
    road.tracks.object_types[1:] = ObjectType.PEDESTRIAN
    rollouts = generated(road, 1)
    score = score_scenario(road, rollouts, CHALLENGE)
    assert score.agents.n_valid_steps["time_to_collision"].tolist() == [91, 0, 0, 0]
    logged, simulated = compute_features(road, rollouts, CHALLENGE)
    tally = count_simulation(simulated, count_log(logged, SCENARIO_GEN), SCENARIO_GEN)
    assert tally["time_to_collision"][0, 0].sum() == 4 * 91


def test_what_is_scored_for_vehicles_goes_by_the_logs_types(road):
    as_logged = generated(road)
    retyped = replace(as_logged, object_types=np.full((4, 4), ObjectType.CYCLIST))
    _, simulated = compute_features(road, retyped, CHALLENGE)
    assert (simulated.object_type == ObjectType.CYCLIST).all()
    a, b = (score_scenario(road, rollouts, CHALLENGE) for rollouts in (as_logged, retyped))
    assert a.metrics() == b.metrics()


def test_a_missing_logged_state_is_a_box_without_size_at_the_origin(make_scenario):
    scenario = make_scenario(n_tracks=2, origin=(-20.0, 0.0))
    tracks = scenario.tracks
    tracks.valid[1, 30:] = False
    for array in (tracks.position, tracks.size, tracks.heading):
        array[1, 30:] = 0
    logged = logged_features(prepare_scene(scenario, CHALLENGE))
    assert logged.valid[0].sum(axis=1).tolist() == [91, 30]
    # The first vehicle, 2 m wide, drives through the origin at step 40.
    assert logged.collision_per_step[0, 0].nonzero()[0].tolist() == list(range(36, 45))
    sim_agents = logged_features(prepare_scene(scenario, "2025"))
    assert not sim_agents.collision_per_step.any()


def test_simulated_sizes_count(road):
    rollouts = generated(road)
    rollouts.sizes[2, 1, 20:25, 1] = 9.0  # as wide as two lanes
    _, simulated = compute_features(road, rollouts, CHALLENGE)
    collided = simulated.collision_per_step
    assert collided[2, :3, 20:25].all()  # it and both neighbours
    assert collided.sum() == 15


def test_a_red_light_is_run_between_two_steps_of_the_record(make_scenario):
    lanes = {1: [(290.0, 500.0), (400.0, 500.0)]}
    signals = [[(1, 4, (302.2, 500.0))]] * 91
    scenario = make_scenario(origin=(300.0, 500.0), lanes=lanes, signals=signals)
    logged = logged_features(prepare_scene(scenario, CHALLENGE))
    ran = logged.traffic_light_violation_per_step
    # 0.5 m a step from 300: in the history, and not again.
    assert np.argwhere(ran).tolist() == [[0, vehicle, 5] for vehicle in range(3)]


def test_order_threads_and_leaving_out(road):
    rollouts = generated(road, 5, noise=0.05)
    score = score_scenario(road, rollouts, CHALLENGE)
    assert score_scenario(road, rollouts, CHALLENGE, threads=3).metrics() == score.metrics()
    objects, samples = [2, 0, 3, 1], [4, 2, 0, 1, 3]
    assert rollouts.sizes is not None
    shuffled = Rollouts(
        road.scenario_id, rollouts.object_ids[objects], rollouts.states[samples][:, objects],
        sizes=rollouts.sizes[samples][:, objects],
    )  # fmt: skip
    again = score_scenario(road, shuffled, CHALLENGE)
    assert again.metrics() == pytest.approx(score.metrics(), abs=1e-12)
    scene = prepare_scene(road, CHALLENGE)
    without = leave_one_out(scene, count_log(logged_features(scene), SCENARIO_GEN), rollouts)
    rescored = score_scenario(road, rollouts.between(1, 5), CHALLENGE)
    assert without.metametric[0] == pytest.approx(rescored.metametric, abs=1e-12)


def test_a_pooled_kernel_density_is_one_for_the_scene(road):
    components = tuple(
        replace(c, estimator=KernelDensity(0.5)) if c.name == "distance_to_road_edge" else c
        for c in SCENARIO_GEN.components
    )
    own = replace(SCENARIO_GEN, name="own", components=components)
    rollouts = generated(road, 2, noise=0.03)
    logged, simulated = compute_features(road, rollouts, own)
    score = score_scenario(road, rollouts, own)
    at = logged.distance_to_road_edge[0].astype(float)
    z = (at[..., None] - simulated.distance_to_road_edge.ravel().astype(float)) / 0.5
    expected = np.log(np.exp(-0.5 * z**2).mean(axis=2)).mean(axis=1)
    assert score.agents.log_likelihoods["distance_to_road_edge"] == pytest.approx(expected)


# --- kernels with sizes that change -------------------------------------------------------------


def test_each_step_has_its_own_sizes():
    """Every kernel gives at a step what it gives there if all steps had the sizes of this one."""
    rng = np.random.default_rng(4)
    shape = (2, 4, 5)  # R, T, N
    x, y = rng.uniform(-8, 8, (2, 2, 2 + 4, 5)).astype(F)
    heading = rng.uniform(-0.3, 0.3, shape).astype(F)
    length, width, height = rng.uniform(0.5, 5, (3, *shape)).astype(F)
    z = rng.uniform(0, 1, (2, 5, 2 + 4)).astype(F)
    x[:, :, 0], y[:, :, 0], z[:, 0], heading[:, :, 0] = 0, 0, 0, 0  # stands, but its size changes
    valid = np.ones((4, 5), bool)
    polyline = np.array([[-9, -5, 0], [9, -5, 0], [9, 6, 1], [-9, 6, 3]], F)
    edges = road_edges.road_edge_segments([polyline], planar=False)

    def measured(length: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        distance, time, to_edge = np.empty((3, 2, 5, 4), F)
        core_length, core_width, shrinking = nearest_object.shrunken_boxes(length, width, 0.7)
        radius = np.hypot(length, width) / F(2)
        nearest_object.nearest_object_distances(
            x, y, heading, core_length, core_width, shrinking, radius, valid, distance
        )
        time_to_collision.times_to_collision(x, y, heading, length, width, valid, 1, time)
        corners = np.empty((*shape, 8), F)
        boxes.box_corners(x, y, heading, length, width, corners)
        road_edges.road_edge_distances(corners, z, height / F(2), valid, edges, to_edge)
        return np.stack([distance, time, to_edge])

    changing = measured(length, width, height)
    for r, t in np.ndindex(2, 4):
        constant = measured(length[r, t], width[r, t], height[r, t])
        assert np.array_equal(changing[:, r, :, t], constant[:, r, :, t])
    assert len(np.unique(changing[2, 0, 0])) == 4
    assert (changing[1] < 5).any()


# --- files --------------------------------------------------------------------------------------


def boxed_message(rollouts: Rollouts, *, drop: int = 0, packed: bool = True) -> bytes:
    """A `ScenarioRollouts` of one rollout with the fields of scenario generation.

    `drop` leaves out that many steps of the last object's heights.
    """
    assert rollouts.sizes is not None
    trajectories = []
    for n, object_id in enumerate(rollouts.object_ids.tolist()):
        columns = {2 + k: rollouts.states[0, n, :, k] for k in range(4)}
        columns |= {f: rollouts.sizes[0, n, :, k] for f, k in ((8, 0), (7, 1), (9, 2))}
        if n == len(rollouts.object_ids) - 1:
            columns[9] = columns[9][: rollouts.n_steps - drop]
        fields = []
        for number, values in columns.items():
            floats = [struct.pack("<f", value) for value in values]
            if packed:
                fields.append(encode_block(number, b"".join(floats)))
            else:
                fields += [encode_varint(number << 3 | 5) + value for value in floats]
        fields.append(encode_varint(6 << 3) + encode_varint(object_id))
        if rollouts.object_types is not None:
            object_type = int(rollouts.object_types[0, n])
            fields.append(encode_varint(10 << 3) + encode_varint(object_type))
        fields.append(encode_block(11, bytes(rollouts.n_steps)))  # valid: False throughout
        trajectories.append(encode_block(1, b"".join(fields)))
    return encode_block(1, rollouts.scenario_id.encode()) + encode_block(2, b"".join(trajectories))


@pytest.fixture
def small(road) -> Rollouts:
    rollouts = generated(road, 1, noise=0.1)
    assert rollouts.sizes is not None
    sizes = rollouts.sizes + np.arange(rollouts.sizes.size).reshape(rollouts.sizes.shape) / F(8)
    return replace(rollouts, sizes=sizes, object_types=np.array([[1, 2, 3, 1]]))


def assert_same(a: Rollouts, b: Rollouts) -> None:
    assert np.array_equal(a.object_ids, b.object_ids)
    assert np.array_equal(a.states, b.states)
    assert a.sizes is not None
    assert np.array_equal(a.sizes, b.sizes)
    assert np.array_equal(a.object_types, b.object_types)


@pytest.mark.parametrize("packed", [True, False])
def test_sizes_and_types_are_read_from_submissions(tmp_path, small, packed):
    path = tmp_path / "generated.binproto"
    path.write_bytes(encode_block(1, boxed_message(small, packed=packed)))
    (read,) = load_rollouts(path)
    assert_same(read, small)


def test_objects_may_stand_in_another_order_in_each_joint_scene(tmp_path, small):
    turned = Rollouts(
        small.scenario_id, small.object_ids[::-1], small.states[:, ::-1],
        sizes=small.sizes[:, ::-1], object_types=small.object_types[:, ::-1],
    )  # fmt: skip
    head = encode_block(1, small.scenario_id.encode())
    scenes = [boxed_message(one).removeprefix(head) for one in (small, turned)]
    (tmp_path / "a.binproto").write_bytes(encode_block(1, head + b"".join(scenes)))
    (read,) = load_rollouts(tmp_path / "a.binproto")
    assert_same(read.between(0, 1), small)
    assert_same(read.between(1, 2), small)


def test_sizes_that_are_not_complete_are_none(tmp_path, small):
    (tmp_path / "a.binproto").write_bytes(encode_block(1, boxed_message(small, drop=1)))
    (read,) = load_rollouts(tmp_path / "a.binproto")
    assert read.sizes is None
    assert np.array_equal(read.states, small.states)


def test_submissions_without_boxes_have_none(tmp_path, small):
    plain = replace(small, sizes=None, object_types=None)
    (tmp_path / "a.binproto").write_bytes(encode_block(1, encode_scenario_rollouts(plain)))
    (read,) = load_rollouts(tmp_path / "a.binproto")
    assert read.sizes is None
    assert read.object_types is None


@pytest.mark.parametrize("name", ["sizes", "object_types"])
def test_archives_keep_sizes_and_types(tmp_path, small, name):
    assert_same(read_npz(write_npz(tmp_path, small)), small)
    without = replace(small, **{name: None})
    assert getattr(read_npz(write_npz(tmp_path, without)), name) is None


# --- refused ------------------------------------------------------------------------------------


class TestRefuses:
    @pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
    def test_sizes_that_no_box_has(self, road, bad):
        rollouts = generated(road)
        rollouts.sizes[1, 2, 3, 0] = bad
        with pytest.raises(RolloutsError, match="a size of object 12 is negative or not finite"):
            score_scenario(road, rollouts, CHALLENGE)
        (finding,) = check_rollouts(road, rollouts, n_rollouts=4, n_steps=91, whole_record=True)
        assert (finding.code, finding.rollout, finding.object_id) == ("bad_size", 1, 12)
        assert "length" in finding.what
        assert "step 3" in finding.what

    def test_rollouts_without_sizes(self, road):
        rollouts = replace(generated(road), sizes=None)
        with pytest.raises(RolloutsError, match=r"no sizes.*length, width and height"):
            score_scenario(road, rollouts, CHALLENGE)
        (finding,) = check_rollouts(road, rollouts, n_rollouts=4, n_steps=91, whole_record=True)
        assert finding.code == "no_sizes"

    def test_the_future_alone(self, road):
        rollouts = generated(road)
        future = replace(rollouts, states=rollouts.states[:, :, 11:], sizes=None)
        with pytest.raises(RolloutsError, match=r"of 80 steps .*91 steps.*with its history"):
            score_scenario(road, future, CHALLENGE)
        findings = check_rollouts(road, future, n_rollouts=4, n_steps=91, whole_record=True)
        assert {f.code for f in findings} == {"step_count", "no_sizes"}
        assert "its history too" in findings[0].what

    def test_whole_records_where_the_future_is_wanted(self, road):
        (finding,) = check_rollouts(road, generated(road, 32))
        assert finding.code == "step_count"
        assert "scenario_gen_2025" in finding.what

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sizes": np.zeros((4, 4, 91, 2), F)}, r"sizes must be float32 \[4, 4, 91, 3\]"),
            ({"sizes": np.zeros((4, 4, 91, 3), int)}, "not int64"),
            ({"object_types": np.zeros(4, int)}, r"object_types must be integers \[4, 4\]"),
            ({"object_types": np.zeros((4, 4), F)}, "not float32"),
        ],
    )
    def test_arrays_that_do_not_fit(self, road, changes, message):
        with pytest.raises(RolloutsError, match=message):
            replace(generated(road), **changes)

    def test_an_object_that_is_not_simulated(self, road):
        rollouts = generated(road)
        strange = replace(rollouts, object_ids=np.array([10, 11, 12, 99]))
        with pytest.raises(RolloutsError, match="missing object 13; unknown object 99"):
            score_scenario(road, strange, CHALLENGE)


# --- the commands -------------------------------------------------------------------------------


def wosac(name: str, *args: object) -> Result:
    group = LazyGroup("wosac", program="wosac", commands={name: (f"wosac_toolkit.cli.{name}", "")})
    return CliRunner().invoke(group, [name, *map(str, args)], prog_name="wosac")


def score(*args: object) -> Result:
    return wosac("score", *args, "--challenge", CHALLENGE)


@pytest.fixture
def two(road, make_scenario) -> list[Scenario]:
    return [road, make_scenario(scenario_id="other", n_tracks=2, origin=(800.0, 100.0))]


@pytest.fixture
def folders(tmp_path, two) -> tuple[Path, Path]:
    """Rollouts and scenes."""
    write_scenarios(tmp_path / "scenes", two, 1)
    (tmp_path / "rollouts").mkdir()
    for scenario in two:
        write_npz(tmp_path / "rollouts", generated(scenario, 32, noise=0.05))
    return tmp_path / "rollouts", tmp_path / "scenes"


@pytest.fixture
def run(tmp_path, folders) -> Path:
    args = (folders[0], "--scenarios", folders[1], "--workers", 1, "--out", tmp_path / "run")
    result = score(*args)
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def test_the_command_scores_a_folder(run, two):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["challenge"] == CHALLENGE
    scores = [score_scenario(one, generated(one, 32, noise=0.05), CHALLENGE) for one in two]
    expected = np.mean([score.metametric for score in scores])
    assert summary["metrics"]["metametric"] == pytest.approx(expected, abs=1e-12)


def test_the_command_names_rollouts_of_the_other_challenge(folders):
    _, rollouts = load_rollouts(folders[0])
    write_npz(folders[0], replace(rollouts, states=rollouts.states[:, :, 11:], sizes=None))
    result = score(folders[0], "--scenarios", folders[1], "--workers", 1)
    assert result.exit_code == 2
    assert "80 steps where 91" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("explain", "run", "scene"), f"single scenes of {CHALLENGE} are not explained"),
        (("explain", "run", "scene", "--challenge", "2025"), "32 rollouts of 91 steps"),
        (("behaviour", "run"), f"behaviour is not measured of {CHALLENGE}"),
        (("behaviour", "rollouts", "--scenarios", "scenes"), "91 steps where 80"),
        (("leaderboard", "add", "run", "--name", "x"), "this is a run of Scenario Generation"),
    ],
)
def test_what_is_for_sim_agents_alone_says_so(tmp_path, monkeypatch, run, args, said):
    monkeypatch.chdir(tmp_path)
    result = wosac(*args)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_runs_are_compared_and_reported(tmp_path, run):
    pytest.importorskip("jinja2")
    result = wosac("report", run, f"again={run}", "--out", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    assert "Simulated against logged" in page
    assert "this section is empty" not in page
    assert f"single scenes of {CHALLENGE} are not explained" in page


def test_rewards_take_sizes_and_refuse_displacement(road):
    rollouts = generated(road, noise=0.05)
    reward = MetaScoreReward(CHALLENGE, workers=1)
    expected = score_scenario(road, rollouts, CHALLENGE).metametric
    assert reward([road], [rollouts])[0] == pytest.approx([expected] * 4)
    with pytest.raises(RolloutsError, match="no sizes"):
        reward([road], [rollouts.states])
    with pytest.raises(WosacError, match="displacement from the log is 0"):
        get_reward("min_ade", challenge=CHALLENGE)


def test_a_submission_is_packed_and_validated(tmp_path, folders):
    flags = (
        "--method-name m --account a@b.org --author A --affiliation x --description y --link z "
        "--num-parameters 7M --no-lidar --no-camera --no-public-pretraining --closed-loop"
    )
    archive = tmp_path / "submission.tar.gz"
    args = (folders[0], "--out", archive, "--scenarios", folders[1], *flags.split())
    refused = wosac("pack", *args)
    assert refused.exit_code == 2
    assert "91 steps where 80" in refused.stderr
    packed = wosac("pack", *args, "--challenge", CHALLENGE)
    assert packed.exit_code == 0, packed.output
    verdict = packed.stdout.splitlines()[-1]
    assert verdict.startswith(f"valid: {archive}: no findings; 2 scenes of 2")
    assert wosac("validate", archive, "--scenarios", folders[1]).exit_code == 1
    # Both sorted by scenario id.
    read = zip(load_rollouts(archive), load_rollouts(folders[0]), strict=True)
    assert [same(*pair) for pair in read] == [True, True]
