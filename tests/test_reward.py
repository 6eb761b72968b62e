"""What rollouts are worth, and how that is shared among them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from threading import Event
from types import ModuleType

import numpy as np
import pytest

import wosac_toolkit
from wosac_toolkit import (
    CHALLENGES,
    MetaScoreReward,
    Rollouts,
    RolloutsError,
    WosacError,
    get_reward,
    load_scenarios,
    score_scenario,
)
from wosac_toolkit import reward as reward_module
from wosac_toolkit.baselines import simulate_baseline
from wosac_toolkit.challenge import COMPONENTS, KernelDensity, get_challenge
from wosac_toolkit.reward import CREDITS, REWARDS, UnscorableWarning
from wosac_toolkit.scenario import ObjectType

R = 5
MEASURES = {
    "meta_score": lambda score: score.metametric,
    "kinematic": lambda score: score.kinematic_metrics,
    "interactive": lambda score: score.interactive_metrics,
    "map_based": lambda score: score.map_based_metrics,
    "time_to_collision": lambda score: score.time_to_collision_likelihood,
    "collision_free": lambda score: 1 - score.simulated_collision_rate,
    "on_road": lambda score: 1 - score.simulated_offroad_rate,
    "min_ade": lambda score: -score.min_ade,
}


def noisy(scenario, n_rollouts=R, seed=0, noise=0.004):
    """The logged future with drift, other for each rollout.

    In the first two collide, in the second one nears the one ahead, in the last one leaves the
    road.
    """
    rows = scenario.sim_agents()
    future = np.concatenate(
        [scenario.tracks.position[rows, 11:], scenario.tracks.heading[rows, 11:, None]], axis=2
    )
    states = np.broadcast_to(future, (n_rollouts, *future.shape)).astype(np.float32)
    rng = np.random.default_rng(seed)
    drift = rng.normal(0, noise, (n_rollouts, len(rows), 1, 2)) * np.arange(80)[:, None]
    states[..., :2] += drift.astype(np.float32)
    states[0, 1, 40] = states[0, 0, 40]
    states[1, 0] = states[1, 1] - np.linspace([15, 0, 0, 0], [6, 0, 0, 0], 80)
    states[-1, 2, 50:, 1] += 40
    return Rollouts(scenario.scenario_id, scenario.tracks.object_ids[rows], states)


@pytest.fixture(scope="module")
def scenarios(make_scenario):
    """Three scenes of three to five objects; 2, 3 and 4 of them are evaluated."""
    lanes = {i: np.array([[x, 4.0 * i] for x in np.arange(-20.0, 80.0, 2)]) for i in range(3)}
    signals = [[(1, 4, (20.0, 4.0))]] * 91
    return [
        make_scenario(
            scenario_id=f"scene{n}",
            n_tracks=n,
            speed=2.0 + n,
            tracks_to_predict=list(range(1, n - 1)),
            object_types=[ObjectType.VEHICLE] * (n - 1) + [ObjectType.PEDESTRIAN],
            lanes=lanes,
            signals=signals,
        )
        for n in (3, 4, 5)
    ]


@pytest.fixture(scope="module")
def rollouts(scenarios):
    return [noisy(scenario, seed=i) for i, scenario in enumerate(scenarios)]


@pytest.fixture
def no_vehicles(make_scenario):
    """A scene whose time to collision, and so its score, is not a number."""
    return make_scenario(scenario_id="walkers", object_types=[ObjectType.PEDESTRIAN] * 3)


def scores_of(measure, scenario, rollouts, subsets, challenge="2025"):
    """The measure of some subsets of the rollouts, each scored by itself, [K]."""
    return np.array(
        [
            measure(score_scenario(scenario, replace(rollouts, states=states), challenge))
            for states in (rollouts.states[list(subset)] for subset in subsets)
        ]
    )


def others(n):
    return [[j for j in range(n) if j != i] for i in range(n)]


class TestCredits:
    @pytest.mark.parametrize("name", MEASURES)
    def test_group_gives_every_rollout_the_score_of_the_set(self, scenarios, rollouts, name):
        values = get_reward(name)(scenarios, rollouts)
        assert values.shape == (3, R)
        assert values.dtype == np.float64
        for row, scenario, each in zip(values, scenarios, rollouts, strict=True):
            expected = MEASURES[name](score_scenario(scenario, each))
            assert row == pytest.approx([expected] * R, abs=1e-12)

    @pytest.mark.parametrize("name", MEASURES)
    def test_single_scores_each_rollout_alone(self, scenarios, rollouts, name):
        values = get_reward(name, credit="single")(scenarios, rollouts)
        for row, scenario, each in zip(values, scenarios, rollouts, strict=True):
            expected = scores_of(MEASURES[name], scenario, each, [[i] for i in range(R)])
            assert row == pytest.approx(expected, abs=1e-9)
        assert np.ptp(values, axis=1).max() > 0

    @pytest.mark.parametrize("name", MEASURES)
    def test_leave_one_out_is_what_the_set_loses(self, scenarios, rollouts, name):
        values = get_reward(name, credit="leave_one_out")(scenarios, rollouts)
        for row, scenario, each in zip(values, scenarios, rollouts, strict=True):
            without = scores_of(MEASURES[name], scenario, each, others(R))
            assert row == pytest.approx(without.mean() - without, abs=1e-9)
        assert np.ptp(values, axis=1).max() > 0

    @pytest.mark.parametrize("year", sorted(CHALLENGES))
    @pytest.mark.parametrize("n_rollouts", [2, 7])
    def test_are_exact_for_every_year_and_number_of_rollouts(self, scenarios, year, n_rollouts):
        scenario, each = scenarios[1], noisy(scenarios[1], n_rollouts)
        alone, without = (
            scores_of(MEASURES["meta_score"], scenario, each, subsets, year)
            for subsets in ([[i] for i in range(n_rollouts)], others(n_rollouts))
        )
        single = MetaScoreReward(year, "single")([scenario], [each])
        left_out = MetaScoreReward(year, "leave_one_out")([scenario], [each])
        assert single[0] == pytest.approx(alone, abs=1e-9)
        assert left_out[0] == pytest.approx(without.mean() - without, abs=1e-9)

    def test_are_exact_for_kernel_densities(self, scenarios):
        components = tuple(
            replace(c, estimator=KernelDensity(0.5))
            if c.name == "distance_to_nearest_object"
            else c
            for c in get_challenge("2025").components
        )
        own = replace(get_challenge("2025"), name="own", components=components)
        scenario, each = scenarios[0], noisy(scenarios[0])
        alone = scores_of(MEASURES["meta_score"], scenario, each, [[i] for i in range(R)], own)
        assert MetaScoreReward(own, "single")([scenario], [each])[0] == pytest.approx(alone)

    @pytest.mark.parametrize("name", REWARDS)
    def test_leave_one_out_sums_to_zero(self, scenarios, rollouts, name):
        values = get_reward(name, credit="leave_one_out")(scenarios, rollouts)
        assert values.sum(axis=1) == pytest.approx(0, abs=1e-12)

    def test_leave_one_out_blames_the_rollout_that_collides(self, scenarios, rollouts):
        reward = get_reward("collision_indication", credit="leave_one_out")
        assert reward(scenarios, rollouts).argmin(axis=1).tolist() == [0, 0, 0]

    @pytest.mark.parametrize("credit", CREDITS)
    @pytest.mark.parametrize("name", ["meta_score", "collision_free", "min_ade"])
    def test_follow_the_rollouts_when_these_are_permuted(self, scenarios, rollouts, name, credit):
        reward, order = get_reward(name, credit=credit), [3, 0, 4, 1, 2]
        permuted = [replace(each, states=each.states[order]) for each in rollouts]
        values, after = reward(scenarios, rollouts), reward(scenarios, permuted)
        assert after == pytest.approx(values[:, order], abs=1e-12, nan_ok=True)

    def test_of_one_rollout(self, scenarios, rollouts):
        one = [replace(each, states=each.states[:1]) for each in rollouts]
        group, single = (MetaScoreReward(credit=c)(scenarios, one) for c in ("group", "single"))
        assert group == pytest.approx(single, abs=1e-12)
        for credit in ("leave_one_out", "agent"):
            with pytest.raises(RolloutsError, match="scenario scene3: a single rollout"):
                MetaScoreReward(credit=credit)(scenarios, one)


class TestCreditOfAgents:
    @pytest.mark.parametrize("name", REWARDS)
    def test_sums_to_the_leave_one_out_credit(self, scenarios, rollouts, name):
        values = get_reward(name, credit="agent")(scenarios, rollouts)
        whole = get_reward(name, credit="leave_one_out")(scenarios, rollouts)
        rounding = 1e-6 if name == "min_ade" else 1e-12  # The official minADE is in float32.
        assert np.nansum(values, axis=2) == pytest.approx(whole, abs=rounding)

    @pytest.mark.parametrize("name", REWARDS)
    def test_sums_to_zero_over_rollouts(self, scenarios, rollouts, name):
        values = get_reward(name, credit="agent")(scenarios, rollouts)
        assert np.nansum(values, axis=1) == pytest.approx(0, abs=1e-12)

    def test_is_padded_to_the_scene_of_most_agents(self, scenarios, rollouts):
        rewards = MetaScoreReward(credit="agent").score(scenarios, rollouts)
        assert rewards.values.shape == (3, R, 4)
        assert [ids.tolist() for ids in rewards.object_ids] == [
            [10, 11], [10, 11, 12], [10, 11, 12, 13],
        ]  # fmt: skip
        padding = np.isnan(rewards.values)
        assert padding[:, 0].tolist() == [
            [False, False, True, True], [False, False, False, True], [False] * 4,
        ]  # fmt: skip
        assert (padding == padding[:, :1]).all()

    def test_is_the_sum_of_secants(self, scenarios, rollouts):
        """The equation of the module, agent by agent and rollout by rollout."""
        scenario, each = scenarios[2], rollouts[2]
        without = [
            score_scenario(scenario, replace(each, states=each.states[subset]))
            for subset in others(R)
        ]
        expected = np.zeros((R, 4))
        for c in get_challenge("2025").components:
            n = without[0].agents.n_valid_steps[c.name]
            s = np.array([np.nan_to_num(w.agents.log_likelihoods[c.name]) * n for w in without])
            L = np.array([w.metrics()[c.field] for w in without])
            for i in range(R):
                for j in range(R):
                    equal = np.isclose(L[i], L[j], rtol=1e-9)
                    secant = L[i] if equal else (L[j] - L[i]) / (np.log(L[j]) - np.log(L[i]))
                    expected[i] += c.weight / n.sum() * secant * (s[j] - s[i]) / R
        values = MetaScoreReward(credit="agent")([scenario], [each])
        assert values[0] == pytest.approx(expected, abs=1e-9)

    def test_blames_those_who_collide(self, scenarios, rollouts):
        values = get_reward("collision_free", credit="agent")(scenarios[2:], rollouts[2:])[0]
        assert (values[0, :2] < 0).all()
        assert (values[0, 2:] >= 0).all()


class TestScenesWithoutAReward:
    @pytest.mark.parametrize("credit", CREDITS)
    def test_have_nan_and_are_named(self, scenarios, rollouts, make_scenario, no_vehicles, credit):
        no_edges = make_scenario(scenario_id="field", road_edges=[])
        batch = [no_edges, scenarios[0], no_vehicles]
        given = [noisy(no_edges), rollouts[0], noisy(no_vehicles)]
        reward = MetaScoreReward(credit=credit)
        rewards = reward.score(batch, given)
        assert rewards.unscorable == {
            "field": "missing road edges",
            "walkers": "time_to_collision_likelihood: no evaluated vehicle has a valid logged step",
        }
        assert np.isnan(rewards.values[[0, 2]]).all()
        assert np.isnan(rewards.set_values).tolist() == [True, False, True]
        alone = reward(scenarios[:1], rollouts[:1])
        assert np.array_equal(rewards.values[1:2], alone)
        with pytest.warns(UnscorableWarning, match="scenario field: missing road edges; scenario"):
            assert np.isnan(reward(batch, given)[[0, 2]]).all()

    def test_may_be_all(self, no_vehicles):
        rewards = MetaScoreReward(credit="agent").score([no_vehicles], [noisy(no_vehicles)])
        assert rewards.values.shape == (1, R, 0)

    def test_have_one_where_the_missing_component_weighs_nothing(self, no_vehicles):
        values = get_reward("kinematic", credit="leave_one_out")(
            [no_vehicles], [noisy(no_vehicles)]
        )
        assert np.isfinite(values).all()

    def test_include_those_of_the_test_split(self, make_scenario):
        scenario = make_scenario(n_steps=11)
        rewards = MetaScoreReward().score([scenario], [np.zeros((R, 3, 80, 4), np.float32)])
        assert "no future" not in rewards.unscorable["scene"]
        assert "the record has 11 steps" in rewards.unscorable["scene"]


class TestLogging:
    def test_gives_every_component_of_the_sets(self, scenarios, rollouts, no_vehicles):
        rewards = MetaScoreReward(credit="leave_one_out").score(
            [*scenarios, no_vehicles], [*rollouts, noisy(no_vehicles)]
        )
        for i, pair in enumerate(zip(scenarios, rollouts, strict=True)):
            metrics = score_scenario(*pair).metrics()
            assert {name: column[i] for name, column in rewards.components.items()} == metrics
            assert rewards.set_values[i] == metrics["metametric"]
        assert np.isnan(rewards.components["time_to_collision_likelihood"][3])
        assert np.isfinite(rewards.components["linear_speed_likelihood"][3])

    def test_leaves_out_what_a_year_has_not(self, scenarios, rollouts):
        rewards = MetaScoreReward("2024").score(scenarios, rollouts)
        assert "traffic_light_violation_likelihood" not in rewards.components


class TestWeights:
    def test_are_those_of_the_challenge_by_default(self, scenarios, rollouts):
        weights = {c.name: c.weight for c in get_challenge("2025").components}
        assert MetaScoreReward(weights=weights)(scenarios, rollouts) == pytest.approx(
            MetaScoreReward()(scenarios, rollouts), abs=1e-12
        )

    def test_are_divided_by_their_sum(self, scenarios, rollouts):
        weights = {"linear_speed": 2.0, "offroad_indication": 6.0, "angular_speed": 0}
        values = MetaScoreReward(weights=weights)(scenarios, rollouts)
        for row, scenario, each in zip(values, scenarios, rollouts, strict=True):
            s = score_scenario(scenario, each)
            expected = 0.25 * s.linear_speed_likelihood + 0.75 * s.offroad_indication_likelihood
            assert row == pytest.approx([expected] * R)

    @pytest.mark.parametrize(
        ("weights", "match"),
        [
            ({"sped": 1.0}, r"unknown component 'sped' \(one of linear_speed, "),
            ({"linear_speed": -1.0}, "linear_speed must not be negative"),
            ({"linear_speed": np.nan}, "linear_speed must not be negative, but is nan"),
            ({"linear_speed": 0.0}, "all weights are zero"),
            ({}, "all weights are zero"),
        ],
    )
    def test_that_mean_nothing_are_refused(self, weights, match):
        with pytest.raises(WosacError, match=match):
            MetaScoreReward(weights=weights)


class TestRolloutsAsArrays:
    def test_are_in_the_order_of_the_simulated_agents(self, scenarios, rollouts):
        arrays = [each.states for each in rollouts]
        reward = MetaScoreReward(credit="single")
        assert np.array_equal(reward(scenarios, arrays), reward(scenarios, rollouts))

    def test_of_torch_are_read_without_a_copy(self, scenarios, rollouts, monkeypatch):
        torch = pytest.importorskip("torch")
        tensors = [torch.tensor(each.states) for each in rollouts]
        seen = []
        score = MetaScoreReward._score
        monkeypatch.setattr(
            MetaScoreReward, "_score", lambda self, s, r: seen.extend(r) or score(self, s, r)
        )
        reward = MetaScoreReward(credit="leave_one_out")
        assert np.array_equal(reward(scenarios, tensors), reward(scenarios, rollouts))
        for tensor, each in zip(tensors, seen, strict=False):
            assert each.states.ctypes.data == tensor.data_ptr()
        doubles = [tensor.double() for tensor in tensors]
        assert np.array_equal(reward(scenarios, doubles), reward(scenarios, rollouts))

    def test_of_torch_that_cannot_be_read_are_refused_with_the_mend(self, scenarios):
        torch = pytest.importorskip("torch")
        tensor, reward = torch.zeros(R, 3, 80, 4), MetaScoreReward()
        for states, mend in [
            (tensor.to("meta"), r"scenario scene3: the states are on meta \(pass `states.cpu\(\)`"),
            (tensor.requires_grad_(), r"gradients.*states.detach\(\)"),
            (torch.zeros(R, 3, 80, 4, dtype=torch.bfloat16), r"as an array.*states.float\(\)"),
        ]:
            with pytest.raises(RolloutsError, match=mend):
                reward.submit(scenarios[:1], [states])

    def test_do_not_need_torch(self):
        code = "import sys, wosac_toolkit.reward; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_that_do_not_fit_are_refused(self, scenarios, rollouts):
        reward = MetaScoreReward()
        with pytest.raises(RolloutsError, match="rollouts of 2 scenes for 3 scenes"):
            reward(scenarios, rollouts[:2])
        fewer = [*rollouts[:2], replace(rollouts[2], states=rollouts[2].states[1:])]
        with pytest.raises(RolloutsError, match=r"scenario scene5: 4 rollouts, but 5 of .*scene3"):
            reward(scenarios, fewer)
        with pytest.raises(RolloutsError, match=r"scenario scene3: these are rollouts of .*scene4"):
            reward(scenarios[:2], rollouts[1::-1])
        broken = replace(rollouts[0], states=np.full_like(rollouts[0].states, np.nan))
        with pytest.raises(RolloutsError, match="scenario scene3: a simulated state is not finite"):
            reward(scenarios[:1], [broken])

    def test_may_be_none_at_all(self):
        assert MetaScoreReward()([], []).shape == (0, 0)
        assert MetaScoreReward(credit="agent")([], []).shape == (0, 0, 0)


class TestSubmit:
    def test_gives_what_a_call_gives(self, scenarios, rollouts):
        reward = MetaScoreReward(credit="agent")
        futures = [reward.submit(scenarios[i:], rollouts[i:]) for i in range(3)]
        assert all(isinstance(future, Future) for future in futures)
        for i, future in enumerate(futures):
            expected = reward(scenarios[i:], rollouts[i:])
            assert np.array_equal(future.result(60).values, expected, equal_nan=True)

    def test_does_not_wait_for_the_reward(self, scenarios, rollouts):
        told = Event()

        def slow(scenarios, rollouts):
            assert told.wait(60)
            return np.zeros((len(scenarios), R))

        future = named(slow).submit(scenarios, rollouts)
        assert not future.done()
        told.set()
        assert future.result(60).values.shape == (3, R)

    def test_tells_errors_with_the_result(self, scenarios, rollouts):
        future = MetaScoreReward().submit(scenarios[:2], rollouts[1::-1])
        with pytest.raises(RolloutsError, match="scenario scene3"):
            future.result(60)


class TestPreparedScenes:
    @pytest.fixture
    def prepared(self, monkeypatch):
        """Ids of the scenes that are prepared."""
        prepare, ids = reward_module.prepare_scene, []
        monkeypatch.setattr(
            reward_module,
            "prepare_scene",
            lambda scenario, challenge: (
                ids.append(scenario.scenario_id) or prepare(scenario, challenge)
            ),
        )
        return ids

    def test_are_used_again(self, scenarios, rollouts, prepared):
        reward = MetaScoreReward(workers=1)
        first = reward(scenarios, rollouts)
        assert sorted(prepared) == ["scene3", "scene4", "scene5"]
        copies = [replace(s, timestamps=s.timestamps.copy()) for s in scenarios]
        assert np.array_equal(reward(copies, rollouts), first)
        assert len(prepared) == 3

    def test_are_bounded_and_those_used_last_are_kept(self, scenarios, rollouts, prepared):
        reward = MetaScoreReward(workers=1, cache_size=2)
        for i in (0, 1, 0, 2, 0, 1):
            reward(scenarios[i : i + 1], rollouts[i : i + 1])
            assert len(reward._prepared) <= 2
        assert prepared == ["scene3", "scene4", "scene5", "scene4"]

    def test_of_one_id_but_other_content_are_told_apart(self, scenarios, rollouts):
        reward, scenario = MetaScoreReward(), scenarios[0]
        before = reward([scenario], rollouts[:1])
        position = scenario.tracks.position.copy()
        position[0, 11:, 0] += np.linspace(0, 30, 80)
        moved = replace(scenario, tracks=replace(scenario.tracks, position=position))
        after = reward([moved], rollouts[:1])
        assert after[0, 0] == score_scenario(moved, rollouts[0]).metametric
        assert after[0, 0] != before[0, 0]

    def test_that_cannot_be_scored_are_remembered(self, make_scenario, prepared):
        scenario = make_scenario(road_edges=[])
        reward = MetaScoreReward()
        for _ in range(2):
            assert "scene" in reward.score([scenario], [noisy(scenario)]).unscorable
        assert prepared == ["scene"]


@pytest.mark.parametrize("credit", CREDITS)
def test_numbers_do_not_depend_on_the_workers(scenarios, rollouts, credit):
    one, *more = (
        MetaScoreReward(credit=credit, workers=workers)(scenarios, rollouts)
        for workers in (1, 2, 3, 16)
    )
    for values in more:
        assert np.array_equal(values, one, equal_nan=True)


def named(function):
    """The reward of a function in a module of its own, by its dotted path."""
    module = ModuleType("rewards_of_a_test")
    module.own = function
    sys.modules[module.__name__] = module
    try:
        return get_reward("rewards_of_a_test:own")
    finally:
        del sys.modules[module.__name__]


class TestNames:
    def test_known_are(self):
        assert list(REWARDS) == [
            "meta_score", "kinematic", "interactive", "map_based", "collision_free", "on_road",
            "min_ade", *COMPONENTS,
        ]  # fmt: skip

    @pytest.mark.parametrize("name", REWARDS)
    def test_take_options(self, name):
        reward = get_reward(name, challenge="2025", credit="single", workers=1, cache_size=3)
        assert (reward.credit, reward.workers) == ("single", 1)

    def test_are_told_where_one_is_unknown(self):
        known = ", ".join(REWARDS)
        with pytest.raises(WosacError, match=f"unknown reward 'speed' .one of {known}, or package"):
            get_reward("speed")

    @pytest.mark.parametrize(
        ("name", "options", "match"),
        [
            ("meta_score", {"credit": "mean"}, "'mean' .*group, leave_one_out, single, agent"),
            ("meta_score", {"challenge": "2022"}, "unknown challenge '2022'"),
            ("meta_score", {"workers": 0}, "workers must be at least 1"),
            ("meta_score", {"cache_size": -1}, "cache_size must not be negative"),
            ("kinematic", {"weights": {}}, "reward kinematic: .*'weights'.*it takes challenge"),
            ("traffic_light_violation", {"challenge": "2024"}, "2024 has no component"),
        ],
    )
    def test_refuse_options_that_they_do_not_take(self, name, options, match):
        with pytest.raises(WosacError, match=match):
            get_reward(name, **options)

    def test_may_be_a_path_to_a_function(self, scenarios, rollouts):
        def last_x(scenarios, rollouts):
            return [each.states[:, 0, -1, 0] for each in rollouts]

        reward = named(last_x)
        expected = np.array([each.states[:, 0, -1, 0] for each in rollouts])
        assert np.array_equal(reward(scenarios, [each.states for each in rollouts]), expected)
        rewards = reward.score(scenarios, rollouts)
        assert rewards.set_values == pytest.approx(expected.mean(axis=1))
        assert rewards.components == {}

    def test_may_be_a_path_to_a_class_which_gets_the_options(self, scenarios, rollouts):
        reward = get_reward("wosac_toolkit.reward:MetaScoreReward", credit="single")
        assert isinstance(reward, MetaScoreReward)
        assert reward.credit == "single"

    def test_of_ones_own_are_held_to_the_protocol(self, scenarios, rollouts):
        with pytest.raises(WosacError, match=r"own returned \[3\] \(for 3 scenes of 5 rollouts"):
            named(lambda s, r: np.zeros(3))(scenarios, rollouts)
        nan_row = named(lambda s, r: np.where(np.arange(3)[:, None] == 1, np.nan, np.ones((3, R))))
        assert nan_row.score(scenarios, rollouts).unscorable == {
            "scene4": "the reward is not a number"
        }
        with pytest.raises(WosacError, match="own cannot be called"):
            named(3)

    @pytest.mark.parametrize(
        ("path", "match"),
        [
            ("no_such_package:reward", "no module 'no_such_package'"),
            ("wosac_toolkit.reward:nothing", "wosac_toolkit.reward has no 'nothing'"),
            (":reward", "':reward' does not name a reward"),
            ("wosac_toolkit.reward:", "wosac_toolkit.reward has no ''"),
        ],
    )
    def test_that_lead_nowhere_are_refused(self, path, match):
        with pytest.raises(WosacError, match=match):
            get_reward(path)


def test_is_exported_and_loaded_lazily():
    assert {"MetaScoreReward", "get_reward", "compare_runs", "read_models"} <= set(
        wosac_toolkit.__all__
    )
    assert wosac_toolkit.compare_runs.__module__ == "wosac_toolkit.compare"
    assert wosac_toolkit.read_models.__module__ == "wosac_toolkit.compare"


@pytest.mark.womd
def test_of_real_scenes_is_what_rescoring_gives(womd_dir):
    scenarios = [s for s, _ in zip(load_scenarios(womd_dir / "validation"), range(3), strict=False)]
    rollouts = [simulate_baseline(s, "constant_turn_rate", 4) for s in scenarios]
    rewards = MetaScoreReward(credit="leave_one_out").score(scenarios, rollouts)
    agents = MetaScoreReward(credit="agent").score(scenarios, rollouts)
    scorable = [i for i, s in enumerate(scenarios) if s.scenario_id not in rewards.unscorable]
    assert scorable
    for i in scorable:
        without = scores_of(MEASURES["meta_score"], scenarios[i], rollouts[i], others(4))
        assert rewards.values[i] == pytest.approx(without.mean() - without, abs=1e-9)
        assert np.nansum(agents.values[i], axis=1) == pytest.approx(rewards.values[i], abs=1e-12)
