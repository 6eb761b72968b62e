"""How rollouts behave where the metric does not look: quantities to watch for gaming it.

A policy that is trained on the realism meta-metric can learn its blind spots instead of traffic:
standing still avoids collisions, boxes with rounded corners pass through each other's corners, and
a speed has no direction. `measure_behaviour` measures such things for the rollouts of a scene, and
for its log beside them; `watch` tells over many scenes which depart from the log, or from what an
earlier model did. docs/gaming.md says what each quantity means and why it is here.

>>> behaviour = measure_behaviour(scenario, rollouts)  # doctest: +SKIP
>>> behaviour.standing_rate, behaviour.logged["standing_rate"]  # doctest: +SKIP

Everything is over the evaluated agents (the autonomous vehicle and `tracks_to_predict`) at the
steps at which their log is valid: the agent-steps that the metric compares, so that rollouts and
log have the same denominators.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from wosac_toolkit import resampling, scoring
from wosac_toolkit.challenge import Challenge, get_challenge
from wosac_toolkit.compare import Estimate
from wosac_toolkit.errors import FormatError, RolloutsError, WosacError, some_ids
from wosac_toolkit.features import (
    Features,
    PreparedScene,
    logged_features,
    prepare_scene,
    simulated_features,
)
from wosac_toolkit.io.files import atomic_write, one_line
from wosac_toolkit.kernels import behaviour as kernels
from wosac_toolkit.kernels.kinematics import STEP_SECONDS, float32_means
from wosac_toolkit.likelihood import (
    LoggedCounts,
    count_log,
    count_simulation,
    indications,
    log_likelihood_sums,
)
from wosac_toolkit.manifest import find_scenarios
from wosac_toolkit.metric import likelihood
from wosac_toolkit.results import read_summary
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import (
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    LaneType,
    MapFeatureKind,
    ObjectType,
    RoadMap,
    Scenario,
)
from wosac_toolkit.validation import Finding, check_rollouts
from wosac_toolkit.workers import Crew, n_workers, progress_bar

STANDING = 0.3
"""m/s; slower is a sensor's jitter."""
MOVING = 1.0
"""m/s; faster is surely under way, and between the two nothing is said."""
WRONG_WAY_DEGREES = 120.0
"""Angle to every lane nearby from which on a vehicle drives the wrong way."""
SLIDE_DEGREES = 45.0
"""Angle between a vehicle's heading and its course from which on it slides or drives backwards."""
LANE_REACH = 2.0
"""Metres from a vehicle's centre to the centrelines of the lanes it may be on."""
LANE_HEIGHT_REACH = 3.0
"""Metres between their heights; the levels of an overpass are farther apart."""

MEASURED_BY = "2025"
"""The version whose speeds, accelerations, road edges and red lights are measured."""
DEFAULT_CHALLENGES = ("2025", "2024")
"""The versions whose realism is told; these two are of the same features."""

_SEGMENTS_A_PIECE = 8


@dataclass(frozen=True, slots=True)
class Quantity:
    """One of the quantities that are measured.

    Attributes:
        name: its field in `Behaviour`.
        unit: empty for shares and ratios.
        suspect: the departure that is to be watched: `more` or `less` than the log or the
            reference, `either` way from the log.
        margin: the smallest difference of means that matters.
        meaning: in one line.
    """

    name: str
    unit: str
    suspect: Literal["more", "less", "either"]
    margin: float
    meaning: str


BEHAVIOURS: tuple[Quantity, ...] = (
    Quantity("min_ade", "m", "more", 0.05, "displacement of the best rollout, as the metric's"),
    Quantity("speed", "m/s", "either", 0.2, "mean speed"),
    Quantity("speed_ratio", "", "either", 0.03, "mean speed as a share of the log's"),
    Quantity("standing_rate", "", "more", 0.01, f"steps slower than {STANDING} m/s"),
    Quantity("stall_rate", "", "more", 0.01, f"the same where the log drives {MOVING} m/s or more"),
    Quantity("jerk", "m/s^3", "more", 0.2, "mean absolute change of the acceleration"),
    Quantity("wrong_way_rate", "", "more", 0.005, "vehicle-steps against every lane nearby"),
    Quantity("slide_rate", "", "more", 0.005, "vehicle-steps sideways or backwards"),
    Quantity("sharp_collision_rate", "", "more", 0.01, "agents whose sharp boxes overlap another"),
    Quantity("corner_collision_rate", "", "more", 0.01, "the same where the metric sees none"),
    Quantity("off_road_rate", "", "more", 0.01, "agent-steps off the road"),
    Quantity("red_light_rate", "", "more", 0.01, "agents that run a red light"),
    Quantity("diversity", "m", "less", 0.1, "distance between two rollouts of an agent"),
    Quantity("final_diversity", "m", "less", 0.2, "the same at the end"),
)
"""The quantities in the order of tables."""

