"""Every kernel against its plain NumPy oracle, to the last bit, on random and awkward inputs."""

from __future__ import annotations

import numpy as np
import numpy_oracle as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wosac_toolkit.challenge import CHALLENGES, Histogram
from wosac_toolkit.kernels import (
    boxes,
    histogram,
    kernel_density,
    kinematics,
    nearest_object,
    red_lights,
    road_edges,
    time_to_collision,
)
from wosac_toolkit.kernels.float32 import sin_cos

F = np.float32
SCENES = [(seed, origin) for seed in range(3) for origin in (0.0, 250.0, 12_000.0, 40_000.0)]
FAR_OFF = [(0, 300_000.0)]  # where a simulator may go astray, and float32 knows 3 cm steps


def same(a, b):
    return np.array_equal(a, b, equal_nan=True)


def kernel_sin_cos(angles):
    pairs = [sin_cos(a) for a in np.asarray(angles, F).ravel()]
    return np.array(pairs, F).T.reshape(2, *np.shape(angles))


def traffic(seed, origin, n_agents=12, n_steps=10, n_rollouts=2, courses=(0, np.pi / 2, 3.0, -7.0)):
    """Agents that drive, turn, touch and overlap, in a dense crowd at `origin`."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(-15, 15, (n_rollouts, n_agents, 1, 2)) + origin
    heading = rng.choice(courses, (n_rollouts, n_agents, 1)) + rng.normal(
        0, 0.1, (n_rollouts, n_agents, n_steps + 2)
    ).cumsum(axis=2)
    speed = rng.choice([0.0, 3.0, 12.0], (n_rollouts, n_agents, 1))
    step = 0.1 * speed[..., None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    xy = (start + step.cumsum(axis=2)).astype(F)
    size = np.stack([rng.uniform(0.6, 9, n_agents), rng.uniform(0.5, 2.5, n_agents)]).astype(F)
    valid = rng.random((n_steps, n_agents)) > 0.2
    x, y = (np.ascontiguousarray(xy[..., k].transpose(0, 2, 1)) for k in range(2))
    h = np.ascontiguousarray(heading.transpose(0, 2, 1)).astype(F)
    return x, y, h, *size, valid


class TestSinCos:
    @settings(deadline=None)  # the first example compiles
    @given(st.floats(-18_000, 18_000, width=32))
    def test_is_within_two_units_of_the_last_place_of_the_true_value(self, angle):
        sine, cosine = sin_cos(F(angle))
        assert abs(sine - np.sin(angle)) <= 2e-7
        assert abs(cosine - np.cos(angle)) <= 2e-7

    @pytest.mark.parametrize(
        ("angle", "sine", "cosine"),
        # What tf.sin and tf.cos of TensorFlow 2.13 return on the CPU.
        [
            (0.0, 0.0, 1.0),
            (0.75, 0.6816387176513672, 0.7316888570785522),
            (-2.5, -0.5984721779823303, -0.8011435866355896),
            (3.1415927410125732, -8.742277657347586e-08, -1.0),
            (10.0, -0.5440210700035095, -0.83907151222229),
            (-123.45600128173828, 0.8039381504058838, -0.5947129130363464),
            (17999.5, -0.9676358699798584, -0.2523506283760071),
        ],
    )
    def test_has_tensorflows_rounding(self, angle, sine, cosine):
        assert sin_cos(F(angle)) == (F(sine), F(cosine))

    @pytest.mark.parametrize("angle", [3e4, -2e6, 1e20])
    def test_of_a_huge_angle_is_still_right(self, angle):
        sine, cosine = sin_cos(F(angle))
        assert sine == pytest.approx(np.sin(np.float64(F(angle))), abs=1e-6)
        assert cosine == pytest.approx(np.cos(np.float64(F(angle))), abs=1e-6)

    def test_of_nan_is_nan(self):
        assert np.isnan(sin_cos(F(np.nan))).all()


def random_walk(seed, shape, scale):
    rng = np.random.default_rng(seed)
    return (rng.normal(0, scale, shape).cumsum(axis=-1) + rng.uniform(-9e3, 9e3)).astype(F)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", ["central", "forward"])
def test_kinematics(seed, rule):
    position = random_walk(seed, (3, 2, 4, 30), 1.0)
    heading = random_walk(seed + 9, (2, 4, 30), 0.5) % F(50)  # turns of any size, not wrapped
    got = np.empty((4, 2, 4, 28), F)
    getattr(kinematics, f"{rule}_kinematics")(*position, heading, *got)
    expected = getattr(oracle, f"{rule}_kinematics")(*position, heading)
    for a, b in zip(got, expected, strict=True):
        assert same(a, b[..., 2:])


def test_displacement_is_averaged_over_history_and_future_valid_in_the_log():
    n_history, n_steps = 11, 80
    log = random_walk(0, (3, 2, n_steps), 0.5)
    simulated = np.concatenate([np.zeros((3, 2, 2), F), log], axis=2)[:, None].copy()
    simulated[0, 0, :, 2:] += 3
    simulated[1, 0, :, 2:] += 4
    valid = np.ones((2, n_history + n_steps), bool)
    valid[1, 50:] = False
    errors = np.empty((1, 2), F)
    kinematics.displacement_errors(*simulated, *log, valid, valid.sum(axis=1).astype(F), errors)
    assert errors[0, 0] == pytest.approx(5 * 80 / 91, rel=1e-4)
    assert errors[0, 1] == pytest.approx(5 * 39 / 50, rel=1e-4)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 31, 32, 91, 288])
def test_sums_are_those_of_all_values_whatever_their_order(n):
    values = np.random.default_rng(n).integers(0, 1000, n).astype(F)  # exact in any order
    assert kinematics.float32_sum(values) == values.sum()


def test_sums_have_tensorflows_rounding():
    # tf.reduce_sum of TensorFlow 2.13 on the CPU.
    values = (np.arange(1, 289) ** 1.7 / 7).astype(F)
    assert kinematics.float32_sum(values) == F(232236.71875)


@pytest.mark.parametrize("rounding", [0.7, 0.0])
@pytest.mark.parametrize(("seed", "origin"), SCENES + FAR_OFF)
def test_distance_to_the_nearest_object(seed, origin, rounding):
    x, y, heading, length, width, valid = traffic(seed, origin)
    heading = np.ascontiguousarray(heading[:, 2:])
    core_length, core_width, shrinking = nearest_object.shrunken_boxes(length, width, rounding)
    corners = np.empty((*heading.shape, 8), F)
    boxes.box_corners(x, y, heading, core_length, core_width, corners)
    sine, cosine = kernel_sin_cos(heading)
    dense = oracle.box_corners(x[:, 2:], y[:, 2:], sine, cosine, core_length, core_width)
    assert same(corners, np.concatenate([dense[..., 0], dense[..., 1]], axis=-1))

    got = np.empty((len(x), 5, heading.shape[1]), F)
    radius = np.hypot(length, width) / F(2)
    nearest_object.nearest_object_distances(
        x, y, heading, core_length, core_width, shrinking, radius, valid, got
    )
    for r in range(len(x)):
        expected = oracle.nearest_object_distances(dense[r], shrinking, valid, 5)
        assert same(got[r], expected)
    assert (got < 0).any()
    assert (got > 0).any()


def test_in_a_crowd_each_step_of_each_rollout_is_as_it_is_alone():
    # So many pairs are near that they are evaluated in several goes.
    rng = np.random.default_rng(0)
    n_rollouts, n_steps, n_agents, n_evaluated = 2, 50, 40, 30
    x, y = rng.uniform(0, 25, (2, n_rollouts, n_steps, n_agents)).astype(F)
    heading = rng.uniform(-4, 4, x.shape).astype(F)
    heading[:, :, ::5] += F(1e5)  # another branch of sines
    length, width = rng.uniform(0.5, 6, (2, n_agents)).astype(F)
    valid = rng.random((n_steps, n_agents)) > 0.1
    cores = nearest_object.shrunken_boxes(length, width, 0.7)
    radius = np.hypot(length, width) / F(2)
    got = np.empty((n_rollouts, n_evaluated, n_steps), F)
    nearest_object.nearest_object_distances(x, y, heading, *cores, radius, valid, got)
    for r, t in np.ndindex(n_rollouts, n_steps):
        one = (slice(r, r + 1), slice(t, t + 1))
        alone = np.empty((1, n_evaluated, 1), F)
        nearest_object.nearest_object_distances(
            x[one], y[one], heading[one], *cores, radius, valid[one[1]], alone
        )
        assert same(got[r, :, t], alone[0, :, 0])
    sine, cosine = kernel_sin_cos(heading[0, :1])
    boxes_of_one = oracle.box_corners(x[0, :1], y[0, :1], sine, cosine, *cores[:2])
    expected = oracle.nearest_object_distances(boxes_of_one, cores[2], valid[:1], n_evaluated)
    assert same(got[0, :, :1], expected)


def test_distance_of_an_agent_that_is_alone_is_the_official_sentinel():
    x = np.zeros((1, 1, 2), F)
    got = np.empty((1, 1, 1), F)
    ones = np.ones(2, F)
    nearest_object.nearest_object_distances(
        x, x, x, ones, ones, ones, ones, np.array([[True, False]]), got
    )
    assert got == F(1e10)


@pytest.mark.parametrize("central", [True, False])
@pytest.mark.parametrize(("seed", "origin"), SCENES)
def test_time_to_collision(seed, origin, central):
    x, y, heading, length, width, valid = traffic(
        seed, origin, n_agents=40, courses=(0.0, 0.1, 2 * np.pi)
    )
    rule = oracle.central_kinematics if central else oracle.forward_kinematics
    speed = rule(x.transpose(0, 2, 1), y.transpose(0, 2, 1), F(0) * x.transpose(0, 2, 1),
                 x.transpose(0, 2, 1))[0].transpose(0, 2, 1)[:, 2:]  # fmt: skip
    heading = np.ascontiguousarray(heading[:, 2:])
    got = np.empty((len(x), 7, heading.shape[1]), F)
    time_to_collision.times_to_collision(x, y, heading, length, width, valid, int(central), got)
    for r in range(len(x)):
        expected = oracle.times_to_collision(
            x[r, 2:], y[r, 2:], heading[r], kernel_sin_cos, length, width, valid, speed[r], 7
        )
        assert same(got[r], expected)
    assert (got < 5).any()


def wiggly_polyline(rng, origin, n, closed):
    if closed:
        angle = np.linspace(0, 2 * np.pi, n)
        radius = rng.uniform(3, 8)
        xy = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + rng.normal(0, 20, 2)
    else:
        direction = rng.normal(0, 0.5, n).cumsum()
        xy = np.stack([np.cos(direction), np.sin(direction)], axis=1).cumsum(axis=0)
        xy = xy + rng.normal(0, 20, 2)
    z = np.full((n, 1), rng.choice([0.0, 6.0])) + rng.normal(0, 0.05, (n, 1))
    return np.concatenate([xy + origin, z], axis=1).astype(F)


def road_edges_of(seed, origin):
    """Open and closed polylines on two levels, a degenerate one, repeated points, right angles."""
    rng = np.random.default_rng(seed)
    kinds = [(30, False), (25, True), (30, True), (8, False), (2, False), (30, False)]
    polylines = [wiggly_polyline(rng, origin, n, closed) for n, closed in kinds]
    polylines[3][4] = polylines[3][3]
    square = np.array([[0, 0, 0], [10, 0, 0], [10, 10, 0], [0, 10, 0], [0, 0, 0]])
    return [*polylines, (square + origin).astype(F), polylines[0][:1]]


@pytest.mark.parametrize("rule", ["stretched_3d", "planar"])
@pytest.mark.parametrize(("seed", "origin"), SCENES + FAR_OFF)
def test_distance_to_the_road_edge(seed, origin, rule):
    rng = np.random.default_rng(seed)
    polylines = road_edges_of(seed, origin)
    shape = (2, 6, 5)
    corners = (rng.normal(0, 15, (*shape, 8)) + origin).astype(F)
    corners[0, 0, 0] = np.array([-5, 15, 15, -5, 0, 10, 20, -5]) + F(origin)  # on lines of edges
    points = np.concatenate(polylines)
    for k in range(4):  # exactly on vertices, where two segments are equally near
        corners[1, :, :, k], corners[1, :, :, 4 + k] = (
            points[rng.integers(len(points), size=shape[1:])].T[:2].swapaxes(1, 2)
        )
    corners[0, 5, 4, :2] += F(3e6)  # far off, beyond the cells
    z = rng.choice([0.0, 3.0, 6.0], shape).astype(F)
    valid = rng.random(shape[1:]) > 0.1
    edges = road_edges.road_edge_segments(polylines, planar=rule == "planar")
    got = np.empty((2, 5, 6), F)
    if rule == "planar":
        road_edges.planar_road_edge_distances(corners, valid, edges, got)
    else:
        heights = z.transpose(0, 2, 1).copy()
        road_edges.road_edge_distances(corners, heights, np.zeros(6, F), valid, edges, got)
    for r, t, a in np.ndindex(*shape):
        if not valid[t, a]:
            assert got[r, a, t] == F(-1e10)
            continue
        point = [
            np.array([corners[r, t, a, k], corners[r, t, a, 4 + k], z[r, t, a]], F)
            for k in range(4)
        ]
        distance = (
            oracle.planar_road_edge_distance if rule == "planar" else oracle.road_edge_distance
        )
        assert got[r, a, t] == max(distance(p, polylines) for p in point)


@pytest.mark.parametrize("sign", [1, -1])  # of the bits, by which the smallest is found
def test_a_road_edge_that_is_not_a_number_is_none(sign):
    rng = np.random.default_rng(0)
    polylines = road_edges_of(0, 0.0)
    broken = [*polylines[:2], np.full((40, 3), np.copysign(np.nan, sign), F), *polylines[2:]]
    corners = rng.normal(0, 15, (3, 6, 5, 8)).astype(F)
    heights, valid = np.zeros((3, 5, 6), F), np.ones((6, 5), bool)
    got = np.empty((2, 3, 5, 6), F)
    for into, some in zip(got, (polylines, broken), strict=True):
        edges = road_edges.road_edge_segments(some, planar=False)
        road_edges.road_edge_distances(corners, heights, np.zeros(5, F), valid, edges, into)
    assert np.isfinite(got).all()
    assert same(got[0], got[1])


def test_an_agent_under_a_bridge_belongs_to_the_edge_of_its_own_road():
    low = np.array([[0, 10, 0], [50, 10, 0]], F)
    high = np.array([[0, 2, 8], [50, 2, 8]], F)
    corners = np.tile(np.array([20, 20, 20, 20, 0, 0, 0, 0], F), (1, 1, 1, 1))
    edges = road_edges.road_edge_segments([low, high], planar=False)
    got = np.empty((1, 1, 1), F)
    height, valid = np.zeros((1, 1, 1), F), np.ones((1, 1), bool)
    road_edges.road_edge_distances(corners, height, np.zeros(1, F), valid, edges, got)
    assert got == F(10)


def lanes_and_signals(seed, origin, n_steps):
    rng = np.random.default_rng(seed)
    lanes, ids = [], []
    for i, n in enumerate([12, 20, 20, 7, 2]):
        angle = rng.choice([0, np.pi / 2, 2.0])
        along = np.linspace(-15, 15, n)[:, None] * np.array([[np.cos(angle), np.sin(angle)]])
        lanes.append((along + rng.normal(0, 3, 2) + origin).astype(F))
        ids.append(100 + i)
    stops = {i: lanes[k][len(lanes[k]) // 2] for k, i in enumerate(ids)}
    stops[999] = np.zeros(2)  # a signal of a lane that is not among them
    signals = [
        [
            (i, int(rng.choice([0, 1, 3, 4, 5, 7])), p)
            for i, p in stops.items()
            if rng.random() > 0.1
        ]
        for _ in range(n_steps)
    ]
    return lanes, ids, signals


@pytest.mark.parametrize(("seed", "origin"), SCENES)
def test_red_light_violations(seed, origin, make_scenario):
    rng = np.random.default_rng(seed)
    n_steps, n_agents = 40, 12
    lanes, ids, signals = lanes_and_signals(seed, origin, n_steps)
    angle = rng.choice([0, np.pi / 2, 2.0], (n_agents, 1)) + rng.normal(0, 0.05, (n_agents, 1))
    along = np.linspace(-12, 12, n_steps)[None]
    xy = np.stack([np.cos(angle) * along, np.sin(angle) * along], axis=-1)
    xy = (xy + rng.normal(0, 3, (n_agents, 1, 2)) + origin).astype(F)
    valid = rng.random((n_agents, n_steps)) > 0.1
    scenario = make_scenario(n_steps=n_steps, lanes=dict(zip(ids, lanes, strict=True)),
                             signals=signals)  # fmt: skip
    prepared = red_lights.signalled_lanes(scenario)
    got = np.empty((1, n_agents, n_steps - 1), bool)
    p = prepared
    red_lights.red_light_violations(
        np.ascontiguousarray(xy[None, ..., 0]), np.ascontiguousarray(xy[None, ..., 1]),
        np.ascontiguousarray(valid[:, 1:].T), p.start, p.delta, p.square, p.lane_offsets,
        p.lane_low, p.lane_high, p.padded, p.signal_lane, p.stop, p.stop_start, p.stop_delta,
        p.stop_square, p.stop_projection, got,
    )  # fmt: skip
    expected = oracle.red_light_violations(xy, valid, lanes, ids, signals)
    assert same(got[0], expected[:, 1:])
    assert got.any()


class TestHistogram:
    EVERY = sorted(
        {c.estimator for v in CHALLENGES.values() for c in v.components
         if isinstance(c.estimator, Histogram)},
        key=str,
    )  # fmt: skip

    @pytest.mark.parametrize("estimator", EVERY, ids=str)
    def test_counts_each_value_in_the_bin_of_its_edges(self, estimator):
        edges = estimator.edges()
        rng = np.random.default_rng(0)
        values = rng.uniform(estimator.low - 3, estimator.high + 3, (3, 2, 500)).astype(F)
        near = np.concatenate([edges, np.nextafter(edges, F(-99)), np.nextafter(edges, F(99))])
        values[0, 0, : len(near)] = near
        values[1, 1, :5] = [np.nan, np.inf, -np.inf, -0.0, 1e10]
        counts = np.empty((3, 2, estimator.n_bins), np.int64)
        histogram.count_simulated(values, edges, counts)
        expected = oracle.bins(values, edges)
        for r, e in np.ndindex(3, 2):
            assert same(counts[r, e], np.bincount(expected[r, e], minlength=estimator.n_bins))

    def test_counts_only_valid_logged_steps(self):
        edges = Histogram(0.0, 5.0, 10).edges()
        values, valid = np.full((1, 4), F(2.4)), np.array([[True, False, True, False]])
        counts = np.empty((1, 10), np.int64)
        histogram.count_logged(values, valid, edges, counts)
        assert counts.tolist() == [[0, 0, 0, 0, 2, 0, 0, 0, 0, 0]]

    def test_not_a_number_falls_into_the_last_bin_as_in_the_official_code(self):
        counts = np.empty((1, 1, 10), np.int64)
        values = np.full((1, 1, 3), F(np.nan))
        histogram.count_simulated(values, Histogram(0.0, 25.0, 10).edges(), counts)
        assert counts[0, 0].tolist() == [0] * 9 + [3]

    @settings(max_examples=30)
    @given(st.sampled_from(EVERY))
    def test_edges_are_tensorflows_linspace(self, estimator):
        edges = estimator.edges()
        assert edges[0] == F(estimator.low)
        assert edges[-1] == F(estimator.high)
        assert np.allclose(edges, np.linspace(estimator.low, estimator.high, estimator.n_bins + 1))

    def test_edges_differ_from_numpys_in_the_last_bit(self):
        # tf.linspace(-12., 12., 12) in TensorFlow 2.13.
        assert Histogram(-12.0, 12.0, 11).edges()[5:7].tolist() == [
            -1.0909090042114258,
            1.0909099578857422,
        ]


class TestKernelDensity:
    def test_has_the_values_of_the_official_estimator(self):
        # estimators.kernel_density_estimate of release 1.6.7, bandwidth 0.5.
        logged = np.array([[0.0, 1.0, 2.5, 0.0], [4.0, -1.0, 0.25, 0.0]], F)
        simulated = np.array([[[0.1, 0.9, 1.1, 3.0], [3.9, 4.2, 0.0, 1.0]]], F)
        got = np.empty((1, 2, 4))
        kernel_density.log_densities(simulated, logged, 0.5, got)
        assert got[0, 0, :3] == pytest.approx(
            [-1.1496274542478324, -0.616819909338164, -1.8445944114594837]
        )
        assert got[0, 1, :3] == pytest.approx(
            [-0.7426971463906364, -3.3838186759821602, -1.1980326735994238]
        )

    def test_of_a_value_far_from_all_samples_is_still_finite(self):
        got = np.empty((1, 1, 1))
        kernel_density.log_densities(np.zeros((1, 1, 1), F), np.full((1, 1), F(100)), 0.5, got)
        assert got == -0.5 * 200**2
