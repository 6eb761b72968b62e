"""What costs a scene its score: components, agents, steps, and what happens in the rollouts.

A component of weight w and likelihood L takes w (1 - L) off the score. L is the exponential of a
mean over the logged steps of all evaluated agents, of the log-probability that the agent's
simulated steps give to what was logged. Log-probabilities are never above zero and add up, so the
loss is divided in proportion to them: among agents, and among the steps of an agent.

No simulator can have L = 1 unless each agent's logged steps all fall into one bin. The best that an
agent's steps can be given is the histogram of the steps themselves, so with counts n of its logged
steps in its bins

    ceiling = exp(sum n log(n / sum n) / sum n)         (sums over bins; the last also over agents)

is a bound that no simulation passes. What is lost below it is avoidable. The log itself, replayed
in all rollouts, stays below the bound too: bins are smoothed, a simulation counts the steps that
the log lacks, and its last steps, which have no speed yet.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wosac_toolkit.baselines import simulate_baseline
from wosac_toolkit.baselines.policy import STEP_SECONDS
from wosac_toolkit.challenge import (
    Challenge,
    Component,
    Histogram,
    KernelDensity,
    get_challenge,
)
from wosac_toolkit.errors import WosacError, some_ids
from wosac_toolkit.features import (
    Features,
    PreparedScene,
    logged_features,
    prepare_scene,
    simulated_features,
)
from wosac_toolkit.kernels import boxes, histogram, nearest_object, red_lights, road_edges
from wosac_toolkit.likelihood import (
    LoggedCounts,
    Tally,
    count_log,
    count_simulation,
    log_probabilities,
)
from wosac_toolkit.metric import ScenarioScore, score_rollouts
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import (
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    MapFeatureKind,
    ObjectType,
    Scenario,
)
from wosac_toolkit.scoring import ScoringError
from wosac_toolkit.validation import check_rollouts

if TYPE_CHECKING:
    from wosac_toolkit.results import Run

EventKind = Literal["collision", "offroad", "red_light"]

# Circles that are farther apart hold no boxes that overlap, whatever float32 makes of corners.
_CIRCLE_SLACK_M = 0.1


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the metric counts against an evaluated agent, over consecutive steps.

    An agent that touches two others has an event with each. Steps at which the agent is not valid
    in the log do not count, and end an event.

    Attributes:
        kind: `collision`, `offroad` or `red_light`. Red lights run by pedestrians and cyclists
            count in the rate of violations, not in the likelihood.
        rollout: index of the rollout; None for the log.
        object_id: the agent.
        first, last: steps, 0 is the one after the current step.
        partner_id: of a collision, the object that the agent touches.
        feature_id: of the road edge that it crossed first, or of the lane with the red light.
        distance: metres at the worst step: how deep the boxes overlap, negative; how far the box
            is off the road, positive. None for a red light.
    """

    kind: EventKind
    rollout: int | None
    object_id: int
    first: int
    last: int
    partner_id: int | None = None
    feature_id: int | None = None
    distance: float | None = None


