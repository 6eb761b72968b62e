"""Rollouts as the challenge wants them: `sim_agents_submission.proto`, read and written.

A shard `<name>.binproto-00000-of-00150` holds one `SimAgentsChallengeSubmission`: many
`ScenarioRollouts` (field 1) and the metadata of the submission. A file may also hold one bare
`ScenarioRollouts`. Both start with a length-delimited field 1, so its content tells them apart: in
a bare message it is the scenario id, a short text; in a submission it is a whole message, whose
first byte is a tag, `0x0A` or `0x12`, control characters that no text holds. A first field 2 that
is length-delimited (a joint scene) is a bare message too; any other first field is a submission.

The decoder makes three passes over a message: it counts joint scenes and trajectories, measures
every trajectory, and, when all lengths and object ids are known to fit together, copies the floats.

A trajectory of the Scenario Generation challenge also holds the sizes of its box, a float a step
each, and its object type. Its field 11, valid, is neither read nor written: the official scorer
takes what is simulated for valid throughout.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from wosac_toolkit.errors import FormatError, RolloutsError, some_ids
from wosac_toolkit.io import wire
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Int64Array, ObjectType

Source: TypeAlias = io.BufferedReader | bytes | memoryview
# Of a message: the same bytes in every joint scene, or a row [R, bytes] for each.
_Piece: TypeAlias = bytes | npt.NDArray[np.uint8]

FILE_NAME = re.compile(r".*\.binproto(-\d{5}-of-\d{5})?")
"""What the challenge server accepts as the name of a shard."""

MAX_MESSAGE_BYTES = 2**31 - 1
"""The largest protobuf message, and so the largest shard."""

MAX_TRAJECTORIES = 1 << 22
"""The most trajectories (rollouts times objects) of one scenario; 32 x 128 are usual."""

_MAX_TEXT_BYTES = 1 << 20
_MAX_LISTED = 1000
_MAX_ID_BYTES = 256
_PIECE_BYTES = 1 << 24

# SimAgentsChallengeSubmission
_SCENARIO_ROLLOUTS = 1 << 3 | wire.LENGTH_DELIMITED
# ScenarioRollouts
SCENARIO_ID = 1 << 3 | wire.LENGTH_DELIMITED
JOINT_SCENE = 2 << 3 | wire.LENGTH_DELIMITED
# JointScene
TRAJECTORY = 1 << 3 | wire.LENGTH_DELIMITED
# SimulatedTrajectory
CENTER_X = 2
HEADING = 5
OBJECT_ID = 6 << 3 | wire.VARINT
WIDTH = 7
LENGTH = 8
HEIGHT = 9
OBJECT_TYPE = 10 << 3 | wire.VARINT

# The columns of `Rollouts.sizes` by their fields.
_SIZES = {WIDTH: 1, LENGTH: 0, HEIGHT: 2}


# Decoding one message


def decode_scenario_rollouts(data: bytes | memoryview, *, where: str) -> Rollouts:
    """The rollouts of one `ScenarioRollouts` message.

    Objects are in the order of the first joint scene; the other joint scenes may list the same
    objects in another order. Unknown fields are skipped, repeated floats may be packed or not.
    Sizes that are not there for each step of each trajectory are as good as none: a Sim Agents
    submission may carry anything there.

    Args:
        data: the serialized message.
        where: the file and place it comes from, for errors.

    Returns:
        Rollouts with one rollout a joint scene. Their number and the number of steps are whatever
        the message holds: the scorer checks both.

    Raises:
        FormatError: not a sound message; names the byte.
        RolloutsError: no scenario id, a joint scene whose objects are not those of the first, or
            trajectories whose coordinates differ in length; names rollout and objects.
    """
    table = _measure(data, where)
    n_objects = int(table.sizes[0]) if len(table.sizes) else 0
    slots = _align(table.object_ids, table.sizes, table.where)
    n_steps = _common_length(table.steps, table.object_ids, n_objects, table.where)
    return _copied(table, table.spans, slots, table.object_ids[:n_objects], n_steps)


_Misfit = Literal["absent", "repeated", "ragged", "other_length", "unsized"]


class Misfit(NamedTuple):
    """An object that does not come once, with all steps, in every joint scene.

    Attributes:
        object_id: the object.
        kind: `absent` from these rollouts; `repeated` in them; `ragged` in them: its x, y, z and
            heading differ in length; `other_length`: with another number of steps than usual;
            `unsized`: without sizes at some steps, where others have them.
        rollouts: the indices of the joint scenes.
    """

    object_id: int
    kind: _Misfit
    rollouts: tuple[int, ...]


def salvage_scenario_rollouts(
    data: bytes | memoryview, *, where: str, with_sizes: bool = False
) -> tuple[Rollouts, list[Misfit]]:
    """What is sound of a `ScenarioRollouts` message, and what is not, object by object.

    For those who list all faults; `decode_scenario_rollouts` raises the first of them.

    Args:
        data: the serialized message.
        where: the file and place it comes from, for errors.
        with_sizes: an object without sizes is a misfit, unless none has any.

    Returns:
        The rollouts of the objects that come once in every joint scene with the number of steps
        that is most frequent, ordered by id; and the misfits of all others, ordered by id.

    Raises:
        FormatError: not a sound message; names the byte.
        RolloutsError: no scenario id, or more joint scenes and objects than can be compared.
    """
    table = _measure(data, where)
    n_scenes = len(table.sizes)
    rollout = np.repeat(np.arange(n_scenes), table.sizes)
    ids, column = np.unique(table.object_ids, return_inverse=True)
    if n_scenes * len(ids) > MAX_TRAJECTORIES:
        raise RolloutsError(
            f"{n_scenes} joint scenes with {len(ids)} different objects in all, "
            f"more than can be compared",
            where=table.where,
        )
    lengths, n_times = np.unique(table.steps[table.steps >= 0], return_counts=True)
    n_steps = int(lengths[np.argmax(n_times)]) if len(lengths) else 0

    def occurrences(chosen: npt.NDArray[np.bool_]) -> Int64Array:  # [R, ids]
        counts = np.zeros((n_scenes, len(ids)), np.int64)
        np.add.at(counts, (rollout[chosen], column[chosen]), 1)
        return counts

    n_found = occurrences(np.ones(len(rollout), bool))
    faults: dict[_Misfit, npt.NDArray[np.bool_]] = {
        "absent": n_found == 0,
        "repeated": n_found > 1,
        "ragged": occurrences(table.steps < 0) > 0,
        "other_length": occurrences((table.steps >= 0) & (table.steps != n_steps)) > 0,
        "unsized": occurrences(_unsized(table)) > 0 if with_sizes else n_found < 0,
    }
    sound = ~np.any([wrong.any(axis=0) for wrong in faults.values()], axis=0)
    misfits = [
        Misfit(int(ids[i]), kind, tuple(np.flatnonzero(wrong[:, i]).tolist()))
        for i in np.flatnonzero(~sound)
        for kind, wrong in faults.items()
        if wrong[:, i].any()
    ]
    rows = np.flatnonzero(sound[column])
    rows = rows[np.lexsort((column[rows], rollout[rows]))]
    slots = np.tile(np.arange(sound.sum()), n_scenes)
    return _copied(table, table.spans[rows], slots, ids[sound], n_steps), misfits


class _Table(NamedTuple):
    """A measured message, not decoded: R joint scenes, K trajectories.

    Attributes:
        data: its bytes.
        scenario_id: its scenario.
        where: the place with the scenario, for errors.
        sizes: int64 [R], trajectories of each joint scene.
        object_ids: int32 [K].
        steps: int64 [K], -1 where the coordinates differ in length.
        spans: int64 [K, 2], first byte and the one after.
    """

    data: npt.NDArray[np.uint8]
    scenario_id: str
    where: str
    sizes: Int64Array
    object_ids: npt.NDArray[np.int32]
    steps: Int64Array
    spans: Int64Array


def _measure(data: bytes | memoryview, where: str) -> _Table:
    # Imported here: whoever only looks for messages needs no kernels.
    from wosac_toolkit.io.submission_kernels import count, measure
    from wosac_toolkit.io.wire_kernels import as_array, check

    array = as_array(data)
    n_scenes, n_trajectories, id_start, id_stop, pos = count(array)
    check(pos, "ScenarioRollouts", where)
    scenario_id = _scenario_id(bytes(array[id_start:id_stop]), where)
    where = f"{where}, scenario {scenario_id}"
    if max(n_scenes, n_trajectories) > MAX_TRAJECTORIES:
        raise RolloutsError(
            f"{n_scenes} joint scenes with {n_trajectories} trajectories, "
            f"more than the {MAX_TRAJECTORIES} allowed",
            where=where,
        )
    sizes = np.zeros(n_scenes, np.int64)
    object_ids = np.empty(n_trajectories, np.int32)
    steps = np.empty(n_trajectories, np.int64)
    spans = np.empty((n_trajectories, 2), np.int64)
    pos = measure(array, sizes, object_ids, steps, spans)
    check(pos, "ScenarioRollouts", where)
    return _Table(array, scenario_id, where, sizes, object_ids, steps, spans)


def _unsized(table: _Table) -> npt.NDArray[np.bool_]:
    """Which trajectories [K] lack a size, where others have theirs; ragged ones do not tell."""
    from wosac_toolkit.io.submission_kernels import sized

    measured = table.steps >= 0
    lacking: npt.NDArray[np.bool_] = measured & ~sized(table.data, table.spans, table.steps)
    return np.zeros_like(lacking) if np.array_equal(lacking, measured) else lacking


def _copied(
    table: _Table,
    spans: Int64Array,
    slots: Int64Array,
    object_ids: npt.NDArray[np.int32],
    n_steps: int,
) -> Rollouts:
    """The rollouts of N objects, whose trajectories have spans and slots [R * N]."""
    from wosac_toolkit.io.submission_kernels import carries_boxes, fill, fill_boxes
    from wosac_toolkit.io.wire_kernels import check

    shape = len(table.sizes), len(object_ids), n_steps
    states = np.empty((*shape, 4), np.float32)
    pos = fill(table.data, spans, slots, states.view(np.uint32))
    check(pos, "ScenarioRollouts", table.where)
    sizes = types = None
    if len(spans) and carries_boxes(table.data, *spans[0]):
        sizes, types = np.empty((*shape, 3), np.float32), np.zeros(shape[:2], np.int8)
        complete, typed = fill_boxes(table.data, spans, slots, sizes.view(np.uint32), types)
        sizes, types = sizes if complete else None, types if typed else None
    ids = object_ids.astype(np.int64)
    return Rollouts(table.scenario_id, ids, states, sizes=sizes, object_types=types)


def _align(object_ids: npt.NDArray[np.int32], sizes: Int64Array, where: str) -> Int64Array:
    """The row of each trajectory among the objects of the first joint scene, [R * N]."""
    if len(sizes) == 0:
        return np.empty(0, np.int64)
    first = object_ids[: sizes[0]]
    order = np.argsort(first, kind="stable")
    if (sizes != len(first)).any():
        _raise_for_objects(object_ids, sizes, where)
    ids = object_ids.reshape(len(sizes), -1)
    slots = np.empty(ids.shape, np.int64)
    if (ids == first).all():
        slots[:] = np.arange(len(first))
    else:
        orders = np.argsort(ids, axis=1, kind="stable")
        if (np.take_along_axis(ids, orders, axis=1) != first[order]).any():
            _raise_for_objects(object_ids, sizes, where)
        np.put_along_axis(slots, orders, np.broadcast_to(order, ids.shape), axis=1)
    if (np.diff(first[order]) == 0).any():
        _raise_for_objects(object_ids, sizes, where)
    return slots.reshape(-1)


def _raise_for_objects(
    object_ids: npt.NDArray[np.int32], sizes: Int64Array, where: str
) -> NoReturn:
    """Name the first joint scene whose objects are not each once those of the first."""
    scenes = np.split(object_ids, np.cumsum(sizes)[:-1])
    expected = set(scenes[0].tolist())
    for rollout, ids in enumerate(scenes):
        found = Counter(ids.tolist())
        faults = {
            "missing": expected - found.keys(),
            "not in rollout 0": found.keys() - expected,
            "more than once": {i for i, n in found.items() if n > 1},
        }
        if any(faults.values()):
            listed = "; ".join(f"{name}: {some_ids(ids)}" for name, ids in faults.items() if ids)
            raise RolloutsError(
                f"its objects are not each once those of rollout 0 ({listed})",
                where=f"{where}, rollout {rollout}",
                mend="simulate the same objects in every joint scene",
            )
    raise AssertionError("the joint scenes agree")


def _common_length(
    steps: Int64Array, object_ids: npt.NDArray[np.int32], n_objects: int, where: str
) -> int:
    """T, the number of steps of all trajectories."""
    if len(steps) == 0:
        return 0
    ragged, n_steps = steps < 0, int(steps[0])
    wrong = ragged if ragged.any() else steps != n_steps
    if not wrong.any():
        return n_steps
    rollout = int(np.argmax(wrong)) // n_objects
    rows = slice(rollout * n_objects, (rollout + 1) * n_objects)
    ids = some_ids(object_ids[rows][wrong[rows]].tolist())
    what = (
        f"center_x, center_y, center_z and heading differ in length (objects {ids})"
        if ragged.any()
        else f"trajectories of another length than the {n_steps} steps of the first (objects {ids})"
    )
    raise RolloutsError(what, where=f"{where}, rollout {rollout}")


# Walking through a file


class _Field(NamedTuple):
    """One field: its tag; its value if a varint, else the span of its value."""

    tag: int
    value: int
    start: int
    stop: int


def iter_submission(source: Source, *, where: str, size: int | None = None) -> Iterator[Rollouts]:
    """The rollouts of a submission or of a bare `ScenarioRollouts`, a scenario at a time.

    Args:
        source: bytes, or a buffered stream at its first byte, which is only read forwards.
        where: the file, for errors.
        size: length of the stream in bytes, where its end cannot be sought.

    Raises:
        FormatError: the file is truncated, damaged or of another kind.
        RolloutsError: see `decode_scenario_rollouts`.
    """
    for offset, message in iter_messages(source, where=where, size=size):
        yield decode_scenario_rollouts(message, where=f"{where}, message at byte {offset}")


def iter_messages(
    source: Source, *, where: str, size: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Offset and serialized bytes of each `ScenarioRollouts`; as `iter_submission`, undecoded."""
    stream, end = _open(source, size)
    if _is_bare(stream, end, where):
        yield 0, _read(stream, end, where)
        return
    for field in _fields(stream, 0, end, where):
        value = _read(stream, field.stop - field.start, where)
        if field.tag == _SCENARIO_ROLLOUTS:
            yield field.start, value