NAMES = tuple(quantity.name for quantity in BEHAVIOURS)


def _realism(challenge: str) -> Quantity:
    # Twice what the seed of the rollouts moves the score of 1,680 scenes by.
    return Quantity(
        f"realism_{challenge}", "", "less", 0.002, f"realism meta-metric of {challenge}"
    )


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What is measured of the rollouts of one scene, and of its log.

    Means and shares are over the evaluated agents, their valid steps and all rollouts; NaN where
    there is nothing to take them over.

    Attributes:
        scenario_id: the scene.
        n_rollouts: R.
        n_evaluated_agents: E.
        min_ade: metres, of the best joint rollout, the official `min_average_displacement_error`.
        speed: m/s, mean of the metric's linear speed.
        speed_ratio: `speed` over that of the log; NaN where that is below `MOVING`.
        standing_rate: share of agent-steps slower than `STANDING`.
        stall_rate: the same of those at which the log is at `MOVING` or faster.
        jerk: m/s^3, mean absolute central difference of the metric's linear acceleration.
        wrong_way_rate: share of vehicles' steps at which one is `MOVING` and more than
            `WRONG_WAY_DEGREES` off the direction of every lane within `LANE_REACH`.
        slide_rate: share of vehicles' steps at which one is `MOVING` more than `SLIDE_DEGREES` off
            its own heading.
        sharp_collision_rate: share of agents and rollouts whose box, corners and all, overlaps that
            of an agent which the log has at that step.
        corner_collision_rate: share of agents and rollouts whose box overlaps any other, but not
            with corners rounded as the metric has them.
        off_road_rate: share of agent-steps off the road (the metric's rate is of agents that ever
            are).
        red_light_rate: share of agents and rollouts that run a red light, the metric's.
        diversity: metres between two rollouts of an agent, mean over its steps and all pairs; NaN
            for a single rollout.
        final_diversity: the same at each agent's last valid step.
        logged: name -> the same of the log, where it makes sense: all but `min_ade`, `stall_rate`
            and the diversities.
        realism: version of the metric -> the meta-metric of the rollouts.
    """

    scenario_id: str
    n_rollouts: int
    n_evaluated_agents: int
    min_ade: float
    speed: float
    speed_ratio: float
    standing_rate: float
    stall_rate: float
    jerk: float
    wrong_way_rate: float
    slide_rate: float
    sharp_collision_rate: float
    corner_collision_rate: float
    off_road_rate: float
    red_light_rate: float
    diversity: float
    final_diversity: float
    logged: Mapping[str, float]
    realism: Mapping[str, float]

    def values(self) -> dict[str, float]:
        """Name -> value of the rollouts: `BEHAVIOURS`, then `realism_2025` and its like."""
        return {
            **{name: getattr(self, name) for name in NAMES},
            **{f"realism_{year}": value for year, value in self.realism.items()},
        }


# --------------------------------------------------------------------------------------------------
# One scene


@dataclass(frozen=True, eq=False, slots=True)
class Lanes:
    """The directions of a map's lanes, bike lanes left out.

    Attributes:
        segments: float64 [5, n], start x and y, vector x and y, height of the middle.
        offsets: int64 [P + 1], the segments of each piece of a lane.
        low, high: float64 [P, 2], the bounding box of each piece.
    """

    segments: Float64Array
    offsets: Int64Array
    low: Float64Array
    high: Float64Array


class Version(NamedTuple):
    """A version of the metric, with the scene and its log prepared for it."""

    challenge: Challenge
    scene: PreparedScene
    logged: LoggedCounts


@dataclass(frozen=True, eq=False, slots=True)
class WatchedScene:
    """A scene made ready for measuring any rollouts of it.

    Attributes:
        scene: prepared for `MEASURED_BY`.
        logged: its log.
        lanes: of its map.
        logged_values: name -> what is measured of the log, see `Behaviour.logged`.
        versions: whose realism is told.
    """

    scene: PreparedScene
    logged: LoggedCounts
    lanes: Lanes
    logged_values: Mapping[str, float]
    versions: Sequence[Version]


def measure_behaviour(
    scenario: Scenario,
    rollouts: Rollouts,
    challenges: Sequence[str | Challenge] = DEFAULT_CHALLENGES,
) -> Behaviour:
    """Measure how rollouts of a scene behave.

    Args:
        scenario: the scene, with its logged future.
        rollouts: any number of joint rollouts of all its simulated agents.
        challenges: versions of the metric whose realism is told. "2025" and "2024" cost next to
            nothing, "2023" more than all else.

    Raises:
        ScenarioError: the metric cannot score the scene.
        RolloutsError: the rollouts do not fit the scene, or hold a value that is not finite.
        WosacError: an unknown version, or one of Scenario Generation.
    """
    return measure_watched(watch_scene(scenario, challenges), rollouts)


def watch_scene(
    scenario: Scenario, challenges: Sequence[str | Challenge] = DEFAULT_CHALLENGES
) -> WatchedScene:
    """Make a scene ready, for those who measure rollouts of it again and again; errors as above."""
    scene = prepare_scene(scenario, MEASURED_BY)
    logged = count_log(logged_features(scene), scene.challenge)
    versions = []
    for challenge in map(_sim_agents, challenges):
        if _same_features(challenge, scene.challenge):
            versions.append(Version(challenge, scene, count_log(logged.features, challenge)))
        else:
            own = prepare_scene(scenario, challenge)
            versions.append(Version(challenge, own, count_log(logged_features(own), challenge)))
    lanes = _lanes(scenario.road_map)
    poses = _Poses(scene.future[None], np.arange(len(scene.object_ids)), scene.future_valid)
    values = _values(scene, logged, lanes, logged.features, poses)
    values["speed_ratio"] = 1.0 if values["speed"] >= MOVING else math.nan
    return WatchedScene(scene, logged, lanes, values, tuple(versions))


def _sim_agents(challenge: str | Challenge) -> Challenge:
    """A version of the Sim Agents metric."""
    challenge = get_challenge(challenge)
    if challenge.whole_record:
        raise WosacError(
            f"behaviour is not measured of {challenge.name}",
            mend="it is compared with the log's agent by agent, and generated ones have no "
            "counterpart there",
        )
    return challenge


def measure_watched(watched: WatchedScene, rollouts: Rollouts) -> Behaviour:
    """Measure rollouts of a scene that is ready; see `measure_behaviour`."""
    scene, logged = watched.scene, watched.logged
    if not np.isfinite(rollouts.states).all():
        raise RolloutsError(
            "a simulated state is not finite",
            where=f"scenario {scene.scenario_id}",
            mend="`check_rollouts` names rollout and object",
        )
    features = simulated_features(scene, rollouts)
    order = np.argsort(rollouts.object_ids)
    columns = order[np.searchsorted(rollouts.object_ids[order], scene.object_ids)]
    poses = _Poses(rollouts.states, columns, np.ones_like(scene.future_valid))
    values = _values(scene, logged, watched.lanes, features, poses)

    standing = features.linear_speed < STANDING
    log_moves = (logged.features.linear_speed[0] >= MOVING) & logged.steps["linear_speed"]
    evaluated, valid = columns[: scene.n_evaluated], logged.valid
    spread = np.empty(valid.shape)
    kernels.pairwise_distances(rollouts.states, evaluated, valid, spread)
    seen = valid.any(axis=1)
    over_time = np.where(valid, spread, 0.0)[seen].sum(axis=1) / valid[seen].sum(axis=1)
    last = valid.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)
    log_speed = watched.logged_values["speed"]
    return Behaviour(
        scenario_id=scene.scenario_id,
        n_rollouts=rollouts.n_rollouts,
        n_evaluated_agents=scene.n_evaluated,
        min_ade=float(float32_means(features.average_displacement_error).min()),
        speed_ratio=values["speed"] / log_speed if log_speed >= MOVING else math.nan,
        stall_rate=_mean(standing[:, log_moves]),
        diversity=_mean(over_time),
        final_diversity=_mean(spread[seen, last[seen]]),
        **values,
        logged=watched.logged_values,
        realism={
            version.challenge.name: _realism_of(
                version,
                features if version.scene is scene else simulated_features(version.scene, rollouts),
            )
            for version in watched.versions
        },
    )


class _Poses(NamedTuple):
    """Where agents are.

    Attributes:
        states: float32 [R, N, T, 4].
        columns: int64 [N], where each agent of the metric's order stands in them.
        present: bool [T, N], in the metric's order.
    """

    states: Float32Array
    columns: Int64Array
    present: BoolArray


def _values(
    scene: PreparedScene,
    logged: LoggedCounts,
    lanes: Lanes,
    features: Features,
    poses: _Poses,
) -> dict[str, float]:
    """What is measured of rollouts and of the log alike."""
    speed = features.linear_speed
    at_speed, at_acceleration = logged.steps["linear_speed"], logged.steps["linear_acceleration"]
    at_jerk = at_acceleration[:, 2:] & at_acceleration[:, :-2]
    acceleration = features.linear_acceleration
    jerk = (acceleration[..., 2:] - acceleration[..., :-2]) / (2 * STEP_SECONDS)

    vehicles = np.flatnonzero(scene.object_types[: scene.n_evaluated] == ObjectType.VEHICLE)
    # A speed is of the steps before and after; a heading is of the step itself.
    looked_at = (at_speed & logged.valid)[vehicles]
    # Speeds are NaN where they are undefined, which is not looked at.
    moving = (speed[:, vehicles] >= MOVING) & looked_at
    columns = poses.columns[vehicles]
    wrong_way = _against_lanes(poses.states, columns, moving, lanes)
    sliding = moving & _off_course(poses.states[:, columns])

    length, width = scene.size[:, 0].copy(), scene.size[:, 1].copy()
    collided, overlapped = np.empty((2, len(speed), scene.n_evaluated), np.bool_)
    # The log loses agents that a simulation keeps: overlaps with those have no match in the log.
    for present, result in ((scene.future_valid, collided), (poses.present, overlapped)):
        kernels.sharp_box_collisions(
            poses.states, poses.columns, length, width, present, logged.valid, result
        )
    rounded = indications(features.collision_per_step, logged.valid)
    red = features.traffic_light_violation_per_step
    return {
        "speed": _mean(speed[:, at_speed]),
        "standing_rate": _mean(speed[:, at_speed] < STANDING),
        "jerk": _mean(np.abs(jerk[:, at_jerk])),
        "wrong_way_rate": _mean(wrong_way[:, looked_at]),
        "slide_rate": _mean(sliding[:, looked_at]),
        "sharp_collision_rate": _mean(collided),
        "corner_collision_rate": _mean(overlapped & ~rounded),
        "off_road_rate": _mean(features.offroad_per_step[:, logged.valid]),
        "red_light_rate": math.nan if red is None else _mean(indications(red, logged.valid)),
    }


def _mean(values: Float32Array | Float64Array | BoolArray) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan


def _against_lanes(
    states: Float32Array, columns: Int64Array, moving: BoolArray, lanes: Lanes
) -> BoolArray:
    """Where moving vehicles [R, E, T] head against all lanes within reach, and there is one."""
    against = np.empty(moving.shape, np.bool_)
    kernels.against_lanes(
        states, columns, moving, lanes.segments, lanes.offsets, lanes.low, lanes.high,
        LANE_REACH, LANE_HEIGHT_REACH, math.cos(math.radians(WRONG_WAY_DEGREES)), against,
    )  # fmt: skip
    return against


def _off_course(states: Float32Array) -> BoolArray:
    """Where states [R, E, T, 4] move off their heading; False at both ends, as speeds are."""
    moved = states[:, :, 2:, :2] - states[:, :, :-2, :2]
    heading = states[:, :, 1:-1, 3]
    along = moved[..., 0] * np.cos(heading) + moved[..., 1] * np.sin(heading)
    limit = math.cos(math.radians(SLIDE_DEGREES))
    result = np.zeros(states.shape[:3], np.bool_)
    result[:, :, 1:-1] = along < limit * np.hypot(moved[..., 0], moved[..., 1])
    return result


def _lanes(road_map: RoadMap) -> Lanes:
    """The lanes of a map, cut into pieces that are quickly passed over."""
    feature = np.repeat(np.arange(len(road_map.kinds)), np.diff(road_map.point_offsets))
    is_lane = (road_map.kinds == MapFeatureKind.LANE) & (road_map.types != LaneType.BIKE_LANE)
    points = road_map.points
    vector = np.diff(points, axis=0)
    kept = np.flatnonzero(
        is_lane[feature[:-1]]
        & (feature[1:] == feature[:-1])
        & (np.hypot(vector[:, 0], vector[:, 1]) > 0)
    )
    start, end = points[kept], points[kept + 1]
    piece = (kept - road_map.point_offsets[feature[kept]]) // _SEGMENTS_A_PIECE
    first = np.flatnonzero(
        (np.diff(feature[kept], prepend=-1) != 0) | (np.diff(piece, prepend=-1) != 0)
    )
    segments = np.empty((5, len(kept)))
    segments[:2], segments[2:4] = start[:, :2].T, vector[kept, :2].T
    segments[4] = (start[:, 2] + end[:, 2]) / 2
    if not len(kept):
        nothing = np.empty((0, 2))
        return Lanes(segments, np.zeros(1, np.int64), nothing, nothing)
    return Lanes(
        segments=segments,
        offsets=np.append(first, len(kept)),
        low=np.minimum.reduceat(np.minimum(start, end)[:, :2], first),
        high=np.maximum.reduceat(np.maximum(start, end)[:, :2], first),
    )


def _same_features(one: Challenge, other: Challenge) -> bool:
    """Whether two versions differ only in their weights, bins and in which steps count."""
    rules = ("difference", "corner_rounding", "road_edges", "n_steps", "current_time_index")
    return all(getattr(one, rule) == getattr(other, rule) for rule in rules)


def _realism_of(version: Version, features: Features) -> float:
    """The meta-metric, as `score_evidence` sums it."""
    challenge, logged = version.challenge, version.logged
    tallies = count_simulation(features, logged, challenge)
    metametric = 0.0
    for component in challenge.components:
        log_counts = logged.counts[component.name]
        sums = log_likelihood_sums(tallies[component.name], log_counts, component.estimator)
        metametric += component.weight * float(likelihood(sums, log_counts))
    return metametric


def mean_behaviour(behaviours: Iterable[Behaviour]) -> dict[str, float]:
    """Name -> mean over the scenes where it is a number, NaN where there is none; for a log."""
    rows = [behaviour.values() for behaviour in behaviours]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _finite_mean([row.get(name, math.nan) for row in rows]) for name in names}


def _finite_mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


# --------------------------------------------------------------------------------------------------
# Many scenes


@dataclass(frozen=True, slots=True)
class Measured:
    """What `measure_dataset` returns.

    Attributes:
        behaviours: of the scenes, in the order of the scenario files.
        n_passed_over: scenes without rollouts and rollouts without scene, passed over with
            `intersect`.
    """

    behaviours: Sequence[Behaviour]
    n_passed_over: int


def measure_dataset(
    rollouts: str | os.PathLike[str],
    scenarios: str,
    *,
    challenges: Sequence[str] = DEFAULT_CHALLENGES,
    missing: Literal["error", "intersect"] = "error",
    scenario_ids: Collection[str] | None = None,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Measured:
    """Measure all rollouts of a folder, file or archive; the result does not depend on `workers`.

    Args:
        rollouts: what `wosac_toolkit.load_rollouts` reads, any number of rollouts a scene.
        scenarios: what `wosac_toolkit.load_scenarios` reads.
        challenges: versions of the metric whose realism is told.
        missing, scenario_ids, limit, workers, progress: as in `score_dataset`.

    Raises:
        ScoringError: scenes or rollouts are missing, duplicate or bad; its `findings` name each.
        WosacError: anything else that is wrong with the arguments or files.
    """
    for challenge in challenges:
        _sim_agents(challenge)
    if limit is not None and limit < 1:
        raise WosacError(f"limit must be at least 1, not {limit}")
    work = scoring.find_work(rollouts, scenarios, scenario_ids, limit, progress)
    scoring.refuse(work.join.findings(missing), None)
    measure = functools.partial(_measure_task, tuple(challenges))
    done: dict[str, Behaviour] = {}
    failed: list[Finding] = []
    with (
        Crew(measure, n_workers(workers, work.n_tasks)) as crew,
        progress_bar(work.n_tasks, what="measuring", show=progress) as bar,
    ):
        for task, outcome in crew.map(work.tasks):
            bar.update()
            if isinstance(outcome, Behaviour):
                done[task.scenario_id] = outcome
            else:
                failed += outcome
    join = work.join
    scoring.refuse([*failed, *join.findings(missing)], None)
    if not done:
        raise WosacError("no scene has rollouts", where=os.fspath(rollouts))
    return Measured(
        [done[name] for name in join.records if name in done],
        len(join.without_rollouts) + len(join.without_scenario),
    )


def load_behaviours(
    source: str | os.PathLike[str],
    scenarios: str | None = None,
    *,
    challenges: Sequence[str] = DEFAULT_CHALLENGES,
    missing: Literal["error", "intersect"] = "error",
    scenario_ids: Collection[str] | None = None,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Measured:
    """The behaviour of rollouts, measured now or earlier.

    Args:
        source: rollouts, as `measure_dataset` takes them; or the folder of a run of `wosac score`,
            which knows where its rollouts are; or a `.parquet` of `write_behaviours`, for which
            the other arguments mean nothing.
        scenarios: their scenes; None for those that the run or the rollouts' manifest names.
        challenges, missing, scenario_ids, limit, workers, progress: as in `measure_dataset`.

    Raises:
        WosacError: see `measure_dataset`, `read_behaviours`, `read_summary`, `find_scenarios`.
    """
    path = Path(source)
    if path.suffix == ".parquet":
        return Measured(read_behaviours(path), 0)
    if (path / "summary.json").exists():
        summary = read_summary(path)
        _sim_agents(summary.challenge)
        request = summary.request
        source, scenarios = request.rollouts, scenarios or request.scenarios
    return measure_dataset(
        source,
        scenarios or find_scenarios(source),
        challenges=challenges,
        missing=missing,
        scenario_ids=scenario_ids,
        limit=limit,
        workers=workers,
        progress=progress,
    )


def _measure_task(challenges: Sequence[str], task: scoring.Task) -> Behaviour | list[Finding]:
    """Read, check and measure one scene; whatever fails becomes findings about this scene."""
    from wosac_toolkit.io.scenarios import read_scenario

    where = task.rollouts.where
    try:
        scenario, rollouts = read_scenario(task.record), task.rollouts.read()
        findings = check_rollouts(scenario, rollouts, n_rollouts=None, file=where)
        return findings or measure_behaviour(scenario, rollouts, challenges)
    except (WosacError, OSError) as error:
        what = str(error)
        return [
            Finding("not_measured", what, task.scenario_id, file="" if where in what else where)
        ]


_COUNTS = ("n_rollouts", "n_evaluated_agents")


def write_behaviours(path: str | os.PathLike[str], behaviours: Sequence[Behaviour]) -> None:
    """Write a Parquet table, a row a scene, whole or not at all.

    Columns: `scenario_id`, `n_rollouts`, `n_evaluated_agents`, the names of `BEHAVIOURS`, those of
    `Behaviour.logged` with `logged_` before them, and `realism_<version>`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(
        [
            {
                "scenario_id": behaviour.scenario_id,
                **{name: getattr(behaviour, name) for name in _COUNTS},
                **behaviour.values(),
                **{f"logged_{name}": value for name, value in behaviour.logged.items()},
            }
            for behaviour in behaviours
        ]
    )
    with atomic_write(Path(path)) as stream:
        pq.write_table(table, stream)


