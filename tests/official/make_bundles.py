"""Write the inputs that the official packages score for us: synthetic scenes and rollouts of them.

`scenes.tfrecord.gz` and `<name>.npz` are kept in the repository, for a generator may change and
NumPy's sines differ in their last bit between processors. Each bundle is there for something that
a scorer can get wrong.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np

from wosac_toolkit.baselines import simulate_baseline
from wosac_toolkit.io.scenario_proto import encode_scenario
from wosac_toolkit.io.tfrecord import write_record
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import ObjectType, Scenario
from wosac_toolkit.synthetic import generate_scenario

HERE = Path(__file__).parent
SEED = 7
N_AGENTS = 16
N_ROLLOUTS = 3


def with_fewer_tracks(scenario: Scenario) -> Scenario:
    """The evaluated agents and the first others, so that the files stay small."""
    evaluated = scenario.evaluated_agents()
    others = np.setdiff1d(scenario.sim_agents(), evaluated)
    rows = np.sort(np.concatenate([evaluated, others[: N_AGENTS - len(evaluated)]]))
    tracks = scenario.tracks
    return replace(
        scenario,
        tracks=replace(
            tracks,
            **{name: getattr(tracks, name)[rows] for name in tracks.__dataclass_fields__},
        ),
        sdc_track_index=int(np.searchsorted(rows, scenario.sdc_track_index)),
        tracks_to_predict=np.searchsorted(rows, scenario.tracks_to_predict),
    )


def without_vehicles(scenario: Scenario) -> Scenario:
    """The same scene with cyclists for vehicles: no time to collision is defined."""
    tracks = scenario.tracks
    types = np.where(tracks.object_types == ObjectType.VEHICLE, ObjectType.CYCLIST, 0)
    types = np.where(types, types, tracks.object_types).astype(np.int8)
    return replace(scenario, scenario_id="0" * 16, tracks=replace(tracks, object_types=types))


def with_turned_headings(rollouts: Rollouts) -> Rollouts:
    """Every other agent's heading a full turn on, as WOMD's own headings are not wrapped."""
    states = rollouts.states.copy()
    states[:, ::2, :, 3] += np.float32(2 * np.pi)
    return replace(rollouts, states=states)


def jostled(rollouts: Rollouts) -> Rollouts:
    """Random walks: collisions, agents off the road, accelerations beyond the histograms."""
    rng = np.random.default_rng(SEED)
    steps = rng.normal(0, [0.3, 0.3, 0.02, 0.1], rollouts.states.shape)
    return replace(rollouts, states=rollouts.states + steps.cumsum(axis=2))


def bundles() -> dict[str, tuple[Scenario, Rollouts]]:
    """Name -> scene and rollouts."""

    def scene(index: int) -> Scenario:
        return with_fewer_tracks(generate_scenario(SEED, index))

    def simulate(scenario: Scenario, policy: str) -> Rollouts:
        return simulate_baseline(scenario, policy, N_ROLLOUTS, SEED)

    plain, signals, bridge, types = map(scene, (26, 37, 27, 17))  # the last is 16 km off
    cyclists = without_vehicles(plain)
    return {
        "plain_log": (plain, simulate(plain, "log")),
        "cyclists_only": (cyclists, simulate(cyclists, "constant_velocity")),
        "red_lights": (signals, simulate(signals, "constant_velocity")),
        "turned_headings": (signals, with_turned_headings(simulate(signals, "constant_turn_rate"))),
        "all_types_jostled": (types, jostled(simulate(types, "log"))),
        "bridge": (bridge, simulate(bridge, "constant_turn_rate")),
    }


def main() -> None:
    scenes = {}
    for name, (scenario, rollouts) in bundles().items():
        scenes[scenario.scenario_id] = scenario
        np.savez_compressed(
            HERE / f"{name}.npz",
            scenario_id=scenario.scenario_id,
            object_ids=rollouts.object_ids,
            states=rollouts.states,
        )
    # No time of writing in the header, so that the same scenes give the same bytes.
    with (
        (HERE / "scenes.tfrecord.gz").open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as stream,
    ):
        for scenario in scenes.values():
            write_record(stream, encode_scenario(scenario))


if __name__ == "__main__":
    main()