def scan_submission(
    source: Source, *, where: str, size: int | None = None
) -> Iterator[tuple[str, int, int]]:
    """Scenario id, offset and length of each `ScenarioRollouts`, hopping over the payloads.

    The id is the first one of the message, usually its first field. A stream must be seekable.

    Raises:
        FormatError: the file is truncated, damaged or of another kind.
        RolloutsError: a message without scenario id.
    """
    stream, end = _open(source, size)
    if _is_bare(stream, end, where):
        yield _first_id(stream, 0, end, where), 0, end
        return
    for field in _fields(stream, 0, end, where):
        if field.tag == _SCENARIO_ROLLOUTS:
            place = f"{where}, message at byte {field.start}"
            scenario_id = _first_id(stream, field.start, field.stop, place)
            yield scenario_id, field.start, field.stop - field.start
        stream.seek(field.stop)


def message_scenario_id(message: bytes, *, where: str) -> str:
    """The scenario id of a serialized `ScenarioRollouts`, which is not decoded.

    Raises:
        FormatError: damaged before its id.
        RolloutsError: it has none.
    """
    stream, end = _open(message, None)
    return _first_id(stream, 0, end, where)


def _open(source: Source, size: int | None) -> tuple[io.BufferedReader, int]:
    if isinstance(source, io.BufferedReader):
        stream = source
    else:
        stream = io.BufferedReader(io.BytesIO(source))  # type: ignore[arg-type,assignment]
    if size is None:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
    return stream, size


