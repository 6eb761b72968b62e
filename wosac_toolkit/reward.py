"""Rewards: what each of a scene's rollouts is worth, for training on the metric itself.

A reward is a callable, `reward(scenarios, rollouts) -> float64 [S, R]`, batched over S scenes with
R rollouts each. Scenes that cannot be scored have NaN, which a trainer gives no advantage.

>>> reward = get_reward("meta_score", credit="leave_one_out")
>>> future = reward.submit(scenarios, rollouts)  # doctest: +SKIP
>>> ...  # doctest: +SKIP
>>> future.result().values  # doctest: +SKIP

What a *set* of rollouts is worth, and how that is shared among its members, are two things. A
`Measure` says the first: the realism meta-metric, which compares all rollouts of a scene together
with its log, or simpler quantities. A `Credit` says the second. With M(X) the measure of a set of
rollouts, and -i all rollouts but the i-th:

=================  ================================================================================
``group``          M(all) for every rollout, as SMART-R1 rewards (arXiv 2509.23993)
``leave_one_out``  mean_j M(-j) - M(-i), the MLOO of RLFTSim (arXiv 2605.19033): what the set loses
                   without the rollout; sums to zero over rollouts
``single``         M({i}), each rollout scored by itself
``agent``          the leave-one-out credit, divided among the evaluated agents: [S, R, A]
=================  ================================================================================

`agent` divides without a remainder. The measure is M = sum_c w_c L_c with likelihoods
L_c = exp(sum_e s_ce / n_c), where s_ce sums the log-likelihoods of agent e over its logged steps
and n_c counts the steps of all agents. Were M linear in s, each agent's share would be its part of
the sum. The exponential is dealt with exactly by the logarithmic mean
l(a, b) = (a - b) / (ln a - ln b), the secant in place of the slope L_c (the additive decomposition
of Divisia indices, Ang, Energy Policy 32, 2004):

    credit_ie = mean_j sum_c (w_c / n_c) l(L_c(-j), L_c(-i)) (s_ce(-j) - s_ce(-i))

so that its sum over agents is the rollout's leave-one-out credit, and its sum over rollouts zero
for each agent. It credits an agent with what happens to its own likelihoods: an agent that drives
into another bears its own collision, and the other one bears its.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from importlib import import_module
from inspect import signature
from math import isfinite, nan
from threading import Lock
from time import perf_counter
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from wosac_toolkit.challenge import COMPONENTS, METRIC_FIELDS, Challenge, Component, get_challenge
from wosac_toolkit.errors import RolloutsError, ScenarioError, WosacError
from wosac_toolkit.features import PreparedScene, logged_features, prepare_scene
from wosac_toolkit.likelihood import (
    LoggedCounts,
    alone_sums,
    count_log,
    leave_one_out_sums,
    log_likelihood_sums,
)
from wosac_toolkit.metric import (
    Evidence,
    ScenarioScore,
    gather_evidence,
    likelihood,
    score_evidence,
)
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Float64Array, Int64Array, Scenario
from wosac_toolkit.threads import kept_threads
from wosac_toolkit.workers import n_cpus

Credit = Literal["group", "leave_one_out", "single", "agent"]
CREDITS: tuple[Credit, ...] = get_args(Credit)

Subsets = Literal["all", "others", "alone"]
"""Which sets of R rollouts to measure: all together (one set), each but one, or each alone (R)."""

States = Rollouts | npt.ArrayLike
"""Rollouts, or their states alone: [R, N, T, 4] as in `Rollouts`, with the agents in the order of
`Scenario.sim_agents`. An array of NumPy or anything that offers itself as one, such as a torch
tensor on the CPU; contiguous float32 is not copied."""

DEFAULT_CACHE_SIZE = 256


class UnscorableWarning(UserWarning):
    """Scenes have no reward; the message names them."""


@dataclass(frozen=True, eq=False, slots=True)
class Rewards:
    """The rewards of S scenes with R rollouts each, and what is worth logging about them.

    Attributes:
        values: float64 [S, R]; for the credit `agent` [S, R, A], where A is the largest number of
            evaluated agents of a scene. NaN for scenes that cannot be scored, and for agents that
            a scene has not.
        set_values: float64 [S], the measure of all rollouts of a scene together.
        scores: of each scene, of all its rollouts; None where the scorer refuses the scene.
        object_ids: of each scene int64 [E], its evaluated agents in the order of the last axis of
            [S, R, A]; empty where the scene cannot be scored.
        unscorable: scenario id -> why it has no reward.
        seconds: how long it took to compute.
    """

    values: Float64Array
    set_values: Float64Array
    scores: tuple[ScenarioScore | None, ...]
    object_ids: tuple[Int64Array, ...]
    unscorable: dict[str, str]
    seconds: float = 0.0

    @property
    def components(self) -> dict[str, Float64Array]:
        """Field of `SimAgentMetrics` -> float64 [S], of all rollouts; NaN where there is none."""
        rows = [{} if score is None else score.metrics() for score in self.scores]
        columns = {name: [row.get(name) for row in rows] for name in METRIC_FIELDS}
        return {
            name: np.array([nan if value is None else value for value in column])
            for name, column in columns.items()
            if any(value is not None for value in column)
        }


class Reward(ABC):
    """A batched reward; see the module for what the numbers mean.

    A subclass says what `score` does.
    """

    def __call__(self, scenarios: Iterable[Scenario], rollouts: Iterable[States]) -> Float64Array:
        """The rewards alone; a warning names the scenes that have none.

        Args:
            scenarios: S scenes with their logged futures.
            rollouts: the rollouts of each, the same number R for all scenes.

        Returns:
            float64 [S, R]; see `Rewards.values`.

        Raises:
            RolloutsError: rollouts that do not fit their scene, cannot be read as an array of the
                host, or hold a value that is not finite; see also the reward's `credit`.
        """
        rewards = self.score(scenarios, rollouts)
        if rewards.unscorable:
            named = "; ".join(f"scenario {i}: {why}" for i, why in rewards.unscorable.items())
            warnings.warn(f"no reward for {named}", UnscorableWarning, stacklevel=2)
        return rewards.values

    def score(self, scenarios: Iterable[Scenario], rollouts: Iterable[States]) -> Rewards:
        """The rewards with all that is worth logging; arguments and errors as in a plain call."""
        return self._timed(*_batch(scenarios, rollouts))

    def submit(self, scenarios: Iterable[Scenario], rollouts: Iterable[States]) -> Future[Rewards]:
        """The same, computed in the background while the caller goes on.

        Arguments that cannot be read are refused at once, other errors when the result is asked
        for. Batches are computed in the order in which they come. Arrays that need no copy are
        read later: do not write into them before the result is there.
        """
        return kept_threads(1, "rewards").submit(self._timed, *_batch(scenarios, rollouts))

    def _timed(self, scenarios: list[Scenario], rollouts: list[Rollouts]) -> Rewards:
        began = perf_counter()
        return replace(self._score(scenarios, rollouts), seconds=perf_counter() - began)

    @abstractmethod
    def _score(self, scenarios: list[Scenario], rollouts: list[Rollouts]) -> Rewards:
        """Score rollouts that are known to be as many for each scene."""


class Measure(Protocol):
    """What a set of rollouts is worth; greater is better.

    All methods get what is known of the log and of R rollouts, see `LoggedCounts` and `Evidence`.
    """

    def values(self, logged: LoggedCounts, evidence: Evidence, subsets: Subsets) -> Float64Array:
        """float64 [K], a value a set: K is 1 for `all`, R for `others` and `alone`."""

    def agent_credit(self, logged: LoggedCounts, evidence: Evidence) -> Float64Array:
        """float64 [R, E], the leave-one-out credit of each rollout divided among its agents."""


class SceneReward(Reward):
    """A measure of a scene's rollouts, shared among them.

    Scenes are prepared once and kept, so that the next call on a scene pays only for its rollouts.
    """

    def __init__(
        self,
        measure: Measure,
        challenge: str | Challenge = "2025",
        credit: Credit = "group",
        workers: int | None = None,
        cache_size: int = DEFAULT_CACHE_SIZE,
    ) -> None:
        """Make a reward.

        Args:
            measure: what a set of rollouts is worth.
            challenge: the version of the metric that the features are of.
            credit: how it is shared, see the module. `leave_one_out` and `agent` take at least
                two rollouts a scene.
            workers: threads; by default as many as there are CPUs. Results do not depend on it.
            cache_size: how many scenes are kept prepared, those used last.

        Raises:
            WosacError: an unknown challenge or credit, a number out of range, or the displacement
                in Scenario Generation, which has none.
        """
        if credit not in CREDITS:
            raise WosacError(f"unknown credit {credit!r}", mend=f"one of {', '.join(CREDITS)}")
        if workers is not None and workers < 1:
            raise WosacError(f"workers must be at least 1, not {workers}")
        if cache_size < 0:
            raise WosacError(f"cache_size must not be negative, but is {cache_size}")
        self.measure = measure
        self.challenge = get_challenge(challenge)
        if self.challenge.whole_record and isinstance(measure, MinDisplacement):
            raise WosacError(
                f"in {self.challenge.name} the displacement from the log is 0, whatever happens",
                mend="choose another reward",
            )
        self.credit = credit
        self.workers = n_cpus() if workers is None else workers
        self._prepared = _PreparedScenes(self.challenge, cache_size)

    def _score(self, scenarios: list[Scenario], rollouts: list[Rollouts]) -> Rewards:
        for each in rollouts:
            if each.n_rollouts < 2 and self.credit in ("leave_one_out", "agent"):
                raise RolloutsError(
                    "a single rollout cannot be left out",
                    where=f"scenario {each.scenario_id}",
                    mend="give at least two rollouts, or use the credit group or single",
                )
        # The costliest first, so that no thread is left with one when the others are done.
        order = sorted(range(len(scenarios)), key=lambda s: -rollouts[s].states.size)
        threads = max(1, self.workers // max(1, len(scenarios)))

        def score_scene(s: int) -> _SceneResult:
            return self._score_scene(scenarios[s], rollouts[s], threads)

        if min(self.workers, len(scenarios)) > 1:
            scored = list(kept_threads(self.workers, "scenes").map(score_scene, order))
        else:
            scored = list(map(score_scene, order))
        results = [scored[i] for i in np.argsort(order)]
        return Rewards(
            values=_stack([result.values for result in results], rollouts, self.credit),
            set_values=np.array([result.set_value for result in results], np.float64),
            scores=tuple(result.score for result in results),
            object_ids=tuple(result.object_ids for result in results),
            unscorable={
                scenario.scenario_id: result.why_not
                for scenario, result in zip(scenarios, results, strict=True)
                if result.why_not
            },
        )

    def _score_scene(self, scenario: Scenario, rollouts: Rollouts, threads: int) -> _SceneResult:
        prepared = self._prepared.get(scenario)
        if isinstance(prepared, str):
            return replace(_NO_RESULT, why_not=prepared)
        scene, logged = prepared
        evidence = gather_evidence(scene, logged, rollouts, threads)
        score = score_evidence(scene, logged, evidence)
        whole = float(self.measure.values(logged, evidence, "all")[0])
        if not isfinite(whole):
            reasons = score.non_finite()
            reasons.pop("metametric", None)
            told = "; ".join(f"{field}: {why}" for field, why in reasons.items())
            return replace(_NO_RESULT, score=score, why_not=told or "the reward is not a number")
        match self.credit:
            case "group":
                values = np.full(rollouts.n_rollouts, whole)
            case "single":
                values = self.measure.values(logged, evidence, "alone")
            case "leave_one_out":
                others = self.measure.values(logged, evidence, "others")
                values = others.mean() - others
            case "agent":
                values = self.measure.agent_credit(logged, evidence)
        return _SceneResult(values, whole, score, score.agents.object_ids)


class MetaScoreReward(SceneReward):
    """The realism meta-metric, or another mixture of its components, as a reward."""

    def __init__(
        self,
        challenge: str | Challenge = "2025",
        credit: Credit = "group",
        weights: Mapping[str, float] | None = None,
        workers: int | None = None,
        cache_size: int = DEFAULT_CACHE_SIZE,
    ) -> None:
        """Make a reward; see also `SceneReward`.

        Args:
            challenge: the version of the metric.
            credit: how the score of the rollouts is shared, see the module.
            weights: component (`collision_indication`, ...) -> weight, 0 for those not named;
                divided by their sum, so that a reward stays between 0 and 1. By default those of
                the challenge. A component of weight 0 need not be defined in a scene.
            workers: threads; by default as many as there are CPUs.
            cache_size: how many scenes are kept prepared.

        Raises:
            WosacError: an unknown challenge, credit or component, weights that are negative or all
                zero, or a number out of range.
        """
        components = get_challenge(challenge).components
        if weights is not None:
            components = _reweighted(components, weights)
        super().__init__(Likelihoods(components), challenge, credit, workers, cache_size)


def _reweighted(
    components: Sequence[Component], weights: Mapping[str, float]
) -> tuple[Component, ...]:
    known = [c.name for c in components]
    for name, weight in weights.items():
        if name not in known:
            raise WosacError(f"unknown component {name!r}", mend=f"one of {', '.join(known)}")
        if not (isfinite(weight) and weight >= 0):
            raise WosacError(f"the weight of {name} must not be negative, but is {weight}")
    total = sum(weights.values())
    if total == 0:
        raise WosacError("all weights are zero", mend=f"weigh one of {', '.join(known)}")
    return tuple(
        replace(c, weight=weights[c.name] / total) for c in components if weights.get(c.name, 0) > 0
    )


# Measures

_SUMS = {"all": log_likelihood_sums, "others": leave_one_out_sums, "alone": alone_sums}


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """The weighted sum of the likelihoods of `components`."""

    components: tuple[Component, ...]

    def values(self, logged: LoggedCounts, evidence: Evidence, subsets: Subsets) -> Float64Array:
        """See `Measure`."""
        total: Float64Array = sum(
            (
                c.weight * likelihood(_sums(c, logged, evidence, subsets), logged.counts[c.name])
                for c in self.components
            ),
            start=np.zeros(1),
        )
        return total

    def agent_credit(self, logged: LoggedCounts, evidence: Evidence) -> Float64Array:
        """See `Measure`; the equation stands at the top of the module."""
        credit = np.zeros_like(evidence.displacement, dtype=np.float64)
        for c in self.components:
            shares = _sums(c, logged, evidence, "others") / logged.counts[c.name].sum()
            secant = _logarithmic_means(shares.sum(axis=1))
            credit += c.weight * (secant @ shares - secant.sum(axis=1)[:, None] * shares)
        return credit / len(credit)


def _sums(
    component: Component, logged: LoggedCounts, evidence: Evidence, subsets: Subsets
) -> Float64Array:
    """Log-likelihoods summed over each agent's steps, [K, E]."""
    name = component.name
    sums = _SUMS[subsets](evidence.tallies[name], logged.counts[name], component.estimator)
    return np.atleast_2d(sums)


