"""What is wrong with the rollouts of one scene of a submission.

`check_rollouts` has the rules of the official `validate_scenario_rollouts`; here are joint scenes
that do not agree with each other, and values that no simulator can have meant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from wosac_toolkit.challenge import CHALLENGES, Challenge
from wosac_toolkit.errors import some_ids
from wosac_toolkit.io.submission import Misfit
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Float32Array, Int64Array, Scenario
from wosac_toolkit.validation import Finding, check_rollouts

MAX_STEP_METRES = 20.0
"""Between two steps of 0.1 s; 720 km/h. The longest in logged futures of WOMD, where an object
that was not seen for a while is held and then goes on, is 16 m."""

MAX_STEP_HEIGHT = 2.0
"""Metres of height between two steps; 0.3 m in logged futures. A simulator in the plane that
writes z = 0 is told here, unless the road lies at 0."""

MAX_HEIGHT = 25.0
"""Metres above or below the height at the current step; 2.7 m in logged futures."""

MAX_DISTANCE = 1000.0
"""Metres from the place at the current step, 450 km/h for 8 s; 200 m in logged futures. Beyond,
positions are in another frame than the scene's, and the score is about nothing."""

MAX_HEADING = 25.0
"""Radians, four turns; 10.2 in logged futures. Headings need not be wrapped, but 8 s do not
suffice for more, and degrees do."""

# rollout or None, object or None
_Row = tuple[str, str, int | None, int | None]


def check_scene(
    rollouts: Rollouts,
    scenario: Scenario | None,
    challenge: Challenge = CHALLENGES["2025"],
    *,
    misfits: Sequence[Misfit] = (),
    file: str = "",
) -> list[Finding]:
    """Everything that is wrong with the rollouts of one scene.

    Args:
        rollouts: of the objects that are alike in all joint scenes.
        scenario: the scene; None where there is none to compare with: then neither objects nor
            distances from their places at the current step are checked.
        challenge: whose rules they follow.
        misfits: the objects that are not alike in all joint scenes.
        file: where the rollouts come from, for the findings.

    Returns:
        The findings, at most some an object and kind: each names the first rollout that it is
        about and says how many there are.
    """
    odd = {misfit.object_id for misfit in misfits}
    found = [
        finding
        for finding in check_rollouts(
            scenario,
            rollouts,
            n_rollouts=challenge.n_rollouts,
            n_steps=challenge.n_steps,
            whole_record=challenge.whole_record,
            file=file,
        )
        # They have no place among the rollouts, but are not missing from all of them.
        if not (finding.code == "missing_object" and finding.object_id in odd)
        and not (finding.code in ("step_count", "no_sizes") and not len(rollouts.object_ids))
    ]
    expected = (
        None
        if scenario is None
        else set(scenario.tracks.object_ids[scenario.sim_agents()].tolist())
    )
    rows = [
        *_misfits(misfits, expected, rollouts.n_rollouts),
        *_implausible(rollouts, scenario, challenge),
        *_copies(rollouts),
    ]
    return found + [
        Finding(code, what, rollouts.scenario_id, rollout, object_id, file)
        for code, what, rollout, object_id in rows
    ]


_KINDS = {
    "repeated": ("duplicate_object", "comes more than once in"),
    "ragged": ("step_count", "center_x, center_y, center_z and heading differ in length in"),
    "other_length": ("step_count", "has another number of steps than the others in"),
    "unsized": ("no_sizes", "lacks length, width or height at some step of"),
}


def _misfits(
    misfits: Sequence[Misfit], expected: Collection[int] | None, n_rollouts: int
) -> Iterator[_Row]:
    """Objects that differ between joint scenes; unknown ones are only called that."""
    unknown: dict[int, tuple[int, ...]] = {}
    for object_id, kind, rollouts in misfits:
        listed = f"{len(rollouts)} of {n_rollouts} rollouts ({some_ids(rollouts)})"
        if expected is not None and object_id not in expected:
            unknown.setdefault(object_id, rollouts)
        elif kind == "absent":
            yield "missing_object", f"has no trajectory in {listed}", rollouts[0], object_id
        else:
            code, what = _KINDS[kind]
            yield code, f"{what} {listed}", rollouts[0], object_id
    for object_id in unknown:
        what = "must not be simulated, it is not valid at the current step; comes in some rollouts"
        yield "unknown_object", what, None, object_id