def read_behaviours(path: str | os.PathLike[str]) -> list[Behaviour]:
    """Read what `write_behaviours` wrote.

    Raises:
        FormatError: the file is absent, damaged, or another table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where, mend = os.fspath(path), "measure again, with --out"
    try:
        columns = pq.read_table(path).to_pydict()
    except FileNotFoundError:
        raise FormatError("no such file", where=where) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise FormatError(f"not a Parquet table: {one_line(error)}", where=where) from None
    wanted = {"scenario_id": str, **dict.fromkeys(_COUNTS, int), **dict.fromkeys(NAMES, float)}
    logged = [name for name in columns if name.startswith("logged_")]
    realism = [name for name in columns if name.startswith("realism_")]
    wanted |= dict.fromkeys((*logged, *realism), float)
    for name, kind in wanted.items():
        if name not in columns:
            raise FormatError(f"no column {name!r}", where=where, mend=mend)
        if not all(type(value) is kind for value in columns[name]):
            raise FormatError(f"{name!r} is not of {kind.__name__}", where=where, mend=mend)
    plain = ("scenario_id", *_COUNTS, *NAMES)
    return [
        Behaviour(
            **{name: columns[name][row] for name in plain},
            logged={name.removeprefix("logged_"): columns[name][row] for name in logged},
            realism={name.removeprefix("realism_"): columns[name][row] for name in realism},
        )
        for row in range(len(columns["scenario_id"]))
    ]


# --------------------------------------------------------------------------------------------------
# What is to be watched


@dataclass(frozen=True, slots=True)
class Watched:
    """One quantity over all scenes.

    Attributes:
        quantity: which.
        n_scenes: where it is a number, in all that is compared.
        simulated: mean of the rollouts; None where it is a number in no scene.
        logged: mean of the log; None where it makes no sense of a log.
        departure: `simulated` less `logged`.
        reference: mean of the reference.
        change: `simulated` less `reference`.
        watch: what to watch: it departs from the `log`, from the `reference`, or from both.
    """

    quantity: Quantity
    n_scenes: int
    simulated: Estimate | None
    logged: Estimate | None
    departure: Estimate | None
    reference: Estimate | None
    change: Estimate | None
    watch: tuple[Literal["log", "reference"], ...]


@dataclass(frozen=True, slots=True)
class BehaviourReport:
    """What `watch` returns.

    Attributes:
        n_scenes: scenes that are averaged over.
        n_rollouts: rollouts a scene; None where the scenes differ.
        n_without_reference: scenes that the reference lacks, passed over with `intersect`.
        has_reference: whether there is one.
        confidence: of the intervals.
        resamples: draws of the bootstrap.
        seed: of the draws.
        rows: `BEHAVIOURS` in their order, then the realism of each version.
    """

    n_scenes: int
    n_rollouts: int | None
    n_without_reference: int
    has_reference: bool
    confidence: float
    resamples: int
    seed: int
    rows: tuple[Watched, ...]

    @property
    def to_watch(self) -> list[str]:
        """The names of what departs from the log or the reference."""
        return [row.quantity.name for row in self.rows if row.watch]

    def to_json(self) -> str:
        """All of it as JSON: keys in a fixed order, no NaN."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