def _logarithmic_means(logarithms: Float64Array) -> Float64Array:
    """l(a_i, a_j) [R, R] of numbers given by their logarithms [R], also where they are equal."""
    half = (logarithms[:, None] - logarithms) / 2
    # (a - b) / (ln a - ln b) = sqrt(a b) sinh(h) / h with h half the difference of logarithms.
    ratio = np.divide(np.sinh(half), half, out=np.ones_like(half), where=half != 0)
    result: Float64Array = np.exp((logarithms[:, None] + logarithms) / 2) * ratio
    return result


@dataclass(frozen=True, slots=True)
class MinDisplacement:
    """Minus the smallest average displacement error of a rollout, in metres."""

    def values(self, logged: LoggedCounts, evidence: Evidence, subsets: Subsets) -> Float64Array:
        """See `Measure`."""
        errors = evidence.rollout_displacement()
        if subsets == "alone":
            return -errors
        if subsets == "all":
            return np.array([-errors.min()])
        result: Float64Array = -errors[_best_of_others(errors)]
        return result

    def agent_credit(self, logged: LoggedCounts, evidence: Evidence) -> Float64Array:
        """See `Measure`; sums to the credit up to the rounding of float32 means over agents."""
        errors = evidence.displacement.astype(np.float64)
        others = -errors[_best_of_others(evidence.rollout_displacement())] / errors.shape[1]
        result: Float64Array = others.mean(axis=0) - others
        return result