def _is_bare(stream: io.BufferedReader, end: int, where: str) -> bool:
    """Whether the file is one `ScenarioRollouts`, by its first field (see the module's head)."""
    if end == 0:
        raise FormatError("the file is empty", where=where)
    head = stream.peek()
    first = next(_fields(io.BytesIO(head), 0, end, where))
    length = first.stop - first.start
    bare = first.tag == JOINT_SCENE
    if first.tag == SCENARIO_ID and 0 < length <= _MAX_ID_BYTES:
        text = head[first.start : first.stop]
        bare = not any(byte < 0x20 or byte == 0x7F for byte in text)
    if bare and end > MAX_MESSAGE_BYTES:
        raise FormatError(f"a message of {end} bytes, more than protobuf allows", where=where)
    return bare


def _first_id(stream: io.BufferedReader, start: int, stop: int, where: str) -> str:
    for field in _fields(stream, start, stop, where):
        if field.tag == SCENARIO_ID:
            return _scenario_id(_read(stream, field.stop - field.start, where), where)
        stream.seek(field.stop)
    return _scenario_id(b"", where)


def _scenario_id(data: bytes, where: str) -> str:
    if not data:
        raise RolloutsError("the ScenarioRollouts message has no scenario_id", where=where)
    scenario_id = _text(data[: _MAX_ID_BYTES + 1], "scenario_id", where)
    if len(data) > _MAX_ID_BYTES or not scenario_id.isprintable():
        raise FormatError(f"scenario_id is no short text: {scenario_id[:40]!r}", where=where)
    return scenario_id