def watch(
    behaviours: Sequence[Behaviour],
    reference: Sequence[Behaviour] | None = None,
    *,
    missing: Literal["error", "intersect"] = "error",
    resamples: int = 10_000,
    seed: int = 0,
) -> BehaviourReport:
    """Average over scenes, and tell what departs from the log or from a reference.

    Intervals are of a bootstrap over scenes, which are drawn together for rollouts, log and
    reference. A quantity is to be watched where the interval of its difference lies beyond zero on
    the suspect side, and the difference is at least its margin. Where either side is suspect, it is
    the distance from the log that must be greater than zero, or than the reference's.

    Args:
        behaviours: of the run.
        reference: of another run on these scenes, or more, with as many rollouts.
        missing: `error` refuses a reference that lacks scenes, `intersect` passes them over.
        resamples: draws.
        seed: of the draws.

    Raises:
        WosacError: the runs cannot be compared.
    """
    if resamples < 1:
        raise WosacError(f"resamples must be at least 1, not {resamples}")
    pairs = _pairs(behaviours, reference, missing)
    versions = [year for year in pairs[0][0].realism if all(year in p[0].realism for p in pairs)]
    quantities = (*BEHAVIOURS, *map(_realism, versions))
    table = np.full((len(pairs), 3, len(quantities)), math.nan)
    for row, (own, *others) in zip(table, pairs, strict=True):
        for k, values in enumerate([own.values(), own.logged, *(o.values() for o in others)]):
            row[k] = [values.get(quantity.name, math.nan) for quantity in quantities]
    finite = np.isfinite(table)
    there = finite.any(axis=0)
    counted = (finite | ~there).all(axis=1) & there[0]
    table = np.where(finite, table, 0.0)
    with np.errstate(invalid="ignore"):
        means = np.where(counted[:, None], table, 0.0).sum(axis=0) / counted.sum(axis=0)
    # What is observed comes first, the resamples after it.
    means = means[None]
    if len(pairs) > 1:
        rng = np.random.default_rng(seed)
        draws = resampling.bootstrap_means(table, counted, [1, 1, 1], resamples, rng)
        means = np.concatenate([means, draws])
    counts = {own.n_rollouts for own, *_ in pairs}
    return BehaviourReport(
        n_scenes=len(pairs),
        n_rollouts=counts.pop() if len(counts) == 1 else None,
        n_without_reference=len(behaviours) - len(pairs),
        has_reference=reference is not None,
        confidence=resampling.CONFIDENCE,
        resamples=resamples,
        seed=seed,
        rows=tuple(
            _watched(quantity, int(counted[:, c].sum()), means[:, :, c].T, *there[:, c].tolist())
            for c, quantity in enumerate(quantities)
        ),
    )