def _best_of_others(errors: Float64Array) -> Int64Array:
    """For each rollout the one of least error among the others."""
    best, second = np.argsort(errors, kind="stable")[:2]
    result: Int64Array = np.where(np.arange(len(errors)) == best, second, best)
    return result


@dataclass(frozen=True, slots=True)
class Free:
    """The share of rollouts and evaluated agents to which something never happens.

    Attributes:
        of: `collided` or `offroad`, at any step at which the log is valid.
    """

    of: Literal["collided", "offroad"]

    def values(self, logged: LoggedCounts, evidence: Evidence, subsets: Subsets) -> Float64Array:
        """See `Measure`."""
        free: Float64Array = self._free(evidence).mean(axis=1)
        if subsets == "alone":
            return free
        return np.array([free.mean()]) if subsets == "all" else _means_of_others(free)

    def agent_credit(self, logged: LoggedCounts, evidence: Evidence) -> Float64Array:
        """See `Measure`."""
        others = _means_of_others(self._free(evidence))
        result: Float64Array = (others.mean(axis=0) - others) / others.shape[1]
        return result

    def _free(self, evidence: Evidence) -> Float64Array:
        happened = evidence.collided if self.of == "collided" else evidence.offroad
        return (~happened).astype(np.float64)


def _means_of_others(values: Float64Array) -> Float64Array:
    """Along the first axis, the mean of all but each one."""
    result: Float64Array = (values.sum(axis=0) - values) / (len(values) - 1)
    return result


