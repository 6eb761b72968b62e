"""What a report shows of single scenes: their features and pictures, from rollouts and scenes.

Both are read from where they were when the runs were scored. They may be gone, and a run of
`smart-r1 evaluate` never wrote its rollouts: the report then says so, and has the rest.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wosac_toolkit.challenge import Bernoulli, Challenge, Histogram
from wosac_toolkit.compare import HEADLINE, Model
from wosac_toolkit.errors import WosacError
from wosac_toolkit.explain import Event, explain_scenario, load_scenes
from wosac_toolkit.features import logged_features, prepare_scene, simulated_features
from wosac_toolkit.likelihood import PER_STEP, LoggedCounts, count_log, indications
from wosac_toolkit.results import BUCKET_SOURCES, Run
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Float32Array, Int64Array, Scenario
from wosac_toolkit.scoring import hash_files

_PICTURE_SIZE = (480, 320)
_PICTURE_SCALE = 2.0
_PICTURE_BYTES = 1_500_000
_SCORE_DIFFERS = 1e-6


# --------------------------------------------------------------------------------------------------
# Simulated against logged features


@dataclass(frozen=True, slots=True)
class FeatureHistogram:
    """A feature in the bins of the metric, over the agents and steps that the log is scored at.

    Attributes:
        component: name of the component.
        edges: of the bins; the outermost also hold what lies outside.
        logged: share of the logged steps in each bin.
        simulated: name of a model -> the same of its rollouts.
    """

    component: str
    edges: tuple[float, ...]
    logged: tuple[float, ...]
    simulated: Mapping[str, tuple[float, ...]]

    def distance(self, model: str) -> float:
        """Total variation: the share of a model's steps that is in other bins than the log's."""
        pairs = zip(self.logged, self.simulated[model], strict=True)
        return sum(abs(a - b) for a, b in pairs) / 2


@dataclass(frozen=True, slots=True)
class FeatureRate:
    """How often something happens to an evaluated agent within the simulation.

    Attributes:
        component: name of the component.
        logged: share of the agents in the log.
        simulated: name of a model -> share of its agents in its rollouts.
    """

    component: str
    logged: float
    simulated: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SimulatedFeatures:
    """The features of a sample of scenes, logged and simulated.

    Attributes:
        scenario_ids: the scenes, sorted; none where no model has rollouts.
        n_scenes: that the sample was drawn from.
        models: whose rollouts were read, in order.
        absent: name of a model -> why its rollouts were not.
        histograms: of the components that are one.
        rates: of the others.
    """

    scenario_ids: tuple[str, ...]
    n_scenes: int
    models: tuple[str, ...]
    absent: Mapping[str, str]
    histograms: tuple[FeatureHistogram, ...]
    rates: tuple[FeatureRate, ...]


# --------------------------------------------------------------------------------------------------
# Single scenes


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a scene: a PNG of so many pixels."""

    content: bytes
    width: int
    height: int


@dataclass(frozen=True, eq=False, slots=True)
class SceneFinding:
    """What the rollouts of a scene show.

    Attributes:
        replay: what the log itself scores, as often as there are rollouts.
        n_rollouts: of the scene.
        events: kind of event -> in how many rollouts it happens to an evaluated agent.
        picture: None where the report would become too large.
        description: of the picture.
        remark: where the score is no longer that of the run.
    """

    replay: float
    n_rollouts: int
    events: Mapping[str, int]
    picture: Picture | None
    description: str
    remark: str


@dataclass(frozen=True, eq=False, slots=True)
class SceneFindings:
    """What was found in scenes of a model.

    Attributes:
        scenes: scenario id -> its finding.
        absent: why others have none; empty where all have.
    """

    scenes: Mapping[str, SceneFinding]
    absent: str


@dataclass(frozen=True, eq=False, slots=True)
class Wanted:
    """What is asked of the scenes of one model.

    Attributes:
        model: the first of its runs is looked at.
        sample: scenes whose features are compared.
        worst: scenes that are drawn.
    """

    model: Model
    sample: Sequence[str]
    worst: Sequence[str]

    @property
    def scenario_ids(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys([*self.sample, *self.worst]))