def _fields(stream: BinaryIO, start: int, end: int, where: str) -> Iterator[_Field]:
    """The fields of the message at `start:end`, where the stream stands.

    It then stands at the value of the field, and must stand behind it when the next one is asked.
    """
    pos = start
    while pos < end:
        tag, value_start = _varint(stream, pos, end, where)
        value, stop = 0, value_start
        match tag & 7:
            case wire.VARINT:
                value, value_start = _varint(stream, value_start, end, where)
                stop = value_start
            case wire.FIXED64:
                stop += 8
            case wire.FIXED32:
                stop += 4
            case wire.LENGTH_DELIMITED:
                length, value_start = _varint(stream, value_start, end, where)
                stop = value_start + length
            case _:
                stop = -1
        if not 8 <= tag < 1 << 32 or stop < 0:
            raise FormatError(
                f"not a submission, malformed at byte {pos}",
                where=where,
                mend="expected a serialized SimAgentsChallengeSubmission or ScenarioRollouts",
            )
        if stop > end or stop - value_start > MAX_MESSAGE_BYTES:
            raise FormatError(
                f"the field at byte {pos} claims {stop - value_start} bytes, "
                f"{end - value_start} are left",
                where=where,
                mend="the file is truncated or damaged",
            )
        yield _Field(tag, value, value_start, stop)
        pos = stop