def _watched(
    quantity: Quantity,
    n_scenes: int,
    means: Float64Array,
    has_values: bool,
    has_log: bool,
    has_reference: bool,
) -> Watched:
    """One quantity, from the means [3, 1 + K] of rollouts, log and reference and resamples."""
    if n_scenes < 2:
        means = means[:, :1]  # One scene has no interval.
    simulated, logged, reference = means
    has_log, has_reference = has_log and has_values, has_reference and has_values
    if not n_scenes:
        has_values = has_log = has_reference = False
    departure, change = simulated - logged, simulated - reference
    suspicions: dict[Literal["log", "reference"], list[Float64Array]] = {
        "log": {
            "more": [departure],
            "less": [-departure],
            "either": [departure, -departure],
        }[quantity.suspect]
        if has_log
        else [],
        "reference": {
            "more": [change],
            "less": [-change],
            "either": [np.abs(departure) - np.abs(reference - logged)] if has_log else [],
        }[quantity.suspect]
        if has_reference
        else [],
    }
    return Watched(
        quantity=quantity,
        n_scenes=n_scenes,
        simulated=_estimate(simulated) if has_values else None,
        logged=_estimate(logged) if has_log else None,
        departure=_estimate(departure) if has_log else None,
        reference=_estimate(reference) if has_reference else None,
        change=_estimate(change) if has_reference else None,
        watch=tuple(
            against
            for against, excesses in suspicions.items()
            if any(_matters(_estimate(excess), quantity.margin) for excess in excesses)
        ),
    )