def seconds(step: int) -> float:
    """The time of a simulated step, in seconds after the current step."""
    return round((step + 1) * STEP_SECONDS, 1)


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive logged steps of an agent that fall into one bin of a component.

    Attributes:
        object_id: the agent.
        component: name of the component.
        first, last: steps, 0 is the one after the current step.
        low, high: edges of the bin; the outermost bins also hold what lies outside. For a kernel
            density, the logged value twice.
        log_likelihood: of each of the steps.
        simulated: share of the agent's simulated steps in this bin; None for a kernel density.
        loss: what these steps together cost the score.
    """

    object_id: int
    component: str
    first: int
    last: int
    low: float
    high: float
    log_likelihood: float
    simulated: float | None
    loss: float


@dataclass(frozen=True, eq=False, slots=True)
class ComponentLoss:
    """Where the likelihood of a component comes from, for E agents, B bins and T steps.

    Losses are NaN where the likelihood is: no agent has a step that the component looks at.

    Attributes:
        component: name, bucket, estimator and weight.
        likelihood: of the scene under the rollouts.
        replay: the same under rollouts that all replay the log.
        ceiling: what no simulation can pass; for a kernel density 1, as no bound is known.
        agent_loss: float64 [E], the agents' parts of weight x (1 - likelihood).
        agent_avoidable: float64 [E], their parts of weight x (ceiling - likelihood), each between 0
            and the agent's loss (but for a kernel density).
        log_likelihood: float64 [E], mean over the agent's steps; NaN where it has none.
        edges: float32 [B + 1] of the bins; None for a yes-or-no component, whose bins are no and
            yes, and for a kernel density, whose bins are the steps.
        logged: int64 [E, B], logged steps in each bin; for a yes-or-no component one count.
        simulated: int64 [E, B], simulated steps of all rollouts in each bin, or how many rollouts;
            None for a kernel density.
        log_probabilities: float64 [E, B], of each bin.
        bins: int64 [E, T], the bin of each logged step, -1 for steps that do not count; None for a
            yes-or-no component.
    """

    component: Component
    likelihood: float
    replay: float
    ceiling: float
    agent_loss: Float64Array
    agent_avoidable: Float64Array
    log_likelihood: Float64Array
    edges: Float32Array | None
    logged: Int64Array
    simulated: Int64Array | None
    log_probabilities: Float64Array
    bins: Int64Array | None

    @property
    def loss(self) -> float:
        """What the component takes off the score."""
        return self.component.weight * (1 - self.likelihood)

    @property
    def avoidable(self) -> float:
        """As much of it as a better simulator could regain."""
        return self.component.weight * (self.ceiling - self.likelihood)


@dataclass(frozen=True, eq=False, slots=True)
class Explanation:
    """Why a scene scores what it scores.

    Attributes:
        score: of the rollouts; its `agents` list the E evaluated agents.
        replay: of as many rollouts that all replay the log, held where it is not valid.
        sdc_id: object id of the autonomous vehicle.
        components: in the official order.
        events: of the rollouts, sorted by kind, agent, rollout and time.
        log_events: of the log, and with it as no fault of a simulator that has them too.
        replay_events: of one replay: more than the log's, where objects that the log loses are
            held in another's way.
    """

    score: ScenarioScore
    replay: ScenarioScore
    sdc_id: int
    components: tuple[ComponentLoss, ...]
    events: tuple[Event, ...]
    log_events: tuple[Event, ...]
    replay_events: tuple[Event, ...]

    @property
    def object_ids(self) -> Int64Array:
        """int64 [E], the evaluated agents, sorted."""
        return self.score.agents.object_ids

    @property
    def ceiling(self) -> float:
        """A meta-metric that no simulation can pass; NaN where a component is."""
        return sum(part.component.weight * part.ceiling for part in self.components)

    @property
    def agent_loss(self) -> Float64Array:
        """float64 [E], what each agent costs the score, by the components that are finite."""
        result: Float64Array = np.nansum([part.agent_loss for part in self.components], axis=0)
        return result

    @property
    def agent_avoidable(self) -> Float64Array:
        """float64 [E], as much of it as a better simulator could regain."""
        result: Float64Array = np.nansum([part.agent_avoidable for part in self.components], axis=0)
        return result

    def spans(self) -> list[Span]:
        """The logged steps, the least likely first, and of equally likely ones the costliest."""
        spans = [
            span
            for part in self.components
            for agent, object_id in enumerate(self.object_ids.tolist())
            for span in _spans(part, agent, object_id)
        ]
        return sorted(spans, key=lambda span: (span.log_likelihood, -span.loss))

    def to_json(self) -> str:
        """All of it as JSON: keys in a fixed order; what is not a finite number is null."""
        return json.dumps(_finite(_record(self)), indent=2, allow_nan=False) + "\n"


def explain_scenario(
    scenario: Scenario, rollouts: Rollouts, challenge: str | Challenge = "2025"
) -> Explanation:
    """Explain the score of rollouts of a scene.

    Args:
        scenario: the scene, with its logged future.
        rollouts: any number of joint rollouts of all its simulated agents.
        challenge: the version of the metric.

    Raises:
        WosacError: a version of Scenario Generation.
        ScenarioError, RolloutsError: see `wosac_toolkit.score_scenario`.
    """
    challenge = get_challenge(challenge)
    if challenge.whole_record:
        # Its distributions are of the scene, not of agents, and its sizes are simulated.
        raise WosacError(
            f"single scenes of {challenge.name} are not explained",
            mend="wosac report and wosac compare tell its components, and agents.parquet of "
            "wosac score --per-agent the log-likelihoods of its agents",
        )
    scene = prepare_scene(scenario, challenge)
    logged = count_log(logged_features(scene), scene.challenge)
    score = score_rollouts(scene, logged, rollouts)
    simulated = simulated_features(scene, rollouts)
    tallies = count_simulation(simulated, logged, scene.challenge)
    # As many as there are rollouts, since smoothing depends on their number.
    log = simulate_baseline(scenario, "log", rollouts.n_rollouts)
    replay = score_rollouts(scene, logged, log)
    once = Rollouts(log.scenario_id, log.object_ids, log.states[:1])
    return Explanation(
        score=score,
        replay=replay,
        sdc_id=int(scenario.tracks.object_ids[scenario.sdc_track_index]),
        components=tuple(
            _component_loss(component, logged, tallies[component.name], score, replay)
            for component in scene.challenge.components
        ),
        events=_events(scenario, scene, logged, simulated, _in_order(scene, rollouts)),
        log_events=_events(scenario, scene, logged, logged.features, None),
        replay_events=_events(
            scenario, scene, logged, simulated_features(scene, once), _in_order(scene, once)
        ),
    )


# --------------------------------------------------------------------------------------------------
# Losses


def _component_loss(
    component: Component,
    logged: LoggedCounts,
    tally: Tally,
    score: ScenarioScore,
    replay: ScenarioScore,
) -> ComponentLoss:
    estimator, counts = component.estimator, logged.counts[component.name]
    log_probability = log_probabilities(tally, estimator)
    sums = (counts * log_probability).sum(axis=1)
    total = counts.sum()
    best = np.zeros(len(counts))
    if not isinstance(estimator, KernelDensity):
        of_agent = counts.sum(axis=1, keepdims=True)
        share = np.divide(counts, of_agent, out=np.ones(counts.shape), where=counts > 0)
        best = (counts * np.log(share)).sum(axis=1)
    likelihood = float(getattr(score, component.field))
    ceiling = math.exp(best.sum() / total) if total else math.nan
    bins = edges = None
    if isinstance(estimator, Histogram):
        edges = estimator.edges()
        bins = _bins(getattr(logged.features, component.name)[0], edges)
    elif isinstance(estimator, KernelDensity):
        bins = np.broadcast_to(np.arange(counts.shape[1]), counts.shape)
    if bins is not None:
        bins = np.where(logged.steps[component.name], bins, -1)
    return ComponentLoss(
        component=component,
        likelihood=likelihood,
        replay=float(getattr(replay, component.field)),
        ceiling=ceiling,
        agent_loss=_divided(component.weight * (1 - likelihood), sums),
        agent_avoidable=_divided(component.weight * (ceiling - likelihood), best - sums),
        log_likelihood=score.agents.log_likelihoods[component.name],
        edges=edges,
        logged=counts,
        simulated=None if isinstance(estimator, KernelDensity) else tally.sum(axis=0),
        log_probabilities=log_probability,
        bins=bins,
    )


def _divided(total: float, weights: Float64Array) -> Float64Array:
    """`total` divided in proportion to weights of one sign."""
    whole = weights.sum()
    if math.isnan(total) or whole == 0:
        return np.full(len(weights), total / len(weights) if len(weights) else 0.0)
    result: Float64Array = total * (weights / whole)
    return result


def _bins(values: Float32Array, edges: Float32Array) -> Int64Array:
    """The bin of each value [E, T]: counted one by one, by what counts the simulation's."""
    counts = np.empty((values.size, 1, len(edges) - 1), np.int64)
    histogram.count_simulated(np.ascontiguousarray(values).reshape(-1, 1, 1), edges, counts)
    bins: Int64Array = counts.argmax(axis=2).reshape(values.shape)
    return bins


