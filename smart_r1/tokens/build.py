"""Vocabularies made from scenes by k-disks, and filled up from rules.

CAT-K's recipe, but: the disks are picked from a random sample of all the scenes, not from the first
ones; headings are averaged as directions; the first token of a class stands perfectly still; and
tokens settle where most of their examples are.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from smart_r1.tokens.k_disks import k_disks, nearest_centres
from smart_r1.tokens.rules import RULES, along_x, rule_curves, rule_segments
from smart_r1.tokens.samples import curve_pieces, motion_segments
from smart_r1.tokens.vocabulary import (
    CLASS_SIZE,
    CLASSES,
    Vocabulary,
    box_corners,
    corners_of_poses,
)
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.tfrecord import RecordRef
from wosac_toolkit.scenario import BoolArray, Float32Array, Float64Array, Scenario
from wosac_toolkit.workers import Crew, n_workers, progress_bar

N_MOTION, N_CURVES = 2048, 1024
TOLERANCE, CURVE_TOLERANCE = 0.05, 0.03
"""Radius of the disks, metres: of motion (as CAT-K's), of curves."""
CAPACITY = 204_800
"""How many examples of a class are held at a time (CAT-K)."""

_N_FROM_RULES = 60_000
_STANDING = 0.02  # metres that corners move in the mean; less is standing still
_STANDSTILL = np.zeros((1, 5, 3), np.float32)
_MOST_HALVINGS = 10
_ROUNDS_OF_SETTLING = 2


@dataclass(frozen=True, eq=False, slots=True)
class Examples:
    """What a vocabulary is made from.

    Attributes:
        segments: for each class float32 [n, 5, 3]: x, y (m) and heading (rad) after 0.1, .. 0.5 s
            in the frame of the first pose; nobody stands still.
        curves: float32 [n, 11, 2], from the origin and at first along x.
    """

    segments: Sequence[Float32Array]
    curves: Float32Array


def examples_of(scenario: Scenario) -> Examples:
    """All that a scene offers."""
    segments = [
        of_class[moving(of_class, index)]
        for index, of_class in enumerate(motion_segments(scenario))
    ]
    return Examples(segments, curve_pieces(scenario))


def moving(segments: Float32Array, index: int) -> BoolArray:
    """Which segments [n, 5, 3] of a class are more than standing still."""
    boxes = _end_boxes(segments, index)
    return nearest_centres(boxes, _end_boxes(_STANDSTILL, index))[1] > _STANDING


_Drawn = tuple[Float64Array, Float32Array]
"""The numbers that examples drew, and the examples."""


class Sample:
    """A random sample of the examples of many scenes, the same in whatever order they come.

    Every example draws a number, which depends on the seed, its scene and its place there alone;
    those with the lowest are kept.
    """

    def __init__(self, seed: int, capacity: int = CAPACITY) -> None:
        """An empty sample.

        Args:
            seed: of the draw.
            capacity: how many examples to keep of each class, and how many curves.
        """
        self._seed, self._capacity = seed, capacity
        self._parts: list[list[_Drawn]] = [[] for _ in (*CLASSES, "curves")]

    def add(self, scenario_id: str, examples: Examples) -> None:
        """Draw for the examples of a scene."""
        digest = hashlib.blake2b(scenario_id.encode(), digest_size=8).digest()
        rng = np.random.default_rng([self._seed, int.from_bytes(digest, "little")])
        for part, values in zip(self._parts, (*examples.segments, examples.curves), strict=True):
            part.append((rng.random(len(values)), values))
            if sum(len(numbers) for numbers, _ in part) > 2 * self._capacity:
                part[:] = [self._lowest(part)]

    def examples(self) -> Examples:
        """What has been kept."""
        *segments, curves = [self._lowest(part)[1] for part in self._parts]
        return Examples(segments, curves)

    def _lowest(self, part: list[_Drawn]) -> _Drawn:
        numbers = np.concatenate([numbers for numbers, _ in part])
        kept = np.argsort(numbers, kind="stable")[: self._capacity]
        return numbers[kept], np.concatenate([values for _, values in part])[kept]


def draw_scenes(
    path: str, n_scenes: int | None, seed: int, *, progress: bool = True
) -> list[RecordRef]:
    """Where scenes lie, in the order of the files.

    Args:
        path: a TFRecord file, folder, glob or shard list.
        n_scenes: how many, drawn at random if there are more; None for all.
        seed: of the draw.
        progress: show a bar on stderr.

    Raises:
        WosacError: there are no such files, or no scenes in them.
        FormatError: a truncated or corrupt record.
    """
    from wosac_toolkit.io.scenarios import index_scenarios

    records = list(index_scenarios(path, progress=progress).values())
    if not records:
        raise WosacError("there are no scenes in it", where=path)
    if n_scenes is None or n_scenes >= len(records):
        return records
    drawn = np.random.default_rng(seed).choice(len(records), n_scenes, replace=False)
    return [records[row] for row in np.sort(drawn)]


def build_vocabulary(
    path: str,
    *,
    n_motion: int = N_MOTION,
    n_curves: int = N_CURVES,
    tolerances: Sequence[float] = (TOLERANCE,) * 3,
    curve_tolerance: float = CURVE_TOLERANCE,
    n_scenes: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Vocabulary:
    """A vocabulary from the scenes of TFRecord files; the same for any number of workers.

    Args:
        path: a TFRecord file, folder, glob or shard list.
        n_motion: V, tokens of each class.
        n_curves: M, map curves.
        tolerances: of each class, metres, see `choose_motion`.
        curve_tolerance: of the curves, metres.
        n_scenes: how many scenes to draw from, at most.
        seed: of everything random.
        workers: processes; by default one a CPU, fewer for few scenes.
        progress: show bars on stderr.

    Raises:
        WosacError: there are no such files, no scenes in them, or more tokens asked for than can
            be told apart.
        FormatError: a record that cannot be read.
        ScenarioError: a scene whose parts do not fit together.
    """
    records = draw_scenes(path, n_scenes, seed, progress=progress)
    sample = Sample(seed)
    with (
        Crew(_examples_of_record, n_workers(workers, len(records))) as crew,
        progress_bar(len(records), what="collecting", show=progress) as bar,
    ):
        for _, found in crew.map(records):
            if isinstance(found, WosacError):
                raise found
            sample.add(*found)
            bar.update(1)
    examples = sample.examples()
    if not any(map(len, examples.segments)):
        raise WosacError(
            "nobody moves for half a second in these scenes",
            where=path,
            mend="the test split has no futures, use training or validation",
        )
    poses = choose_motion(examples.segments, n_motion, tolerances, seed, progress=progress)
    curves = choose_curves(examples.curves, n_curves, curve_tolerance, seed)
    return Vocabulary(corners_of_poses(poses), curves)


def choose_motion(
    segments: Sequence[Float32Array],
    n: int,
    tolerances: Sequence[float],
    seed: int,
    *,
    progress: bool = False,
) -> Float32Array:
    """Motion tokens by k-disks: the first stands still, each other is the mean of a disk.

    Where fewer disks cover the examples, rules fill up with what is outside of these disks; after
    that, the same happens with disks of half the radius, and so on. In the end each token moves to
    the middle of the examples that it would be matched to.

    Args:
        segments: the examples, as in `Examples`.
        n: V, tokens of each class.
        tolerances: radii of the disks of each class, metres, in the mean distance of the corners
            of the last pose.
        seed: of the picks.
        progress: show a bar on stderr.

    Returns:
        float32 [3, V, 5, 4], poses as `save_poses` takes them.
    """
    from tqdm import tqdm

    tokens = []
    classes = list(zip(segments, tolerances, strict=True))
    bar = tqdm(classes, "choosing tokens", unit=" classes", disable=not progress)
    for index, (of_class, tolerance) in enumerate(bar):
        rng = np.random.default_rng([seed, index])
        made = rule_segments(RULES[index], _N_FROM_RULES, rng)
        kind = _Kind(functools.partial(_end_boxes, index=index), _mean_poses)
        chosen = _choose(kind, of_class, made[moving(made, index)], n - 1, tolerance, rng)
        tokens.append(np.concatenate([_STANDSTILL, chosen]))
    return _with_trigonometry(np.stack(tokens))


def choose_curves(curves: Float32Array, n: int, tolerance: float, seed: int) -> Float32Array:
    """Map curves by k-disks, in the same way as `choose_motion`.

    Args:
        curves: the examples, float32 [N, 11, 2].
        n: M, how many to choose.
        tolerance: radius of the disks, metres, in the mean distance of the points.
        seed: of the picks.

    Returns:
        float32 [M, 11, 2].
    """
    rng = np.random.default_rng([seed, len(CLASSES)])
    spare = rule_curves(_N_FROM_RULES, rng)
    chosen = _choose(_Kind(np.asarray, _mean_curve), curves, spare, n, tolerance, rng)
    return along_x(chosen.astype(np.float64))


@dataclass(frozen=True, slots=True)
class _Kind:
    """What k-disks has to know of segments, or of curves.

    Attributes:
        shapes: examples [n, ..] -> their points [n, Q, 2].
        mean: examples [n, ..] -> one that stands for all.
    """

    shapes: Callable[[Float32Array], Float32Array]
    mean: Callable[[Float32Array], Float32Array]


def _choose(
    kind: _Kind,
    examples: Float32Array,
    spare: Float32Array,
    n: int,
    tolerance: float,
    rng: np.random.Generator,
) -> Float32Array:
    """The means of `n` disks over the examples, then over what they and `spare` have elsewhere."""
    if n < 1 or not tolerance > 0:
        raise WosacError(f"cannot choose {n} tokens with a tolerance of {tolerance} m")
    disks = k_disks(kind.shapes(examples), n, tolerance, rng)
    chosen = [kind.mean(examples[disk]) for disk in disks]
    everything = np.concatenate([examples, spare])
    for halvings in range(_MOST_HALVINGS):
        if len(chosen) == n:
            return _settle(kind, np.stack(chosen), examples)
        radius = tolerance / 2**halvings
        centres = kind.shapes(np.stack(chosen) if chosen else everything[:0])
        elsewhere = everything[nearest_centres(kind.shapes(everything), centres)[1] > radius]
        disks = k_disks(kind.shapes(elsewhere), n - len(chosen), radius, rng)
        chosen += [kind.mean(elsewhere[disk]) for disk in disks]
    raise WosacError(
        f"{len(everything)} examples and rules give {len(chosen)} different tokens, not {n}",
        mend="ask for fewer",
    )


def _settle(kind: _Kind, chosen: Float32Array, examples: Float32Array) -> Float32Array:
    """Move tokens to the middle of the examples that they are nearest to (Lloyd's algorithm)."""
    settled = chosen.copy()
    for _ in range(_ROUNDS_OF_SETTLING):
        nearest, _ = nearest_centres(kind.shapes(examples), kind.shapes(settled))
        order = np.argsort(nearest, kind="stable")
        numbers, starts = np.unique(nearest[order], return_index=True)
        for number, members in zip(numbers, np.split(order, starts)[1:], strict=True):
            settled[number] = kind.mean(examples[members])
    return settled


def _mean_poses(segments: Float32Array) -> Float32Array:
    """The mean [5, 3] of segments [m, 5, 3]; headings are averaged as directions."""
    mean: Float32Array = segments.mean(axis=0)
    heading = segments[..., 2]
    mean[:, 2] = np.arctan2(np.sin(heading).mean(axis=0), np.cos(heading).mean(axis=0))
    return mean


def _mean_curve(curves: Float32Array) -> Float32Array:
    mean: Float32Array = curves.mean(axis=0)
    return mean


def _end_boxes(segments: Float32Array, index: int) -> Float32Array:
    """The boxes [n, 4, 2] of a class where segments [n, 5, 3] end."""
    return box_corners(_with_trigonometry(segments[:, -1]), CLASS_SIZE[index]).astype(np.float32)


def _with_trigonometry(poses: Float32Array) -> Float32Array:
    """Poses [..., 3] as x, y, cosine and sine of the heading [..., 4]."""
    heading = poses[..., 2:].astype(np.float64)
    poses = np.concatenate([poses[..., :2], np.cos(heading), np.sin(heading)], axis=-1)
    return poses.astype(np.float32)


def _examples_of_record(record: RecordRef) -> tuple[str, Examples] | WosacError:
    """The examples of one scene, with its id; runs in the workers."""
    from wosac_toolkit.io.scenarios import read_scenario

    try:
        scenario = read_scenario(record)
    except WosacError as error:
        return error
    return scenario.scenario_id, examples_of(scenario)