def _estimate(values: Float64Array) -> Estimate:
    """An observed value and its interval from the resamples that follow it, if there are any."""
    if len(values) == 1:
        return Estimate(float(values[0]), None, None)
    low, high = resampling.interval(values[1:]).tolist()
    return Estimate(float(values[0]), low, high)


def _matters(excess: Estimate, margin: float) -> bool:
    return excess.low is not None and excess.low > 0 and excess.value >= margin


def _pairs(
    behaviours: Sequence[Behaviour],
    reference: Sequence[Behaviour] | None,
    missing: Literal["error", "intersect"],
) -> list[tuple[Behaviour, ...]]:
    """The scenes, each with its reference if there is one, sorted by id."""
    run = _by_id(behaviours, "the rollouts")
    if reference is None:
        return [(run[name],) for name in sorted(run)]
    other = _by_id(reference, "the reference")
    if missing == "error" and (lacking := run.keys() - other.keys()):
        raise WosacError(
            f"the reference lacks {len(lacking)} of {len(run)} scenes ({some_ids(lacking)})",
            mend="--missing intersect compares the others",
        )
    shared = sorted(run.keys() & other.keys())
    if not shared:
        raise WosacError("the run and the reference have no scene in common")
    for name in shared:
        if run[name].n_rollouts != other[name].n_rollouts:
            raise WosacError(
                f"{run[name].n_rollouts} rollouts, and {other[name].n_rollouts} in the reference",
                where=f"scenario {name}",
                mend="minimum errors and realism depend on their number; simulate as many",
            )
    return [(run[name], other[name]) for name in shared]


def _by_id(behaviours: Sequence[Behaviour], what: str) -> dict[str, Behaviour]:
    if not behaviours:
        raise WosacError(f"{what}: no scenes")
    found = {behaviour.scenario_id: behaviour for behaviour in behaviours}
    if len(found) < len(behaviours):
        ids = Counter(behaviour.scenario_id for behaviour in behaviours)
        twice = [name for name, count in ids.items() if count > 1]
        raise WosacError(f"{what}: scenes that come twice: {some_ids(twice)}")
    return found