def _implausible(
    rollouts: Rollouts, scenario: Scenario | None, challenge: Challenge
) -> Iterator[_Row]:
    """Values that are finite, but that no simulator can have meant."""
    ids = rollouts.object_ids
    states = rollouts.states
    if not states.size:
        return
    # What is not finite is told by itself; NaN is above no limit. Values near the largest float
    # overflow to infinity, which is.
    with np.errstate(all="ignore"):
        heading: Float32Array = np.abs(states[..., 3]).max(axis=2)
        yield from _rows(
            "heading_range",
            np.isfinite(heading) & (heading > MAX_HEADING),
            ids,
            lambda r, i: (
                f"heading reaches {heading[r, i]:.4g} rad; are these degrees? The unit is radians"
            ),
        )
        position = states[..., :3]
        place, there = position[:, :, 0], "where it was at first"
        if scenario is not None:
            now, known = _now(scenario, ids)
            # Rows without a place of their own start where the simulation does.
            place = np.where(known[:, None], now, place).astype(np.float32)
            there = "its place at the current step"
        # Whole records begin where their simulator wants, if in the same part of the world.
        from_now = scenario is not None and not challenge.whole_record
        if from_now:
            position = np.concatenate([place[:, :, None], position], axis=2)
        offset = position - place[:, :, None]
        finite = np.isfinite(offset).all(axis=(2, 3))
        farthest = np.hypot(offset[..., 0], offset[..., 1]).max(axis=2)
        far = finite & ~(farthest <= MAX_DISTANCE)
        yield from _rows(
            "far_away",
            far,
            ids,
            lambda r, i: (
                f"is {farthest[r, i]:.4g} m away from {there}, "
                f"at most {MAX_DISTANCE:.0f} m can be; positions must be in the scene's frame"
            ),
        )
        yield from _steps(position, finite & ~far, ids, from_now)
        rise = np.abs(offset[..., 2]).max(axis=2)
        yield from _rows(
            "height",
            finite & ~far & ~(rise <= MAX_HEIGHT),
            ids,
            lambda r, i: f"is {rise[r, i]:.4g} m above or below {there}",
        )


def _steps(
    position: Float32Array, checked: npt.NDArray[np.bool_], ids: Int64Array, from_now: bool
) -> Iterator[_Row]:
    """Steps that are too long; the first leads from the current state where `from_now`."""
    if position.shape[2] < 2:
        return
    step = np.diff(position, axis=2)

    def between(at: int) -> str:
        if from_now:
            at -= 1
        return f"steps {at} and {at + 1}" if at >= 0 else "the current state and step 0"

    for code, length, limit, how in (
        ("jump", np.hypot(step[..., 0], step[..., 1]), MAX_STEP_METRES, "moves"),
        ("height_jump", np.abs(step[..., 2]), MAX_STEP_HEIGHT, "rises or falls"),
    ):
        at = length.argmax(axis=2)
        longest = length.max(axis=2)

        def what(
            r: int,
            i: int,
            how: str = how,
            at: npt.NDArray[np.intp] = at,
            longest: Float32Array = longest,
        ) -> str:
            return f"{how} {longest[r, i]:.4g} m in 0.1 s, between {between(int(at[r, i]))}"

        yield from _rows(code, checked & ~(longest <= limit), ids, what)


def _now(scenario: Scenario, ids: Int64Array) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
    """Position [N, 3] at the current step, and whether the object is valid there."""
    tracks = scenario.tracks
    row = {int(object_id): i for i, object_id in enumerate(tracks.object_ids)}
    rows = np.array([row.get(int(object_id), -1) for object_id in ids], np.int64)
    step = scenario.current_time_index
    known = rows >= 0
    if not len(tracks.object_ids):
        return np.zeros((len(ids), 3), np.float32), known
    known &= tracks.valid[rows, step]
    return tracks.position[rows, step].astype(np.float32), known


def _copies(rollouts: Rollouts) -> Iterator[_Row]:
    if not rollouts.states.size:
        return
    first: dict[bytes, int] = {}
    copies = []
    for rollout, states in enumerate(rollouts.states):
        digest = hashlib.blake2b(states, digest_size=16).digest()
        if first.setdefault(digest, rollout) != rollout:
            copies.append((rollout, first[digest]))
    if copies:
        rollout, original = copies[0]
        what = (
            f"{len(copies)} of {rollouts.n_rollouts} rollouts are copies of earlier ones, "
            f"this one of rollout {original}"
        )
        yield "identical_rollouts", what, rollout, None


def _rows(
    code: str,
    wrong: npt.NDArray[np.bool_],
    ids: Int64Array,
    what: Callable[[int, int], str],
) -> Iterator[_Row]:
    """One row an object, about the first rollout where `wrong` [R, N]; `what(rollout, i)` says."""
    for i in np.flatnonzero(wrong.any(axis=0)):
        rollouts = np.flatnonzero(wrong[:, i])
        text = what(int(rollouts[0]), int(i))
        if len(rollouts) > 1:
            text += f" ({len(rollouts)} of {len(wrong)} rollouts)"
        yield code, text, int(rollouts[0]), int(ids[i])
