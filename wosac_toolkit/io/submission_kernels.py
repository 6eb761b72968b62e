"""The kernels that decode a `ScenarioRollouts` message, see `submission`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wosac_toolkit.io.submission import (
    CENTER_X,
    HEADING,
    HEIGHT,
    JOINT_SCENE,
    LENGTH,
    OBJECT_ID,
    OBJECT_TYPE,
    SCENARIO_ID,
    TRAJECTORY,
    WIDTH,
)
from wosac_toolkit.io.wire import FIXED32, LENGTH_DELIMITED
from wosac_toolkit.io.wire_kernels import (
    POISON,
    ByteArray,
    Integer,
    bits32,
    block,
    fixed32,
    poison,
    skip,
    varint,
)
from wosac_toolkit.kernels.jit import kernel
from wosac_toolkit.scenario import Int64Array, ObjectType

_LAST_TYPE = int(max(ObjectType))


@kernel
def count(data: ByteArray) -> tuple[int, int, Integer, Integer, Integer]:
    """Joint scenes, trajectories, span of the scenario id, and the position at the end."""
    n_scenes = 0
    n_trajectories = 0
    id_start: Integer = 0
    id_stop: Integer = 0
    pos: Integer = 0
    end = len(data)
    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag == SCENARIO_ID:
            id_start, pos = block(data, pos, end)
            id_stop = pos
        elif tag == JOINT_SCENE:
            child, stop = block(data, pos, end)
            while child < stop:
                tag, child = varint(data, child, stop)
                if tag == TRAJECTORY:
                    _, child = block(data, child, stop)
                    n_trajectories += 1
                else:
                    child = skip(data, child, stop, tag)
            n_scenes += 1
            pos = child
        else:
            pos = skip(data, pos, end, tag)
    return n_scenes, n_trajectories, id_start, id_stop, pos


@kernel
def measure(
    data: ByteArray,
    sizes: Int64Array,
    object_ids: npt.NDArray[np.int32],
    steps: Int64Array,
    spans: Int64Array,
) -> Integer:
    """Fill `sizes` [R], the trajectories of each joint scene, and a row for each trajectory.

    Its object id, its steps (-1 where x, y, z and heading differ in length), its span of bytes.
    """
    scene = 0
    row = 0
    pos: Integer = 0
    end = len(data)
    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag != JOINT_SCENE:
            pos = skip(data, pos, end, tag)
            continue
        child, stop = block(data, pos, end)
        while child < stop:
            tag, child = varint(data, child, stop)
            if tag != TRAJECTORY:
                child = skip(data, child, stop, tag)
                continue
            start, last = block(data, child, stop)
            object_ids[row], steps[row], child = _measure_trajectory(data, start, last)
            spans[row, 0] = start
            spans[row, 1] = last
            sizes[scene] += 1
            row += 1
        scene += 1
        pos = child
    return pos


@kernel
def _measure_trajectory(
    data: ByteArray, pos: Integer, end: Integer
) -> tuple[np.int32, int, Integer]:
    """Object id, steps or -1, and the position at the end of a `SimulatedTrajectory`."""
    object_id: Integer = 0
    n_x = 0
    n_y = 0
    n_z = 0
    n_heading = 0
    while pos < end:
        tag, pos = varint(data, pos, end)
        field = tag >> 3
        if tag == OBJECT_ID:
            object_id, pos = varint(data, pos, end)
        elif field < CENTER_X or field > HEADING:
            pos = skip(data, pos, end, tag)
        else:
            count = 0
            if tag & 7 == LENGTH_DELIMITED:
                start, pos = block(data, pos, end)
                count = (pos - start) >> 2
                if (pos - start) & 3 != 0:
                    pos = poison(start)
            else:
                count = 1 if tag & 7 == FIXED32 else 0
                pos = skip(data, pos, end, tag)
            if field == 2:
                n_x += count
            elif field == 3:
                n_y += count
            elif field == 4:
                n_z += count
            else:
                n_heading += count
    if n_y != n_x or n_z != n_x or n_heading != n_x:
        n_x = -1
    return np.int32(object_id), n_x, pos


@kernel
def fill(
    data: ByteArray, spans: Int64Array, slots: Int64Array, bits: npt.NDArray[np.uint32]
) -> Integer:
    """Copy the floats of every trajectory to `bits` [R, N, T, 4], in the order of `slots`."""
    n_objects = bits.shape[1]
    filled = np.empty(4, np.int64)
    for row in range(len(spans)):
        target = bits[row // n_objects, slots[row]]
        filled[:] = 0
        pos = _fill_trajectory(data, spans[row, 0], spans[row, 1], filled, target)
        if pos >= POISON:
            return pos
    return 0


@kernel
def _fill_trajectory(
    data: ByteArray,
    pos: Integer,
    end: Integer,
    filled: Int64Array,
    bits: npt.NDArray[np.uint32],
) -> Integer:
    """Copy x, y, z and heading to `bits` [T, 4]; `filled` [4] counts the steps of each."""
    n_steps = len(bits)
    while pos < end:
        tag, pos = varint(data, pos, end)
        column = (tag >> 3) - CENTER_X
        packed = tag & 7 == LENGTH_DELIMITED
        if column < 0 or column > 3 or not (packed or tag & 7 == FIXED32):
            pos = skip(data, pos, end, tag)
            continue
        start = pos
        if packed:
            start, pos = block(data, pos, end)
        else:
            _, pos = fixed32(data, pos, end)
        step = filled[column]
        # Measured before, but what is written to is checked where it is written.
        if step + ((pos - start) >> 2) > n_steps:
            return poison(start)
        while start < pos:
            bits[step, column] = bits32(data, start)
            start += 4
            step += 1
        filled[column] = step
    return pos


@kernel
def carries_boxes(data: ByteArray, pos: Integer, end: Integer) -> bool:
    """Whether a trajectory that was measured has a size or a type."""
    while pos < end:
        tag, pos = varint(data, pos, end)
        if WIDTH <= tag >> 3 <= HEIGHT or tag == OBJECT_TYPE:
            return True
        pos = skip(data, pos, end, tag)
    return False


@kernel
def sized(data: ByteArray, spans: Int64Array, steps: Int64Array) -> npt.NDArray[np.bool_]:
    """Whether each trajectory [K] that was measured has all three sizes at each of its steps."""
    complete = np.zeros(len(spans), np.bool_)
    n_bytes = np.empty(3, np.int64)
    for row in range(len(spans)):
        n_bytes[:] = 0
        pos, end = spans[row, 0], spans[row, 1]
        while pos < end:
            tag, pos = varint(data, pos, end)
            number, wire_type = tag >> 3, tag & 7
            if not (WIDTH <= number <= HEIGHT and wire_type in (LENGTH_DELIMITED, FIXED32)):
                pos = skip(data, pos, end, tag)
                continue
            start = pos
            if wire_type == LENGTH_DELIMITED:
                start, pos = block(data, pos, end)
            else:
                _, pos = fixed32(data, pos, end)
            n_bytes[number - WIDTH] += pos - start
        complete[row] = (n_bytes == 4 * steps[row]).all()
    return complete


@kernel
def fill_boxes(
    data: ByteArray,
    spans: Int64Array,
    slots: Int64Array,
    bits: npt.NDArray[np.uint32],
    types: npt.NDArray[np.int8],
) -> tuple[bool, bool]:
    """Fill `bits` [R, N, T, 3] with sizes, `types` [R, N] with types.

    The spans were measured, so that the message is known to be sound.

    Returns:
        Whether no size is missing, and whether there is any type. Types that the proto does not
        know are those of nobody, 0, as to the official package.
    """
    n_objects, n_steps = bits.shape[1:3]
    complete, typed = n_steps > 0, False
    filled = np.empty(3, np.int64)
    for row in range(len(spans)):
        r, n = row // n_objects, slots[row]
        filled[:] = 0
        pos, end = spans[row, 0], spans[row, 1]
        while pos < end:
            tag, pos = varint(data, pos, end)
            number, wire_type = tag >> 3, tag & 7
            if tag == OBJECT_TYPE:
                value, pos = varint(data, pos, end)
                types[r, n] = value if 0 <= value <= _LAST_TYPE else 0
                typed = True
            elif WIDTH <= number <= HEIGHT and wire_type in (LENGTH_DELIMITED, FIXED32):
                column = 1 if number == WIDTH else (0 if number == LENGTH else 2)
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
    return complete, typed