def _spans(part: ComponentLoss, agent: int, object_id: int) -> Iterator[Span]:
    if part.bins is None:
        return
    bins = part.bins[agent]
    total = float((part.logged * part.log_probabilities).sum())
    changes = np.flatnonzero(np.diff(bins)) + 1
    for first, end in zip([0, *changes.tolist()], [*changes.tolist(), len(bins)], strict=True):
        bin_ = int(bins[first])
        if bin_ < 0:
            continue
        value = float(part.log_probabilities[agent, bin_])
        low = high = math.nan
        share = None
        if part.edges is not None and part.simulated is not None:
            low, high = float(part.edges[bin_]), float(part.edges[bin_ + 1])
            share = float(part.simulated[agent, bin_] / part.simulated[agent].sum())
        loss = part.loss * value * (end - first) / total if total else 0.0
        yield Span(object_id, part.component.name, first, end - 1, low, high, value, share, loss)


# --------------------------------------------------------------------------------------------------
# Events


def _in_order(scene: PreparedScene, rollouts: Rollouts) -> Float32Array:
    """The states [R, N, T, 4] of rollouts in the order of the scene's agents."""
    row = {object_id: i for i, object_id in enumerate(rollouts.object_ids.tolist())}
    return rollouts.states[:, [row[object_id] for object_id in scene.object_ids.tolist()]]