def choose_sample(models: Sequence[Model], n: int, seed: int) -> tuple[list[str], int]:
    """Scenes that all models have and whose score is finite, drawn without replacement.

    Returns:
        At most `n` ids, sorted, and how many they were drawn from.
    """
    common: set[str] | None = None
    for model in models:
        run = model.runs[0]
        finite = np.isfinite(run.scores[BUCKET_SOURCES[HEADLINE]].to_numpy(np.float64))
        ids = set(run.scores["scenario_id"][finite])
        common = ids if common is None else common & ids
    order = sorted(common or ())
    drawn = np.random.default_rng([seed, 1]).permutation(len(order))[:n]
    return sorted(order[k] for k in drawn.tolist()), len(order)


def look_at_scenes(
    wanted: Sequence[Wanted],
    challenge: Challenge,
    *,
    n_scenes: int,
    scenarios: str | None = None,
    count: Callable[[], object] = lambda: None,
) -> tuple[SimulatedFeatures, dict[str, SceneFindings]]:
    """Compare features in the sampled scenes, and look at the worst ones.

    Scenes of Scenario Generation are not looked at one by one, see `explain_scenario`.

    Args:
        wanted: a model each; all of them have the same sample.
        challenge: version of the metric of all of them.
        n_scenes: that the sample was drawn from.
        scenarios: where the scenes are now, if they were moved.
        count: called after each scene.

    Returns:
        The features, and name of a model -> what was found in its worst scenes.
    """
    tallies: dict[str, _Tally] = {}
    absent: dict[str, str] = {}
    findings: dict[str, SceneFindings] = {}
    room = _PICTURE_BYTES
    for want in wanted:
        name, run = want.model.name, want.model.runs[0]
        tally, scenes, why = _Tally(challenge), {}, ""
        looked_at = replace(want, worst=()) if challenge.whole_record else want
        try:
            for scenario, rollouts in _load(run, looked_at.scenario_ids, scenarios):
                if scenario.scenario_id in want.sample:
                    tally.add(scenario, rollouts)
                if scenario.scenario_id in looked_at.worst:
                    found = _look(run, scenario, rollouts, challenge, room)
                    room -= len(found.picture.content) if found.picture else 0
                    scenes[scenario.scenario_id] = found
                count()
        except (WosacError, OSError) as error:
            why = str(error)
        if why and tally.n_scenes < len(want.sample):
            absent[name] = why
        elif tally.n_scenes:
            tallies[name] = tally
        if challenge.whole_record:
            why = why or f"single scenes of {challenge.name} are not explained"
        findings[name] = SceneFindings(scenes, why if len(scenes) < len(want.worst) else "")
    return _features(tallies, absent, challenge, wanted[0].sample, n_scenes), findings


def _load(
    run: Run, scenario_ids: Sequence[str], scenarios: str | None
) -> Iterator[tuple[Scenario, Rollouts]]:
    """Scenes and their rollouts, where they still are and are those that were scored."""
    from wosac_toolkit.io.rollouts import rollout_files

    request = run.summary.request
    if not scenario_ids:
        return
    # `smart-r1 evaluate` scores what it simulates, and names the policy in place of a path.
    if not request.rollouts_files or not os.path.exists(request.rollouts):
        kept = "the run kept no rollouts" if not request.rollouts_files else "they are gone"
        raise WosacError(f"{kept} ({request.rollouts})")
    if hash_files(rollout_files(request.rollouts)) != request.rollouts_files:
        raise WosacError("they have changed since they were scored", where=request.rollouts)
    yield from load_scenes(run, scenario_ids, scenarios=scenarios)


class _Tally:
    """Counts of a model's features, added up over scenes."""

    def __init__(self, challenge: Challenge) -> None:
        self.challenge = challenge
        self.n_scenes = 0
        self.logged: dict[str, Int64Array] = {}
        self.simulated: dict[str, Int64Array] = {}

    def add(self, scenario: Scenario, rollouts: Rollouts) -> None:
        scene = prepare_scene(scenario, self.challenge)
        log = count_log(logged_features(scene), self.challenge)
        features = simulated_features(scene, rollouts)
        for component in self.challenge.components:
            name, estimator = component.name, component.estimator
            if isinstance(estimator, Histogram):
                logged = log.counts[name].sum(axis=0)
                simulated = _binned(getattr(features, name), log, name, estimator)
            elif isinstance(estimator, Bernoulli):
                logged = log.counts[name].sum(axis=0)
                happened = indications(getattr(features, PER_STEP[name]), log.steps[name])
                simulated = np.array([(~happened).sum(), happened.sum()])
            else:
                continue
            self.logged[name] = self.logged.get(name, 0) + logged
            self.simulated[name] = self.simulated.get(name, 0) + simulated
        self.n_scenes += 1