def _varint(stream: BinaryIO, pos: int, end: int, where: str) -> tuple[int, int]:
    """The unsigned value of the varint at `pos`, where the stream stands, and the byte after it."""
    value = 0
    for n in range(min(10, end - pos)):
        byte = _read(stream, 1, where)[0]
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return value, pos + n + 1
    raise FormatError(
        f"truncated or damaged at byte {pos}", where=where, mend="a varint does not end"
    )


def _read(stream: BinaryIO, length: int, where: str) -> bytes:
    """The next `length` bytes, in pieces, so that no more is reserved than the stream holds."""
    pieces = []
    left = length
    while left and (piece := stream.read(min(left, _PIECE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    if left:
        raise FormatError(f"ends {left} bytes too early", where=where, mend="the file is truncated")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _text(data: bytes, field: str, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise FormatError(f"{field} is not UTF-8 text: {data[:40]!r}", where=where) from None


# Encoding


def encode_scenario_rollouts(rollouts: Rollouts) -> bytes:
    """A serialized `ScenarioRollouts`, byte for byte as the official package writes it.

    Raises:
        RolloutsError: an object id that is no int32, or an object type that is no `ObjectType`.
    """
    ids, types = rollouts.object_ids, rollouts.object_types
    where = f"scenario {rollouts.scenario_id}"
    outside = ids[ids != ids.astype(np.int32)]
    if len(outside):
        raise RolloutsError(f"object ids {some_ids(outside.tolist())} are not int32", where=where)
    if types is not None and len(unknown := np.setdiff1d(types, list(ObjectType))):
        raise RolloutsError(
            f"object types {some_ids(unknown.tolist())} are not of the proto's, "
            f"{min(ObjectType)} to {max(ObjectType)}",
            where=where,
        )
    columns = {CENTER_X + k: rollouts.states[..., k] for k in range(4)}
    if rollouts.sizes is not None:
        columns |= {number: rollouts.sizes[..., k] for number, k in _SIZES.items()}
    # Every joint scene has the same layout, so each of its bytes is a column of one table.
    values = np.empty((len(ids), len(columns), rollouts.n_rollouts, rollouts.n_steps), "<f4")
    for k, column in enumerate(columns.values()):
        values[:, k] = column.transpose(1, 0, 2)
    floats = values.view(np.uint8)  # [N, columns, R, 4 T]
    width = wire.encode_varint(4 * rollouts.n_steps)
    tags = [wire.encode_tag(number, wire.LENGTH_DELIMITED) + width for number in columns]
    pieces: list[_Piece] = []
    for row, object_id in enumerate(ids.tolist()):
        named = wire.encode_varint(OBJECT_ID) + wire.encode_varint(object_id)
        fields: dict[int, list[_Piece]] = {OBJECT_ID >> 3: [named]}
        for k, number in enumerate(columns if rollouts.n_steps else ()):
            fields[number] = [tags[k], floats[row, k]]
        if types is not None:
            kinds = types[:, row, None].astype(np.uint8)  # varints of a byte
            fields[OBJECT_TYPE >> 3] = [wire.encode_varint(OBJECT_TYPE), kinds]
        trajectory = [piece for number in sorted(fields) for piece in fields[number]]
        length = sum(_width(piece) for piece in trajectory)
        pieces += [wire.encode_varint(TRAJECTORY) + wire.encode_varint(length), *trajectory]
    length = sum(_width(piece) for piece in pieces)
    pieces.insert(0, wire.encode_varint(JOINT_SCENE) + wire.encode_varint(length))
    table = np.empty((rollouts.n_rollouts, sum(_width(piece) for piece in pieces)), np.uint8)
    start = 0
    for piece in pieces:
        stop = start + _width(piece)
        table[:, start:stop] = np.frombuffer(piece, np.uint8) if isinstance(piece, bytes) else piece
        start = stop
    return wire.encode_block(1, rollouts.scenario_id.encode()) + table.tobytes()


def message_head(length: int) -> bytes:
    """What comes before a `ScenarioRollouts` of so many bytes in a submission."""
    return wire.encode_varint(_SCENARIO_ROLLOUTS) + wire.encode_varint(length)


def _width(piece: _Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.shape[-1]


# Metadata and whole files


@dataclass(frozen=True, slots=True)
class SubmissionMetadata:
    """The fields of `SimAgentsChallengeSubmission` beside the rollouts.

    A text that is empty and a flag that is None are not set in the message.

    Attributes:
        submission_type: 1, SIM_AGENTS_SUBMISSION, also in scenario generation, which has no type of
            its own; 0 where a file does not say.
        account_name: the registered e-mail address.
        unique_method_name: short; the leaderboard shows the latest result of a method.
        authors: their names.
        affiliation: of the authors.
        description: of the method.
        method_link: a paper or page about the method.
        uses_lidar_data: the method used WOMD's lidar data.
        uses_camera_data: the method used WOMD's camera data.
        uses_public_model_pretraining: the method started from public weights.
        num_model_parameters: a number with suffix, "200K", "7M".
        public_model_names: the public models used.
        acknowledge_complies_with_closed_loop_requirement: the simulation was closed loop.
    """

    submission_type: int = 1
    account_name: str = ""
    unique_method_name: str = ""
    authors: tuple[str, ...] = ()
    affiliation: str = ""
    description: str = ""
    method_link: str = ""
    uses_lidar_data: bool | None = None
    uses_camera_data: bool | None = None
    uses_public_model_pretraining: bool | None = None
    num_model_parameters: str = ""
    public_model_names: tuple[str, ...] = ()
    acknowledge_complies_with_closed_loop_requirement: bool | None = None


_SUBMISSION_TYPE = 2 << 3 | wire.VARINT
_TEXTS = {
    3: "account_name",
    4: "unique_method_name",
    6: "affiliation",
    7: "description",
    8: "method_link",
    12: "num_model_parameters",
}
_LISTS = {5: "authors", 13: "public_model_names"}
_FLAGS = {
    9: "uses_lidar_data",
    10: "uses_camera_data",
    11: "uses_public_model_pretraining",
    14: "acknowledge_complies_with_closed_loop_requirement",
}


def read_metadata(source: Source, *, where: str, size: int | None = None) -> SubmissionMetadata:
    """The metadata of a submission; its rollouts are hopped over.

    Raises:
        FormatError: the file is truncated, damaged or of another kind.
    """
    stream, end = _open(source, size)
    found: dict[str, Any] = {}
    for field in _fields(stream, 0, end, where):
        _collect(found, field, stream, where)
        stream.seek(field.stop)
    return _metadata(found)


class Message(NamedTuple):
    """One `ScenarioRollouts` of a file.

    Attributes:
        offset: its first byte in the file.
        length: its bytes.
        content: these bytes, serialized; None where there are more than was asked for.
    """

    offset: int
    length: int
    content: bytes | None


def iter_parts(
    source: Source, *, where: str, size: int | None = None, max_message: int = MAX_MESSAGE_BYTES
) -> Iterator[Message | SubmissionMetadata]:
    """Everything in a file, in one pass forwards: its messages, then its metadata.

    A bare `ScenarioRollouts` is one message at offset 0, without metadata.

    Args:
        source: bytes, or a buffered stream at its first byte, which is only read forwards.
        where: the file, for errors.
        size: length of the stream in bytes, where its end cannot be sought.
        max_message: longer messages are passed over.

    Raises:
        FormatError: the file is truncated, damaged or of another kind.
    """
    stream, end = _open(source, size)
    if _is_bare(stream, end, where):
        yield Message(0, end, _read_or_pass(stream, end, max_message, where))
        return
    found: dict[str, Any] = {}
    for field in _fields(stream, 0, end, where):
        length = field.stop - field.start
        if field.tag == _SCENARIO_ROLLOUTS:
            content = _read_or_pass(stream, length, max_message, where)
            yield Message(field.start, length, content)
        elif not _collect(found, field, stream, where):
            _pass(stream, length, where)
    yield _metadata(found)


def _read_or_pass(stream: BinaryIO, length: int, most: int, where: str) -> bytes | None:
    if length <= most:
        return _read(stream, length, where)
    _pass(stream, length, where)
    return None


def _pass(stream: BinaryIO, length: int, where: str) -> None:
    for start in range(0, length, _PIECE_BYTES):
        _read(stream, min(_PIECE_BYTES, length - start), where)


def _collect(found: dict[str, Any], field: _Field, stream: BinaryIO, where: str) -> bool:
    """Add a field of the metadata to `found`; whether its value was read from the stream."""
    number, wire_type = field.tag >> 3, field.tag & 7
    if field.tag == _SUBMISSION_TYPE:
        found["submission_type"] = field.value
    elif number in _FLAGS and wire_type == wire.VARINT:
        found[_FLAGS[number]] = bool(field.value)
    elif (number in _TEXTS or number in _LISTS) and wire_type == wire.LENGTH_DELIMITED:
        name = _TEXTS.get(number) or _LISTS[number]
        if field.stop - field.start > _MAX_TEXT_BYTES:
            raise FormatError(f"{name} is longer than {_MAX_TEXT_BYTES} bytes", where=where)
        text = _text(_read(stream, field.stop - field.start, where), name, where)
        if number in _LISTS:
            listed = found.setdefault(name, [])
            if len(listed) == _MAX_LISTED:
                raise FormatError(f"more than {_MAX_LISTED} {name}", where=where)
            listed.append(text)
        else:
            found[name] = text
        return True
    return False


def _metadata(found: dict[str, Any]) -> SubmissionMetadata:
    lists = {name: tuple(found.get(name, ())) for name in _LISTS.values()}
    return SubmissionMetadata(**{"submission_type": 0, **found, **lists})


def encode_metadata(metadata: SubmissionMetadata) -> bytes:
    """The metadata as fields of a `SimAgentsChallengeSubmission`, in the order of their numbers."""
    fields = {
        2: wire.encode_varint(_SUBMISSION_TYPE) + wire.encode_varint(metadata.submission_type)
    }
    for number, name in _TEXTS.items():
        if text := getattr(metadata, name):
            fields[number] = wire.encode_block(number, text.encode())
    for number, name in _LISTS.items():
        fields[number] = b"".join(
            wire.encode_block(number, text.encode()) for text in getattr(metadata, name)
        )
    for number, name in _FLAGS.items():
        if (flag := getattr(metadata, name)) is not None:
            fields[number] = wire.encode_tag(number, wire.VARINT) + wire.encode_varint(int(flag))
    return b"".join(fields[number] for number in sorted(fields))


def write_submission(
    path: str | os.PathLike[str], rollouts: Iterable[Rollouts], metadata: SubmissionMetadata
) -> Path:
    """Write one shard, a scenario at a time: the file appears when it is complete.

    Args:
        path: named `<name>.binproto` or `<name>.binproto-00000-of-00150`.
        rollouts: of different scenarios; consumed one by one.
        metadata: the same in every shard of a submission.

    Raises:
        RolloutsError: a name that the challenge server refuses, or more than the 2 GB of one shard.
    """
    path = Path(path)
    if not FILE_NAME.fullmatch(path.name):
        raise RolloutsError(
            "not the name of a submission shard",
            where=str(path),
            mend="call it <name>.binproto or <name>.binproto-00000-of-00150",
        )
    tail = encode_metadata(metadata)
    size = len(tail)
    with atomic_write(path) as stream:
        for one in rollouts:
            message = encode_scenario_rollouts(one)
            head = message_head(len(message))
            size += len(head) + len(message)
            if size > MAX_MESSAGE_BYTES:
                raise RolloutsError(
                    f"more than 2 GB with scenario {one.scenario_id}",
                    where=str(path),
                    mend="write fewer scenarios a shard",
                )
            stream.write(head)
            stream.write(message)
        stream.write(tail)
    return path