def _events(
    scenario: Scenario,
    scene: PreparedScene,
    logged: LoggedCounts,
    features: Features,
    states: Float32Array | None,
) -> tuple[Event, ...]:
    """The events of features; `states` [R, N, T, 4] are those of rollouts, None of the log."""
    is_log = states is None
    valid = scene.future_valid if is_log else np.ones_like(scene.future_valid)
    moves = scene.future[None] if states is None else states
    events = [
        *_collisions(scene, moves, valid, features.collision_per_step & logged.valid),
        *_departures(scenario, scene, moves, features, features.offroad_per_step & logged.valid),
    ]
    if features.traffic_light_violation_per_step is not None and scene.signals is not None:
        ran = features.traffic_light_violation_per_step & logged.valid
        events += _violations(scene, scene.signals, moves, valid, ran)
    if is_log:
        events = [replace(event, rollout=None) for event in events]
    return tuple(
        sorted(
            events,
            key=lambda e: (e.kind, e.object_id, e.rollout or 0, e.first, e.partner_id or 0),
        )
    )


def _collisions(
    scene: PreparedScene, states: Float32Array, valid: BoolArray, happened: BoolArray
) -> Iterator[Event]:
    """The objects that each agent touches at the steps at which it touches any."""
    length, width, _ = np.ascontiguousarray(scene.size.T)
    core_length, core_width, shrinking = nearest_object.shrunken_boxes(
        length, width, scene.challenge.corner_rounding
    )
    radius = np.hypot(length, width) / np.float32(2)
    for agent, object_id in enumerate(scene.object_ids[: scene.n_evaluated].tolist()):
        rollout, step = np.nonzero(happened[:, agent])
        # As if each of these steps were a rollout of a single step.
        at_step = states[rollout, :, step]
        offset = at_step[..., :2] - at_step[:, [agent], :2]
        near = np.hypot(*offset.transpose(2, 0, 1)) < radius + radius[agent] + _CIRCLE_SLACK_M
        near &= valid[step]
        for other in np.flatnonzero(near.any(axis=0)).tolist():
            if other == agent:
                continue
            pair = [agent, other]
            x, y, heading = (
                np.ascontiguousarray(at_step[:, None, pair, axis]) for axis in (0, 1, 3)
            )
            distance = np.empty((len(step), 1, 1), np.float32)
            nearest_object.nearest_object_distances(
                x, y, heading, core_length[pair], core_width[pair], shrinking[pair], radius[pair],
                np.ones((1, 2), np.bool_), distance,
            )  # fmt: skip
            depth = np.zeros(happened[:, agent].shape, np.float32)
            depth[rollout, step] = distance[:, 0, 0]
            touches = depth < 0
            touches[rollout, step] &= valid[step, other]
            for r, first, last in _runs(touches):
                yield Event(
                    "collision", r, object_id, first, last,
                    partner_id=int(scene.object_ids[other]),
                    distance=float(depth[r, first : last + 1].min()),
                )  # fmt: skip


