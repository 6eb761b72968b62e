"""What the Scenario Generation challenge adds to a submission: sizes and types of simulated agents.

A `SimulatedTrajectory` of `sim_agents_submission.proto` then holds, beside its path, width (field
7), length (8) and height (9), a float a step each, and its object type (10). Its field 11, valid,
is not read, as the official scorer does not: what is simulated is valid throughout.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from wosac_toolkit.io.submission import JOINT_SCENE, TRAJECTORY
from wosac_toolkit.io.submission_kernels import measure
from wosac_toolkit.io.wire import FIXED32, LENGTH_DELIMITED, VARINT
from wosac_toolkit.io.wire_kernels import (
    ByteArray,
    Integer,
    as_array,
    bits32,
    block,
    check,
    fixed32,
    skip,
    varint,
)
from wosac_toolkit.kernels.jit import kernel
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Int64Array

_WIDTH, _LENGTH, _HEIGHT = 7, 8, 9
_TYPE = 10 << 3 | VARINT


def with_boxes(rollouts: Rollouts, message: bytes | memoryview, *, where: str) -> Rollouts:
    """The rollouts with the sizes and types that their message holds; without, as they are.

    Sizes that are not there for each step of each trajectory are as good as none: a Sim Agents
    submission may carry anything there, and `wosac_toolkit.features` refuses scenario generation
    without sizes.

    Args:
        rollouts: decoded from `message` by `submission.decode_scenario_rollouts`.
        message: the serialized `ScenarioRollouts`.
        where: the file and place it comes from, for errors.

    Raises:
        FormatError: not a sound message; names the byte.
    """
    data = as_array(message)
    if not _carries_boxes(data):
        return rollouts
    n_rollouts, n_objects, n_steps = rollouts.states.shape[:3]
    n_trajectories = n_rollouts * n_objects
    object_ids = np.empty(n_trajectories, np.int32)
    spans = np.empty((n_trajectories, 2), np.int64)
    lengths = np.empty(n_trajectories, np.int64)
    pos = measure(data, np.zeros(n_rollouts, np.int64), object_ids, lengths, spans)
    check(pos, "ScenarioRollouts", where)
    order = np.argsort(rollouts.object_ids)
    slots = order[np.searchsorted(rollouts.object_ids, object_ids, sorter=order)]
    sizes = np.empty((n_rollouts, n_objects, n_steps, 3), np.float32)
    types = np.zeros((n_rollouts, n_objects), np.int8)
    complete = _fill_boxes(data, spans, slots, sizes.view(np.uint32), types)
    return replace(rollouts, sizes=sizes if complete else None, object_types=types)


@kernel
def _carries_boxes(data: ByteArray) -> bool:
    """Whether the first trajectory of a `ScenarioRollouts` has a size or a type."""
    pos: Integer = 0
    end = len(data)
    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag != JOINT_SCENE:
            pos = skip(data, pos, end, tag)
            continue
        pos, end = block(data, pos, end)
        while pos < end:
            tag, pos = varint(data, pos, end)
            if tag != TRAJECTORY:
                pos = skip(data, pos, end, tag)
                continue
            pos, end = block(data, pos, end)
            while pos < end:
                tag, pos = varint(data, pos, end)
                if _WIDTH <= tag >> 3 <= _HEIGHT or tag == _TYPE:
                    return True
                pos = skip(data, pos, end, tag)
    return False


@kernel
def _fill_boxes(
    data: ByteArray,
    spans: Int64Array,
    slots: Int64Array,
    bits: npt.NDArray[np.uint32],
    types: npt.NDArray[np.int8],
) -> bool:
    """Fill `bits` [R, N, T, 3] with sizes, `types` [R, N] with types; whether no size is missing.

    The spans were measured, so that the message is known to be sound.
    """
    n_objects, n_steps = bits.shape[1:3]
    complete = True
    filled = np.empty(3, np.int64)
    for row in range(len(spans)):
        r, n = row // n_objects, slots[row]
        filled[:] = 0
        pos, end = spans[row, 0], spans[row, 1]
        while pos < end:
            tag, pos = varint(data, pos, end)
            number, wire_type = tag >> 3, tag & 7
            if tag == _TYPE:
                value, pos = varint(data, pos, end)
                types[r, n] = value
            elif _WIDTH <= number <= _HEIGHT and wire_type in (LENGTH_DELIMITED, FIXED32):
                column = 1 if number == _WIDTH else (0 if number == _LENGTH else 2)
                start = pos
                if wire_type == LENGTH_DELIMITED:
                    start, pos = block(data, pos, end)
                else:
                    _, pos = fixed32(data, pos, end)
                while start + 4 <= pos and filled[column] < n_steps:
                    bits[r, n, filled[column], column] = bits32(data, start)
                    filled[column] += 1
                    start += 4
                complete &= start == pos
            else:
                pos = skip(data, pos, end, tag)
        complete &= filled.min() == n_steps
    return complete