def _binned(values: Float32Array, log: LoggedCounts, name: str, estimator: Histogram) -> Int64Array:
    """How many simulated values [R, E, T] are in each bin, at the steps the log is scored at."""
    scored = values[np.broadcast_to(log.steps[name], values.shape)]
    edges = estimator.edges()
    inside = np.searchsorted(edges[1:-1], scored, side="right")
    return np.bincount(inside, minlength=estimator.n_bins).astype(np.int64)


def _features(
    tallies: Mapping[str, _Tally],
    absent: Mapping[str, str],
    challenge: Challenge,
    sample: Sequence[str],
    n_scenes: int,
) -> SimulatedFeatures:
    histograms, rates = [], []
    for component in challenge.components:
        name = component.name
        counted = {model: tally for model, tally in tallies.items() if name in tally.logged}
        if not counted or not any(tally.logged[name].sum() for tally in counted.values()):
            continue
        # The log is the same for all models.
        logged = _shares(next(iter(counted.values())).logged[name])
        simulated = {model: _shares(tally.simulated[name]) for model, tally in counted.items()}
        if isinstance(component.estimator, Histogram):
            edges = tuple(component.estimator.edges().astype(float).tolist())
            histograms.append(FeatureHistogram(name, edges, logged, simulated))
        else:
            share = {model: values[1] for model, values in simulated.items()}
            rates.append(FeatureRate(name, logged[1], share))
    return SimulatedFeatures(
        scenario_ids=tuple(sample) if tallies else (),
        n_scenes=n_scenes,
        models=tuple(tallies),
        absent=absent,
        histograms=tuple(histograms),
        rates=tuple(rates),
    )


def _shares(counts: Int64Array) -> tuple[float, ...]:
    return tuple((counts / counts.sum()).tolist())


# --------------------------------------------------------------------------------------------------
# Pictures


EVENT_NAMES = {
    "collision": "collisions",
    "offroad": "leaving the road",
    "red_light": "running red lights",
}


def _look(
    run: Run, scenario: Scenario, rollouts: Rollouts, challenge: Challenge, room: int
) -> SceneFinding:
    from wosac_toolkit.render import draw_scene

    explanation = explain_scenario(scenario, rollouts, challenge)
    events = {
        kind: len({e.rollout for e in explanation.events if e.kind == kind}) for kind in EVENT_NAMES
    }
    width, height = _PICTURE_SIZE
    picture = _small(
        draw_scene(
            scenario,
            rollouts,
            events=_once_each(explanation.events),
            title=" ",
            width=width,
            height=height,
            scale=_PICTURE_SCALE,
            legend=False,
        )
    )
    row = run.scores["scenario_id"] == scenario.scenario_id
    scored = float(run.scores.loc[row, "metametric"].iloc[0])
    now = explanation.score.metametric
    happened = [f"{EVENT_NAMES[kind]} in {n}" for kind, n in events.items() if n]
    return SceneFinding(
        replay=explanation.replay.metametric,
        n_rollouts=rollouts.n_rollouts,
        events=events,
        picture=picture if len(picture.content) <= room else None,
        description=(
            f"Scene {scenario.scenario_id} from above at the end of {rollouts.n_rollouts} "
            f"rollouts: the {len(explanation.object_ids)} evaluated agents and those around them, "
            f"logged (dashed) and simulated (blue)"
            + (f"; marked are {', '.join(happened)} of the rollouts" if happened else "")
        ),
        remark=f"it scores {now:.4f} today" if abs(now - scored) > _SCORE_DIFFERS else "",
    )


def _once_each(events: Sequence[Event]) -> list[Event]:
    """The first event of each kind, agent and partner: 32 rollouts would hide all else."""
    return list({(e.kind, e.object_id, e.partner_id): e for e in reversed(events)}.values())


def _small(png: bytes) -> Picture:
    """The same picture without its white border, in fewer bytes: it has flat colours."""
    from PIL import Image, ImageChops

    with Image.open(io.BytesIO(png)) as image:
        whole = image.convert("RGB")
    white = Image.new("RGB", whole.size, "white")
    drawn = whole.crop(ImageChops.difference(whole, white).getbbox())
    stream = io.BytesIO()
    drawn.quantize(128, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return Picture(stream.getvalue(), *drawn.size)