def _departures(
    scenario: Scenario,
    scene: PreparedScene,
    states: Float32Array,
    features: Features,
    happened: BoolArray,
) -> Iterator[Event]:
    """When each agent is off the road, and past which road edge it left it."""
    road_map = scenario.road_map
    rows = road_map.of_kind(MapFeatureKind.ROAD_EDGE)
    # Edges of a single point have no segments.
    edge_ids = road_map.feature_ids[rows[np.diff(road_map.point_offsets)[rows] >= 2]]
    for agent, object_id in enumerate(scene.object_ids[: scene.n_evaluated].tolist()):
        runs = list(_runs(happened[:, agent]))
        if not runs:
            continue
        rollout, first, _ = np.array(runs).T
        distance = features.distance_to_road_edge[:, agent]
        crossed = _crossed_edges(
            scene, agent, states[rollout, agent, first], distance[rollout, first]
        )
        for (r, start, last), edge in zip(runs, crossed, strict=True):
            yield Event(
                "offroad", r, object_id, start, last,
                feature_id=None if edge is None else int(edge_ids[edge]),
                distance=float(distance[r, start : last + 1].max()),
            )  # fmt: skip


def _crossed_edges(
    scene: PreparedScene, agent: int, states: Float32Array, distance: Float32Array
) -> list[int | None]:
    """The road edge that gives an agent its distance, by asking one edge after the other.

    Args:
        scene: the scene.
        agent: an evaluated agent.
        states: float32 [K, 4], its states.
        distance: float32 [K], its feature there.
    """
    columns = [np.ascontiguousarray(column)[:, None, None] for column in states.T]
    length, width, height = scene.size[agent, :, None]
    corners = np.empty((len(states), 1, 1, 8), np.float32)
    boxes.box_corners(columns[0], columns[1], columns[3], length, width, corners)
    half_height = height * np.float32(0.5)

    def measured(corners: Float32Array, edges: road_edges.RoadEdges) -> Float32Array:
        valid, result = np.ones((1, 1), np.bool_), np.empty((len(states), 1, 1), np.float32)
        if scene.challenge.road_edges == "planar":
            road_edges.planar_road_edge_distances(corners, valid, edges, result)
        else:
            road_edges.road_edge_distances(corners, columns[2], half_height, valid, edges, result)
        return result[:, 0, 0]

    # A box whose corners are all one corner is as far off the road as this corner.
    points = [np.repeat(corners[..., k::4], 4, axis=3) for k in range(4)]
    of_corner = np.stack([measured(point, scene.edges) for point in points])
    worst = np.stack(points)[of_corner.argmax(axis=0), np.arange(len(states))]
    found: list[int | None] = [None] * len(states)
    for edge in range(len(scene.edges.polyline_offsets) - 1):
        same = measured(worst, road_edges.single_road_edge(scene.edges, edge)) == distance
        for k in np.flatnonzero(same).tolist():
            found[k] = edge if found[k] is None else found[k]
    return found


def _violations(
    scene: PreparedScene,
    lanes: red_lights.SignalledLanes,
    states: Float32Array,
    valid: BoolArray,
    happened: BoolArray,
) -> Iterator[Event]:
    """The red lights that agents ran, by asking one signal after the other."""
    if not happened.any():
        return
    n_evaluated = scene.n_evaluated
    history = np.broadcast_to(scene.history, (len(states), *scene.history.shape))
    moves = np.concatenate([history, states], axis=2)[:, :n_evaluated]
    x, y = np.ascontiguousarray(moves[..., 0]), np.ascontiguousarray(moves[..., 1])
    ran = np.empty(happened.shape, np.bool_)
    for signal in range(len(lanes.signal_lane)):
        one = slice(signal, signal + 1)
        stop_start, stop_delta = (
            np.ascontiguousarray(array[:, one]) for array in (lanes.stop_start, lanes.stop_delta)
        )
        red_lights.red_light_violations(
            x, y, valid, lanes.start, lanes.delta, lanes.square, lanes.lane_offsets,
            lanes.lane_low, lanes.lane_high, lanes.padded, lanes.signal_lane[one], lanes.stop[one],
            stop_start, stop_delta, lanes.stop_square[one], lanes.stop_projection[one], ran,
        )  # fmt: skip
        lane_id = int(lanes.lane_ids[lanes.signal_lane[signal]])
        for agent, object_id in enumerate(scene.object_ids[:n_evaluated].tolist()):
            for r, first, last in _runs((ran & happened)[:, agent]):
                yield Event("red_light", r, object_id, first, last, feature_id=lane_id)


