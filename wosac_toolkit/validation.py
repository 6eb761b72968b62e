"""What is wrong with the rollouts of a scene, told object by object.

The rules are those of `validate_scenario_rollouts` in
`waymo_open_dataset/utils/sim_agents/submission_specs.py` (rollout count, length, unknown and
missing objects), and five on which it is silent: the scenario id must be the scene's own, no
object may come twice, every value must be finite, a scene has at least one rollout, and scenario
generation gives every box a size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Int64Array, Scenario

_COORDINATES = ("x", "y", "z", "heading")
_SIZES = ("length", "width", "height")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with an input.

    Attributes:
        code: what kind of thing, for machines: `wrong_scenario`, `rollout_count`, `step_count`,
            `unknown_object`, `missing_object`, `duplicate_object`, `non_finite`, `no_sizes` or
            `bad_size` from `check_rollouts`; further ones from `wosac_toolkit.scoring`.
        what: the same in plain words.
        scenario_id: the scene it is about.
        rollout: index of the rollout, None where it is about all of them.
        object_id: the object, None where it is about the scene.
        file: the file that holds it, empty where unknown.
    """

    code: str
    what: str
    scenario_id: str
    rollout: int | None = None
    object_id: int | None = None
    file: str = ""

    def __str__(self) -> str:
        """One line: file, scenario, rollout, object, what."""
        places = [
            self.file,
            f"scenario {self.scenario_id}" if self.scenario_id else "",
            "" if self.rollout is None else f"rollout {self.rollout}",
            "" if self.object_id is None else f"object {self.object_id}",
        ]
        return ": ".join([place for place in places if place] + [self.what])


def check_rollouts(
    scenario: Scenario | None,
    rollouts: Rollouts,
    *,
    n_rollouts: int | None = 32,
    n_steps: int = 80,
    whole_record: bool = False,
    file: str = "",
) -> list[Finding]:
    """Everything that keeps `rollouts` from being scored against `scenario`.

    Args:
        scenario: the scene; None checks all but whether the objects are its own.
        rollouts: what a simulator made of it.
        n_rollouts: how many rollouts are expected; None takes any number but zero.
        n_steps: how many simulated steps are expected.
        whole_record: they are rollouts of the Scenario Generation challenge, which need sizes.
        file: where the rollouts come from, for the findings.

    Returns:
        The findings: about the scene, then about its objects by their ids; empty where all is
        well. Non-finite values are one finding an object, which names the first of them.
    """
    scenario_id = rollouts.scenario_id if scenario is None else scenario.scenario_id
    return [
        Finding(code, what, scenario_id, rollout, object_id, file)
        for code, what, rollout, object_id in (
            *_whole(scenario_id, rollouts, n_rollouts, n_steps, whole_record),
            *(() if scenario is None else _strangers(scenario, rollouts.object_ids)),
            *_repeated(rollouts.object_ids),
            *_values(rollouts),
            *(_sizes(rollouts) if whole_record else ()),
        )
    ]


_Row = tuple[str, str, int | None, int | None]


def _whole(
    scenario_id: str,
    rollouts: Rollouts,
    n_rollouts: int | None,
    n_steps: int,
    whole_record: bool,
) -> Iterator[_Row]:
    if rollouts.scenario_id != scenario_id:
        what = f"the rollouts are of another scenario, {rollouts.scenario_id!r}"
        yield "wrong_scenario", what, None, None
    if n_rollouts is not None and rollouts.n_rollouts != n_rollouts:
        what = f"{rollouts.n_rollouts} rollouts where {n_rollouts} are expected"
        yield "rollout_count", what, None, None
    elif rollouts.n_rollouts == 0:
        yield "rollout_count", "no rollouts", None, None
    if rollouts.n_steps != n_steps:
        what = f"{rollouts.n_steps} steps where {n_steps} are expected"
        if whole_record and rollouts.n_steps < n_steps:
            what += " (scenario generation simulates the whole record, its history too)"
        elif not whole_record and rollouts.sizes is not None:
            what += " (rollouts with sizes: of --challenge scenario_gen_2025?)"
        yield "step_count", what, None, None


def _strangers(scenario: Scenario, simulated: Int64Array) -> Iterator[_Row]:
    tracks, step = scenario.tracks, scenario.current_time_index
    expected = set(tracks.object_ids[scenario.sim_agents()].tolist())
    found = set(simulated.tolist())
    for object_id in sorted(found - expected):
        in_scene = object_id in tracks.object_ids
        what = f"must not be simulated, it is not valid at step {step}"
        yield "unknown_object", what if in_scene else "is not in the scene", None, object_id
    for object_id in sorted(expected - found):
        what = f"has no trajectory, but is valid at step {step} and so must be simulated"
        yield "missing_object", what, None, object_id


def _repeated(simulated: Int64Array) -> Iterator[_Row]:
    counts = Counter(simulated.tolist())
    for object_id in sorted(object_id for object_id, count in counts.items() if count > 1):
        yield "duplicate_object", f"comes {counts[object_id]} times", None, object_id


def _values(rollouts: Rollouts) -> Iterator[_Row]:
    finite = np.isfinite(rollouts.states)
    if finite.all():
        return
    bad = ~np.moveaxis(finite, 1, 0)
    for row in sorted(
        np.flatnonzero(bad.any(axis=(1, 2, 3))), key=lambda row: rollouts.object_ids[row]
    ):
        rollout, step, coordinate = (int(i) for i in np.argwhere(bad[row])[0])
        value = rollouts.states[rollout, row, step, coordinate]
        what = (
            f"{np.count_nonzero(bad[row])} of {bad[row].size} values are not finite, "
            f"the first: {_COORDINATES[coordinate]} is {value} at step {step}"
        )
        yield "non_finite", what, rollout, int(rollouts.object_ids[row])


def _sizes(rollouts: Rollouts) -> Iterator[_Row]:
    if rollouts.sizes is None:
        what = (
            "no sizes, or not one for every step of every object: scenario generation simulates "
            "length, width and height"
        )
        yield "no_sizes", what, None, None
        return
    bad = ~(np.isfinite(rollouts.sizes) & (rollouts.sizes >= 0))
    for row in np.flatnonzero(bad.any(axis=(0, 2, 3))):
        rollout, step, axis = (int(i) for i in np.argwhere(bad[:, row])[0])
        value = rollouts.sizes[rollout, row, step, axis]
        what = (
            f"{np.count_nonzero(bad[:, row])} of {bad[:, row].size} sizes are negative or not "
            f"finite, the first: {_SIZES[axis]} is {value} at step {step}"
        )
        yield "bad_size", what, rollout, int(rollouts.object_ids[row])