# Names


def get_reward(name: str, **options: Any) -> Reward:
    """Make a reward from its name.

    Args:
        name: one of `REWARDS`; or `package.module:name` of your own: a function that, like a
            reward, takes a list of scenes and one of `Rollouts` and returns [S, R], or a class of
            such, which gets the options.
        options: what the reward takes; for those of `REWARDS` challenge, credit, workers and
            cache_size, and weights for `meta_score`.

    Raises:
        WosacError: an unknown name or option.
    """
    factory: Any
    if ":" in name:
        found = _load(name)
        factory = found if isinstance(found, type) else lambda: found
    elif name in REWARDS:
        factory = REWARDS[name]
    else:
        raise WosacError(
            f"unknown reward {name!r}",
            mend=f"one of {', '.join(REWARDS)}, or package.module:name of your own",
        )
    try:
        signature(factory).bind(**options)
    except TypeError as error:
        takes = ", ".join(signature(factory).parameters) or "none"
        raise WosacError(f"options of reward {name}: {error}", mend=f"it takes {takes}") from None
    made = factory(**options)
    if not callable(made):
        raise WosacError(f"reward {name} cannot be called", mend="name a function or a class")
    return made if isinstance(made, Reward) else _CallableReward(name, made)


def _load(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        raise WosacError(
            f"reward {path}: no module {error.name!r}", mend="is it installed, or on PYTHONPATH?"
        ) from None
    except (TypeError, ValueError):
        raise WosacError(f"{path!r} does not name a reward", mend="package.module:name") from None
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise WosacError(f"reward {path}: {module_name} has no {attribute!r}") from None
    return found


class _CallableReward(Reward):
    """A reward of someone else's, with nothing but its values."""

    def __init__(self, name: str, function: Callable[[Any, Any], npt.ArrayLike]) -> None:
        self._name, self._function = name, function

    def _score(self, scenarios: list[Scenario], rollouts: list[Rollouts]) -> Rewards:
        values = np.asarray(self._function(scenarios, rollouts), np.float64)
        shape = (len(scenarios), rollouts[0].n_rollouts if rollouts else 0)
        if values.shape[:2] != shape or values.ndim > 3:
            raise WosacError(
                f"reward {self._name} returned {list(values.shape)}",
                mend=f"for {shape[0]} scenes of {shape[1]} rollouts return {list(shape)}",
            )
        known = [np.isfinite(row).any() for row in values]
        return Rewards(
            values=values,
            set_values=np.array(
                [np.nanmean(row) if ok else nan for row, ok in zip(values, known, strict=True)]
            ),
            scores=(None,) * len(scenarios),
            object_ids=(np.zeros(0, np.int64),) * len(scenarios),
            unscorable={
                scenario.scenario_id: "the reward is not a number"
                for scenario, ok in zip(scenarios, known, strict=True)
                if not ok
            },
        )


def _part(
    name: str,
    challenge: str | Challenge = "2025",
    credit: Credit = "group",
    workers: int | None = None,
    cache_size: int = DEFAULT_CACHE_SIZE,
) -> MetaScoreReward:
    """The reward of one component of the metric, or of one bucket of them."""
    components = get_challenge(challenge).components
    weights = {c.name: c.weight for c in components if name in (c.name, c.bucket)}
    if not weights:
        raise WosacError(f"challenge {get_challenge(challenge).name} has no component {name!r}")
    return MetaScoreReward(challenge, credit, weights, workers, cache_size)


REWARDS: dict[str, Callable[..., Reward]] = {
    "meta_score": MetaScoreReward,
    **{bucket: partial(_part, bucket) for bucket in ("kinematic", "interactive", "map_based")},
    "collision_free": partial(SceneReward, Free("collided")),
    "on_road": partial(SceneReward, Free("offroad")),
    "min_ade": partial(SceneReward, MinDisplacement()),
    **{component: partial(_part, component) for component in COMPONENTS},
}
"""Name -> what makes the reward: the metric, its buckets and its components (all likelihoods), the
shares of agents that never collide or never leave the road, and minus the minADE."""


# Batches and scenes


def _batch(
    scenarios: Iterable[Scenario], rollouts: Iterable[States]
) -> tuple[list[Scenario], list[Rollouts]]:
    """Lists of equal length, all rollouts as `Rollouts`, as many for each scene."""
    scenarios, states = list(scenarios), list(rollouts)
    if len(scenarios) != len(states):
        raise RolloutsError(f"rollouts of {len(states)} scenes for {len(scenarios)} scenes")
    given = [_rollouts(*pair) for pair in zip(scenarios, states, strict=True)]
    for each in given[1:]:
        if each.n_rollouts != given[0].n_rollouts:
            raise RolloutsError(
                f"{each.n_rollouts} rollouts, but {given[0].n_rollouts} of scenario "
                f"{given[0].scenario_id}",
                where=f"scenario {each.scenario_id}",
                mend="give all scenes of a batch the same number",
            )
    return scenarios, given


def _rollouts(scenario: Scenario, states: States) -> Rollouts:
    if isinstance(states, Rollouts):
        return states
    where = f"scenario {scenario.scenario_id}"
    device = getattr(states, "device", None)
    # Known by what they say of themselves: torch is not imported here.
    if getattr(device, "type", "cpu") != "cpu":
        raise RolloutsError(f"the states are on {device}", where=where, mend="pass `states.cpu()`")
    if getattr(states, "requires_grad", False):
        raise RolloutsError(
            "the states carry gradients, which the metric has none of",
            where=where,
            mend="pass `states.detach()`",
        )
    try:
        array = np.asarray(states)
    except (TypeError, ValueError) as error:
        raise RolloutsError(
            f"the states cannot be read as an array: {error}",
            where=where,
            mend="pass float32, of torch `states.float()`",
        ) from None
    return Rollouts(scenario.scenario_id, scenario.tracks.object_ids[scenario.sim_agents()], array)


@dataclass(frozen=True, eq=False, slots=True)
class _SceneResult:
    """The part of `Rewards` that one scene has; `values` is None where it has no reward."""

    values: Float64Array | None
    set_value: float
    score: ScenarioScore | None
    object_ids: Int64Array
    why_not: str = ""


_NO_RESULT = _SceneResult(None, nan, None, np.zeros(0, np.int64))


def _stack(
    rows: Sequence[Float64Array | None], rollouts: Sequence[Rollouts], credit: Credit
) -> Float64Array:
    """[S, R] or [S, R, A] from the values of each scene, [R] or [R, E], NaN where there is none."""
    n_rollouts = rollouts[0].n_rollouts if rollouts else 0
    shape: tuple[int, ...] = (len(rows), n_rollouts)
    if credit == "agent":
        shape += (max((row.shape[1] for row in rows if row is not None), default=0),)
    values = np.full(shape, nan)
    for s, row in enumerate(rows):
        if row is not None:
            values[s][tuple(map(slice, row.shape))] = row
    return values


class _PreparedScenes:
    """Scenes made ready for scoring, by scenario id; those used last are kept.

    A scene that comes again as another object is compared with the one that was prepared, so that
    a changed scene under the same id gets its own reward. What cannot be scored is remembered too.
    """

    def __init__(self, challenge: Challenge, size: int) -> None:
        self._challenge, self._size = challenge, size
        self._entries: OrderedDict[str, tuple[Scenario, _Prepared | str]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, scenario: Scenario) -> _Prepared | str:
        """The scene and the counts of its log; or why it cannot be scored."""
        with self._lock:
            entry = self._entries.get(scenario.scenario_id)
        if entry is None or not _same(entry[0], scenario):
            entry = scenario, self._prepare(scenario)
        with self._lock:
            self._entries[scenario.scenario_id] = entry
            self._entries.move_to_end(scenario.scenario_id)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        return entry[1]

    def _prepare(self, scenario: Scenario) -> _Prepared | str:
        try:
            scene = prepare_scene(scenario, self._challenge)
        except ScenarioError as error:
            return error.what
        return scene, count_log(logged_features(scene), scene.challenge)


_Prepared = tuple[PreparedScene, LoggedCounts]


def _same(a: Any, b: Any) -> bool:
    """Whether two scenes, or parts of them, hold the same."""
    if a is b:
        return True
    if is_dataclass(a):
        return all(_same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(np.array_equal(a, b))