def _runs(happened: BoolArray) -> Iterator[tuple[int, int, int]]:
    """(rollout, first step, last step) of consecutive steps of [R, T] at which it is True."""
    edges = np.diff(happened.astype(np.int8), axis=1, prepend=0, append=0)
    rollouts, firsts = np.nonzero(edges == 1)
    lasts = np.nonzero(edges == -1)[1] - 1
    yield from zip(rollouts.tolist(), firsts.tolist(), lasts.tolist(), strict=True)


# --------------------------------------------------------------------------------------------------
# JSON


def _record(explanation: Explanation) -> dict[str, Any]:
    score, replay = explanation.score, explanation.replay
    return {
        "scenario_id": score.scenario_id,
        "challenge": score.challenge,
        "n_rollouts": score.n_rollouts,
        "n_sim_agents": score.n_sim_agents,
        "realism_meta_metric": score.metametric,
        "replay": replay.metametric,
        "ceiling": explanation.ceiling,
        "metrics": score.metrics(),
        "buckets": score.buckets(),
        "replay_metrics": replay.metrics(),
        "components": [
            {
                "name": part.component.name,
                "bucket": part.component.bucket,
                "weight": part.component.weight,
                "likelihood": part.likelihood,
                "replay": part.replay,
                "ceiling": part.ceiling,
                "loss": part.loss,
                "avoidable": part.avoidable,
                "edges": None if part.edges is None else part.edges.tolist(),
            }
            for part in explanation.components
        ],
        "agents": [_agent_record(explanation, i) for i in range(len(explanation.object_ids))],
        "spans": [_timed(span) for span in explanation.spans()],
        "events": [_timed(event) for event in explanation.events],
        "log_events": [_timed(event) for event in explanation.log_events],
        "replay_events": [_timed(event) for event in explanation.replay_events],
    }


def _agent_record(explanation: Explanation, agent: int) -> dict[str, Any]:
    agents = explanation.score.agents
    object_id = int(agents.object_ids[agent])
    violation = agents.traffic_light_violation_rate
    components = {}
    for part in explanation.components:
        components[part.component.name] = {
            "log_likelihood": float(part.log_likelihood[agent]),
            "loss": float(part.agent_loss[agent]),
            "avoidable": float(part.agent_avoidable[agent]),
            "logged": part.logged[agent].tolist(),
            "simulated": None if part.simulated is None else part.simulated[agent].tolist(),
            "log_probabilities": part.log_probabilities[agent].tolist(),
            "bins": None
            if part.bins is None
            else [None if bin_ < 0 else bin_ for bin_ in part.bins[agent].tolist()],
        }
    return {
        "object_id": object_id,
        "object_type": type_name(int(agents.object_types[agent])),
        "is_sdc": object_id == explanation.sdc_id,
        "loss": float(explanation.agent_loss[agent]),
        "avoidable": float(explanation.agent_avoidable[agent]),
        "average_displacement_error": float(agents.average_displacement_error[agent]),
        "collision_rate": float(agents.collision_rate[agent]),
        "offroad_rate": float(agents.offroad_rate[agent]),
        "traffic_light_violation_rate": None if violation is None else float(violation[agent]),
        "components": components,
    }


def type_name(object_type: int) -> str:
    """`vehicle`, `pedestrian`, `cyclist`, `other` or `unset`."""
    try:
        return ObjectType(object_type).name.lower()
    except ValueError:
        return "unset"


def _timed(item: Event | Span) -> dict[str, Any]:
    """Its fields, and its times in seconds after the current step."""
    start, end = seconds(item.first), seconds(item.last)
    return {**asdict(item), "start_seconds": start, "end_seconds": end}


def _finite(value: Any) -> Any:
    """The same with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --------------------------------------------------------------------------------------------------
# The scenes of a run


def load_scenes(
    run: Run,
    scenario_ids: Sequence[str],
    *,
    rollouts: str | os.PathLike[str] | None = None,
    scenarios: str | None = None,
    progress: bool = False,
) -> Iterator[tuple[Scenario, Rollouts]]:
    """Scenes of a run and their rollouts, in the order asked for, one at a time.

    Args:
        run: a finished run of `wosac score`, which remembers where both were.
        scenario_ids: scenes of it.
        rollouts, scenarios: where they are now, if they were moved.
        progress: show a bar on stderr while scenario files are indexed.

    Raises:
        WosacError: a scene that is not in the run or its files, rollouts that are there twice, or
            files that are gone.
        ScoringError: rollouts that do not fit their scene; its `findings` say why.
    """
    from wosac_toolkit.io.scenarios import index_scenarios, read_scenario

    known = run.scores["scenario_id"].tolist()
    for scenario_id in scenario_ids:
        if scenario_id not in known:
            like = difflib.get_close_matches(scenario_id, known, n=1, cutoff=0.5)
            raise WosacError(
                f"scenario {scenario_id} is not among the {len(known)} scenes of this run",
                where=str(run.directory),
                mend=f"do you mean {like[0]}?" if like else f"it has {some_ids(known, 3)}",
            )
    request, rules = run.summary.request, get_challenge(run.summary.challenge)
    try:
        found = _find_rollouts(request.rollouts if rollouts is None else rollouts, scenario_ids)
    except WosacError as error:
        raise _moved(error, "rollouts" if rollouts is None else "") from None
    path = request.scenarios if scenarios is None else scenarios
    try:
        records = index_scenarios(path, progress=progress)
    except WosacError as error:
        raise _moved(error, "scenarios" if scenarios is None else "") from None
    for scenario_id in scenario_ids:
        if scenario_id not in records:
            raise WosacError(
                f"scenario {scenario_id} is not in the scenario files",
                where=path,
                mend="give the folder that was scored with --scenarios",
            )
        scenario, simulated = read_scenario(records[scenario_id]), found[scenario_id].read()
        findings = check_rollouts(
            scenario,
            simulated,
            n_rollouts=None,
            n_steps=rules.n_steps,
            whole_record=rules.whole_record,
            file=found[scenario_id].where,
        )
        if findings:
            raise ScoringError(
                f"the rollouts of scenario {scenario_id} do not fit it", findings=findings
            )
        yield scenario, simulated


def _moved(error: WosacError, option: str) -> WosacError:
    """The same error, with a word on the option that tells where files are now."""
    mend = f"if they were moved, give --{option} PATH" if option else error.mend
    return WosacError(error.what, where=error.where, mend=mend)


def _find_rollouts(path: str | os.PathLike[str], scenario_ids: Sequence[str]) -> dict[str, Any]:
    """Scenario id -> where its rollouts are."""
    from wosac_toolkit.io.rollouts import index_rollouts, is_archive, iter_archive

    wanted = set(scenario_ids)
    found: dict[str, Any] = {}
    for ref in iter_archive(path) if is_archive(path) else index_rollouts(path):
        if ref.scenario_id not in wanted:
            continue
        if ref.scenario_id in found:
            raise WosacError(
                f"scenario {ref.scenario_id} has rollouts here and in "
                f"{found[ref.scenario_id].where}",
                where=ref.where,
                mend="keep one of them",
            )
        found[ref.scenario_id] = ref
    if missing := wanted - found.keys():
        raise WosacError(
            f"no rollouts of scenario {some_ids(missing)}",
            where=os.fspath(path),
            mend="give the rollouts that were scored with --rollouts",
        )
    return found
