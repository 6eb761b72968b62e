"""`waymo.open_dataset.Scenario` messages (WOMD's `scenario.proto` and `map.proto`) as arrays.

Generated protobuf classes parse a scene in a few milliseconds, but pulling its numbers out through
Python attributes takes ten times as long. Kernels therefore read the wire format straight into the
arrays of a `Scenario`: first an outline of each kind of message counts what it holds, then, into
arrays of the right size, a second walk fills in the values. No claim of the data is trusted: what
is allocated is bounded by what was counted, and every read by the end of its message.

What protobuf parsers agree on holds here too: of a singular field the last value wins, a singular
message given twice is merged, of a oneof the member given last stays, an enum's undefined numbers
are dropped, repeated numbers may be packed or not, and unknown fields are skipped (among them lane
boundaries, laser data and camera tokens, which `Scenario` does not keep).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from wosac_toolkit.errors import FormatError, ScenarioError
from wosac_toolkit.io.wire import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    encode_block,
    encode_tag,
    encode_varint,
)
from wosac_toolkit.io.wire_kernels import (
    ByteArray,
    Integer,
    as_array,
    bits32,
    bits64,
    block,
    check,
    count_varints,
    fixed32,
    fixed64,
    skip,
    varint,
)
from wosac_toolkit.kernels.jit import kernel
from wosac_toolkit.scenario import (
    BoolArray,
    Int8Array,
    Int64Array,
    Links,
    MapFeatureKind,
    RoadMap,
    Scenario,
    Tracks,
    TrafficLights,
)

# Floats are moved as bits, from the bytes of the message into such views of the float arrays.
Bits32: TypeAlias = npt.NDArray[np.uint32]
Bits64: TypeAlias = npt.NDArray[np.uint64]

# Tags, field number << 3 | wire type, of the fields that are kept.
_TIMESTAMP = 1 << 3 | FIXED64
_TIMESTAMPS = 1 << 3 | LENGTH_DELIMITED
_TRACK = 2 << 3 | LENGTH_DELIMITED
_OBJECT_OF_INTEREST = 4 << 3 | VARINT
_OBJECTS_OF_INTEREST = 4 << 3 | LENGTH_DELIMITED
_SCENARIO_ID = 5 << 3 | LENGTH_DELIMITED
_SDC_TRACK_INDEX = 6 << 3 | VARINT
_DYNAMIC_MAP_STATE = 7 << 3 | LENGTH_DELIMITED
_MAP_FEATURE = 8 << 3 | LENGTH_DELIMITED
_CURRENT_TIME_INDEX = 10 << 3 | VARINT
_TRACK_TO_PREDICT = 11 << 3 | LENGTH_DELIMITED

_TRACK_ID = 1 << 3 | VARINT
_TRACK_TYPE = 2 << 3 | VARINT
_TRACK_STATE = 3 << 3 | LENGTH_DELIMITED

_CENTER_X = 2 << 3 | FIXED64
_CENTER_Y = 3 << 3 | FIXED64
_CENTER_Z = 4 << 3 | FIXED64
_LENGTH = 5 << 3 | FIXED32
_WIDTH = 6 << 3 | FIXED32
_HEIGHT = 7 << 3 | FIXED32
_HEADING = 8 << 3 | FIXED32
_VELOCITY_X = 9 << 3 | FIXED32
_VELOCITY_Y = 10 << 3 | FIXED32
_VALID = 11 << 3 | VARINT

_PREDICT_INDEX = 1 << 3 | VARINT
_PREDICT_DIFFICULTY = 2 << 3 | VARINT

_LANE_STATE = 1 << 3 | LENGTH_DELIMITED
_SIGNAL_LANE = 1 << 3 | VARINT
_SIGNAL_STATE = 2 << 3 | VARINT
_SIGNAL_STOP_POINT = 3 << 3 | LENGTH_DELIMITED

_POINT_X = 1 << 3 | FIXED64
_POINT_Y = 2 << 3 | FIXED64
_POINT_Z = 3 << 3 | FIXED64

_FEATURE_ID = 1 << 3 | VARINT

_LANE_SPEED_LIMIT = 1 << 3 | FIXED64
_LANE_TYPE = 2 << 3 | VARINT
_LANE_INTERPOLATING = 3 << 3 | VARINT
_LANE_POINT = 8 << 3 | LENGTH_DELIMITED
_LANE_ENTRY = 9 << 3 | VARINT
_LANE_ENTRIES = 9 << 3 | LENGTH_DELIMITED
_LANE_EXIT = 10 << 3 | VARINT
_LANE_EXITS = 10 << 3 | LENGTH_DELIMITED
_LANE_LEFT_NEIGHBOR = 11 << 3 | LENGTH_DELIMITED
_LANE_RIGHT_NEIGHBOR = 12 << 3 | LENGTH_DELIMITED

_LINE_TYPE = 1 << 3 | VARINT
_LINE_POINT = 2 << 3 | LENGTH_DELIMITED
_POLYGON_POINT = 1 << 3 | LENGTH_DELIMITED

_SIGN_LANE = 1 << 3 | VARINT
_SIGN_LANES = 1 << 3 | LENGTH_DELIMITED
_SIGN_POSITION = 2 << 3 | LENGTH_DELIMITED

# Nearly all states and points have every field once, in ascending order, and then differ in their
# values alone. These are told by their tags and copied; all others take the general way.
_USUAL_STATE_SIZE = 61
_USUAL_POINT_SIZE = 29

# Members of `MapFeature.feature_data`, as plain numbers for the kernels.
_LANE = int(MapFeatureKind.LANE)
_ROAD_LINE = int(MapFeatureKind.ROAD_LINE)
_ROAD_EDGE = int(MapFeatureKind.ROAD_EDGE)
_STOP_SIGN = int(MapFeatureKind.STOP_SIGN)

# Under which tag each kind of map feature holds its points.
_POINT_TAGS = np.zeros(max(MapFeatureKind) + 1, np.uint8)
_POINT_TAGS[MapFeatureKind.LANE] = _LANE_POINT
_POINT_TAGS[[MapFeatureKind.ROAD_LINE, MapFeatureKind.ROAD_EDGE]] = _LINE_POINT
_POINT_TAGS[MapFeatureKind.STOP_SIGN] = _SIGN_POSITION
_POINT_TAGS[[MapFeatureKind.CROSSWALK, MapFeatureKind.SPEED_BUMP, MapFeatureKind.DRIVEWAY]] = (
    _POLYGON_POINT
)

# What a map feature has any number of.
_POINTS, _ENTRY_LANES, _EXIT_LANES, _STOP_SIGN_LANES, _NEIGHBORS = range(5)

# Last number of each enum; all start at 0 and have no gaps.
_LAST_OBJECT_TYPE = 4
_LAST_DIFFICULTY = 2
_LAST_SIGNAL_STATE = 8
_LAST_LANE_TYPE = 3
_LAST_ROAD_LINE_TYPE = 8
_LAST_ROAD_EDGE_TYPE = 2


def decode_scenario(data: bytes | bytearray | memoryview, *, where: str = "") -> Scenario:
    """The scene that a serialised `Scenario` message holds.

    Args:
        data: the message, one record of a WOMD shard.
        where: file and record, for errors.

    Returns:
        The scene; absent fields have protobuf's defaults (0, False, empty).

    Raises:
        FormatError: the bytes are not a sound `Scenario` message; names the byte.
        ScenarioError: the tracks differ in their number of states.
    """
    raw = as_array(data)
    survey = _survey(raw)
    check(survey.end, "Scenario", where)
    scenario_id = _text(raw[survey.id_start : survey.id_stop], where)
    where = f"{where}: scenario {scenario_id}" if where else f"scenario {scenario_id}"

    timestamps = np.empty(survey.n_timestamps, np.float64)
    objects_of_interest = np.empty(survey.n_interest, np.int64)
    check(_read_lists(raw, timestamps.view(np.uint64), objects_of_interest), "Scenario", where)

    spans = _spans(raw, _TRACK_TO_PREDICT, survey.n_predict)
    tracks_to_predict = np.zeros(survey.n_predict, np.int64)
    difficulties = np.zeros(survey.n_predict, np.int8)
    end = _read_predictions(raw, spans, tracks_to_predict, difficulties)
    check(end, "RequiredPrediction", where)

    return Scenario(
        scenario_id=scenario_id,
        timestamps=timestamps,
        current_time_index=int(survey.current_time_index),
        sdc_track_index=int(survey.sdc_track_index),
        tracks=_decode_tracks(raw, _spans(raw, _TRACK, survey.n_tracks), where),
        tracks_to_predict=tracks_to_predict,
        difficulties=difficulties,
        objects_of_interest=objects_of_interest,
        road_map=_decode_map(raw, _spans(raw, _MAP_FEATURE, survey.n_features), where),
        traffic_lights=_decode_lights(
            raw, _spans(raw, _DYNAMIC_MAP_STATE, survey.n_light_steps), where
        ),
    )


def _text(raw: ByteArray, where: str) -> str:
    try:
        return raw.tobytes().decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(
            "not a valid Scenario message, its scenario_id is not UTF-8",
            where=where,
            mend="the record is damaged or of another kind; fetch or write it again",
        ) from None


def _decode_tracks(raw: ByteArray, spans: Int64Array, where: str) -> Tracks:
    n_tracks = len(spans)
    object_ids = np.zeros(n_tracks, np.int64)
    object_types = np.zeros(n_tracks, np.int8)
    n_states = np.zeros(n_tracks, np.int64)
    check(_outline_tracks(raw, spans, object_ids, object_types, n_states), "Track", where)

    n_steps = int(n_states[0]) if n_tracks else 0
    uneven = np.flatnonzero(n_states != n_steps)
    if len(uneven):
        raise ScenarioError(
            f"{n_states[uneven[0]]} states, but the first track has {n_steps}",
            where=f"{where}, track {object_ids[uneven[0]]}",
            mend="every track must have one state a step; write the record again",
        )
    tracks = Tracks(
        object_ids=object_ids,
        object_types=object_types,
        position=np.zeros((n_tracks, n_steps, 3), np.float64),
        size=np.zeros((n_tracks, n_steps, 3), np.float32),
        heading=np.zeros((n_tracks, n_steps), np.float32),
        velocity=np.zeros((n_tracks, n_steps, 2), np.float32),
        valid=np.zeros((n_tracks, n_steps), np.bool_),
    )
    end = _read_states(
        raw,
        spans,
        tracks.position.view(np.uint64),
        tracks.size.view(np.uint32),
        tracks.heading.view(np.uint32),
        tracks.velocity.view(np.uint32),
        tracks.valid,
    )
    check(end, "ObjectState", where)
    return tracks


def _decode_map(raw: ByteArray, spans: Int64Array, where: str) -> RoadMap:
    n_features = len(spans)
    feature_ids = np.zeros(n_features, np.int64)
    kinds = np.zeros(n_features, np.int8)
    types = np.zeros(n_features, np.int8)
    speed_limit_mph = np.zeros(n_features, np.float64)
    interpolating = np.zeros(n_features, np.bool_)
    offsets = np.zeros((5, n_features + 1), np.int64)
    end = _outline_map(
        raw,
        spans,
        feature_ids,
        kinds,
        types,
        speed_limit_mph.view(np.uint64),
        interpolating,
        offsets,
    )
    check(end, "MapFeature", where)

    points = np.zeros((offsets[_POINTS, -1], 3), np.float64)
    entry_ids = np.empty(offsets[_ENTRY_LANES, -1], np.int64)
    exit_ids = np.empty(offsets[_EXIT_LANES, -1], np.int64)
    sign_ids = np.empty(offsets[_STOP_SIGN_LANES, -1], np.int64)
    neighbors = np.zeros((offsets[_NEIGHBORS, -1], 7), np.int64)
    end = _read_map(raw, spans, points.view(np.uint64), entry_ids, exit_ids, sign_ids, neighbors)
    check(end, "MapFeature", where)
    return RoadMap(
        feature_ids=feature_ids,
        kinds=kinds,
        types=types,
        point_offsets=offsets[_POINTS],
        points=points,
        speed_limit_mph=speed_limit_mph,
        interpolating=interpolating,
        entry_lanes=Links(offsets[_ENTRY_LANES], entry_ids),
        exit_lanes=Links(offsets[_EXIT_LANES], exit_ids),
        stop_sign_lanes=Links(offsets[_STOP_SIGN_LANES], sign_ids),
        # Of each lane the left ones first, as writers put them; the format allows any order.
        neighbors=neighbors[np.lexsort((neighbors[:, 1], neighbors[:, 0]))],
    )


def _decode_lights(raw: ByteArray, spans: Int64Array, where: str) -> TrafficLights:
    step_offsets = np.zeros(len(spans) + 1, np.int64)
    check(_outline_lights(raw, spans, step_offsets), "DynamicMapState", where)
    lights = TrafficLights(
        step_offsets=step_offsets,
        lane_ids=np.zeros(step_offsets[-1], np.int64),
        states=np.zeros(step_offsets[-1], np.int8),
        stop_points=np.zeros((step_offsets[-1], 3), np.float64),
    )
    end = _read_lights(
        raw, spans, lights.lane_ids, lights.states, lights.stop_points.view(np.uint64)
    )
    check(end, "TrafficSignalLaneState", where)
    return lights


class _Survey(NamedTuple):
    """What the top level of a message holds; `end` is poisoned where it is malformed."""

    n_timestamps: int
    n_tracks: int
    n_interest: int
    n_light_steps: int
    n_features: int
    n_predict: int
    id_start: int
    id_stop: int
    sdc_track_index: int
    current_time_index: int
    end: int


@kernel
def _survey(data: ByteArray) -> _Survey:
    n_timestamps = n_tracks = n_interest = n_light_steps = n_features = n_predict = 0
    id_start = id_stop = sdc_track_index = current_time_index = 0
    pos, end = 0, len(data)
    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag == _TRACK:
            _, pos = block(data, pos, end)
            n_tracks += 1
        elif tag == _MAP_FEATURE:
            _, pos = block(data, pos, end)
            n_features += 1
        elif tag == _DYNAMIC_MAP_STATE:
            _, pos = block(data, pos, end)
            n_light_steps += 1
        elif tag == _TRACK_TO_PREDICT:
            _, pos = block(data, pos, end)
            n_predict += 1
        elif tag in (_TIMESTAMP, _TIMESTAMPS):
            n, pos = _count_doubles(data, pos, end, tag)
            n_timestamps += n
        elif tag in (_OBJECT_OF_INTEREST, _OBJECTS_OF_INTEREST):
            n, pos = _count_ints(data, pos, end, tag)
            n_interest += n
        elif tag == _SCENARIO_ID:
            id_start, pos = block(data, pos, end)
            id_stop = pos
        elif tag == _SDC_TRACK_INDEX:
            value, pos = varint(data, pos, end)
            sdc_track_index = _int32(value)
        elif tag == _CURRENT_TIME_INDEX:
            value, pos = varint(data, pos, end)
            current_time_index = _int32(value)
        else:
            pos = skip(data, pos, end, tag)
    return _Survey(
        n_timestamps,
        n_tracks,
        n_interest,
        n_light_steps,
        n_features,
        n_predict,
        id_start,
        id_stop,
        sdc_track_index,
        current_time_index,
        pos,
    )


@kernel
def _spans(data: ByteArray, wanted: Integer, n: Integer) -> Int64Array:
    """First byte of each of the `n` top-level messages with the tag `wanted`, and the one after."""
    spans = np.zeros((n, 2), np.int64)
    i, pos, end = 0, 0, len(data)
    while i < n and pos < end:
        tag, pos = varint(data, pos, end)
        if tag == wanted:
            spans[i, 0], pos = block(data, pos, end)
            spans[i, 1] = pos
            i += 1
        else:
            pos = skip(data, pos, end, tag)
    return spans


@kernel
def _count_doubles(
    data: ByteArray, pos: Integer, end: Integer, tag: Integer
) -> tuple[Integer, Integer]:
    if tag & 7 == FIXED64:
        _, pos = fixed64(data, pos, end)
        return 1, pos
    start, pos = block(data, pos, end)
    # A list that ends within a number is found by `fixed64` when it is read.
    return (pos - start + 7) // 8, pos


@kernel
def _read_doubles(
    data: ByteArray, pos: Integer, end: Integer, tag: Integer, out: Bits64, n: Integer
) -> tuple[Integer, Integer]:
    if tag & 7 == FIXED64:
        out[n], pos = fixed64(data, pos, end)
        return n + 1, pos
    pos, end = block(data, pos, end)
    while pos < end:
        out[n], pos = fixed64(data, pos, end)
        n += 1
    return n, pos


@kernel
def _count_ints(
    data: ByteArray, pos: Integer, end: Integer, tag: Integer
) -> tuple[Integer, Integer]:
    if tag & 7 == VARINT:
        _, pos = varint(data, pos, end)
        return 1, pos
    start, pos = block(data, pos, end)
    n, pos = count_varints(data, start, pos)
    return n, pos


@kernel
def _read_ints(
    data: ByteArray, pos: Integer, end: Integer, tag: Integer, out: Int64Array, n: Integer
) -> tuple[Integer, Integer]:
    if tag & 7 == VARINT:
        out[n], pos = varint(data, pos, end)
        return n + 1, pos
    pos, end = block(data, pos, end)
    while pos < end:
        out[n], pos = varint(data, pos, end)
        n += 1
    return n, pos


@kernel
def _int32(value: Integer) -> Integer:
    """What an int32 or enum field makes of a varint: its low 32 bits."""
    return np.int64(np.int32(value))


@kernel
def _set_enum(out: Int8Array, row: Integer, value: Integer, last: Integer) -> None:
    number = _int32(value)
    if 0 <= number <= last:
        out[row] = number


@kernel
def _read_lists(data: ByteArray, timestamps: Bits64, objects_of_interest: Int64Array) -> Integer:
    n_timestamps = n_interest = 0
    pos, end = 0, len(data)
    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag in (_TIMESTAMP, _TIMESTAMPS):
            n_timestamps, pos = _read_doubles(data, pos, end, tag, timestamps, n_timestamps)
        elif tag in (_OBJECT_OF_INTEREST, _OBJECTS_OF_INTEREST):
            n_interest, pos = _read_ints(data, pos, end, tag, objects_of_interest, n_interest)
        else:
            pos = skip(data, pos, end, tag)
    for i in range(n_interest):
        objects_of_interest[i] = _int32(objects_of_interest[i])
    return pos


@kernel
def _read_predictions(
    data: ByteArray, spans: Int64Array, track_indices: Int64Array, difficulties: Int8Array
) -> Integer:
    for row in range(len(spans)):
        pos, end = spans[row, 0], spans[row, 1]
        while pos < end:
            tag, pos = varint(data, pos, end)
            if tag == _PREDICT_INDEX:
                value, pos = varint(data, pos, end)
                track_indices[row] = _int32(value)
            elif tag == _PREDICT_DIFFICULTY:
                value, pos = varint(data, pos, end)
                _set_enum(difficulties, row, value, _LAST_DIFFICULTY)
            else:
                pos = skip(data, pos, end, tag)
        if pos != end:
            return pos
    return 0


@kernel
def _outline_tracks(
    data: ByteArray,
    spans: Int64Array,
    object_ids: Int64Array,
    object_types: Int8Array,
    n_states: Int64Array,
) -> Integer:
    for row in range(len(spans)):
        pos, end = spans[row, 0], spans[row, 1]
        while pos < end:
            if _is_usual_state(data, pos, end):
                n_states[row] += 1
                pos += _USUAL_STATE_SIZE
                continue
            tag, pos = varint(data, pos, end)
            if tag == _TRACK_STATE:
                _, pos = block(data, pos, end)
                n_states[row] += 1
            elif tag == _TRACK_ID:
                value, pos = varint(data, pos, end)
                object_ids[row] = _int32(value)
            elif tag == _TRACK_TYPE:
                value, pos = varint(data, pos, end)
                _set_enum(object_types, row, value, _LAST_OBJECT_TYPE)
            else:
                pos = skip(data, pos, end, tag)
        if pos != end:
            return pos
    return 0


@kernel
def _read_states(
    data: ByteArray,
    spans: Int64Array,
    position: Bits64,
    size: Bits32,
    heading: Bits32,
    velocity: Bits32,
    valid: BoolArray,
) -> Integer:
    for row in range(len(spans)):
        pos, end = spans[row, 0], spans[row, 1]
        step = 0
        while pos < end:
            if _is_usual_state(data, pos, end):
                _copy_usual_state(data, pos, row, step, position, size, heading, velocity, valid)
                step += 1
                pos += _USUAL_STATE_SIZE
                continue
            tag, pos = varint(data, pos, end)
            if tag == _TRACK_STATE:
                start, pos = block(data, pos, end)
                pos = _read_state(
                    data, start, pos, row, step, position, size, heading, velocity, valid
                )
                step += 1
            else:
                pos = skip(data, pos, end, tag)
        if pos != end:
            return pos
    return 0


@kernel
def _is_usual_state(data: ByteArray, pos: Integer, end: Integer) -> bool:
    """Whether the `Track.states` at `pos` has all its fields once, in ascending order."""
    return bool(
        end - pos >= _USUAL_STATE_SIZE
        and data[pos] == _TRACK_STATE
        and data[pos + 1] == _USUAL_STATE_SIZE - 2
        and data[pos + 2] == _CENTER_X
        and data[pos + 11] == _CENTER_Y
        and data[pos + 20] == _CENTER_Z
        and data[pos + 29] == _LENGTH
        and data[pos + 34] == _WIDTH
        and data[pos + 39] == _HEIGHT
        and data[pos + 44] == _HEADING
        and data[pos + 49] == _VELOCITY_X
        and data[pos + 54] == _VELOCITY_Y
        and data[pos + 59] == _VALID
        and data[pos + 60] <= 1
    )


@kernel
def _copy_usual_state(
    data: ByteArray,
    pos: Integer,
    row: Integer,
    step: Integer,
    position: Bits64,
    size: Bits32,
    heading: Bits32,
    velocity: Bits32,
    valid: BoolArray,
) -> None:
    position[row, step, 0] = bits64(data, pos + 3)
    position[row, step, 1] = bits64(data, pos + 12)
    position[row, step, 2] = bits64(data, pos + 21)
    size[row, step, 0] = bits32(data, pos + 30)
    size[row, step, 1] = bits32(data, pos + 35)
    size[row, step, 2] = bits32(data, pos + 40)
    heading[row, step] = bits32(data, pos + 45)
    velocity[row, step, 0] = bits32(data, pos + 50)
    velocity[row, step, 1] = bits32(data, pos + 55)
    valid[row, step] = data[pos + 60] == 1


@kernel
def _read_state(
    data: ByteArray,
    pos: Integer,
    end: Integer,
    row: Integer,
    step: Integer,
    position: Bits64,
    size: Bits32,
    heading: Bits32,
    velocity: Bits32,
    valid: BoolArray,
) -> Integer:
    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag in (_CENTER_X, _CENTER_Y, _CENTER_Z):
            position[row, step, (tag - _CENTER_X) >> 3], pos = fixed64(data, pos, end)
        elif tag in (_LENGTH, _WIDTH, _HEIGHT):
            size[row, step, (tag - _LENGTH) >> 3], pos = fixed32(data, pos, end)
        elif tag == _HEADING:
            heading[row, step], pos = fixed32(data, pos, end)
        elif tag in (_VELOCITY_X, _VELOCITY_Y):
            velocity[row, step, (tag - _VELOCITY_X) >> 3], pos = fixed32(data, pos, end)
        elif tag == _VALID:
            value, pos = varint(data, pos, end)
            valid[row, step] = value != 0
        else:
            pos = skip(data, pos, end, tag)
    return pos


@kernel
def _is_usual_point(data: ByteArray, pos: Integer, end: Integer, tag: Integer) -> bool:
    """Whether the field at `pos` is a `tag` with a `MapPoint` of x, y and z in this order."""
    return bool(
        end - pos >= _USUAL_POINT_SIZE
        and data[pos] == tag
        and data[pos + 1] == _USUAL_POINT_SIZE - 2
        and data[pos + 2] == _POINT_X
        and data[pos + 11] == _POINT_Y
        and data[pos + 20] == _POINT_Z
    )


@kernel
def _copy_usual_point(data: ByteArray, pos: Integer, points: Bits64, row: Integer) -> None:
    points[row, 0] = bits64(data, pos + 3)
    points[row, 1] = bits64(data, pos + 12)
    points[row, 2] = bits64(data, pos + 21)


@kernel
def _read_point(
    data: ByteArray, pos: Integer, end: Integer, points: Bits64, row: Integer
) -> Integer:
    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag in (_POINT_X, _POINT_Y, _POINT_Z):
            points[row, (tag - _POINT_X) >> 3], pos = fixed64(data, pos, end)
        else:
            pos = skip(data, pos, end, tag)
    return pos


@kernel
def _feature_data(data: ByteArray, pos: Integer, end: Integer) -> tuple[Integer, Integer]:
    """Which member of `feature_data` a `MapFeature` holds, and where its value begins.

    A member that is set after another one replaces it, so what comes before that does not count.
    """
    kind = 0
    first = end
    while pos < end:
        field = pos
        tag, pos = varint(data, pos, end)
        number = tag >> 3
        if (
            tag & 7 == LENGTH_DELIMITED
            and number != kind
            and (3 <= number <= 5 or 7 <= number <= 10)
        ):
            kind = number
            first = field
        pos = skip(data, pos, end, tag)
    return kind, first


@kernel
def _outline_map(
    data: ByteArray,
    spans: Int64Array,
    feature_ids: Int64Array,
    kinds: Int8Array,
    types: Int8Array,
    speed_limit_mph: Bits64,
    interpolating: BoolArray,
    offsets: Int64Array,
) -> Integer:
    """Fill in what each feature has one of, and the `offsets` [5, M + 1] of what it has more of."""
    counts = np.empty(5, np.int64)
    for row in range(len(spans)):
        pos, end = spans[row, 0], spans[row, 1]
        kind, first = _feature_data(data, pos, end)
        kinds[row] = kind
        counts[:] = 0
        while pos < end:
            field = pos
            tag, pos = varint(data, pos, end)
            if tag == _FEATURE_ID:
                feature_ids[row], pos = varint(data, pos, end)
            elif field < first or tag != kind << 3 | LENGTH_DELIMITED:
                pos = skip(data, pos, end, tag)
            else:
                start, pos = block(data, pos, end)
                if kind == _LANE:
                    pos = _outline_lane(
                        data, start, pos, row, types, speed_limit_mph, interpolating, counts
                    )
                elif kind == _STOP_SIGN:
                    pos = _outline_stop_sign(data, start, pos, counts)
                elif kind == _ROAD_LINE:
                    pos = _outline_line(data, start, pos, row, types, _LAST_ROAD_LINE_TYPE, counts)
                elif kind == _ROAD_EDGE:
                    pos = _outline_line(data, start, pos, row, types, _LAST_ROAD_EDGE_TYPE, counts)
                else:
                    pos = _outline_polygon(data, start, pos, counts)
        if pos != end:
            return pos
        for i in range(len(counts)):
            offsets[i, row + 1] = offsets[i, row] + counts[i]
    return 0


@kernel
def _outline_lane(
    data: ByteArray,
    pos: Integer,
    end: Integer,
    row: Integer,
    types: Int8Array,
    speed_limit_mph: Bits64,
    interpolating: BoolArray,
    counts: Int64Array,
) -> Integer:
    while pos < end:
        if _is_usual_point(data, pos, end, _LANE_POINT):
            counts[_POINTS] += 1
            pos += _USUAL_POINT_SIZE
            continue
        tag, pos = varint(data, pos, end)
        if tag == _LANE_POINT:
            counts[_POINTS] += 1
            _, pos = block(data, pos, end)
        elif tag in (_LANE_ENTRY, _LANE_ENTRIES):
            n, pos = _count_ints(data, pos, end, tag)
            counts[_ENTRY_LANES] += n
        elif tag in (_LANE_EXIT, _LANE_EXITS):
            n, pos = _count_ints(data, pos, end, tag)
            counts[_EXIT_LANES] += n
        elif tag in (_LANE_LEFT_NEIGHBOR, _LANE_RIGHT_NEIGHBOR):
            counts[_NEIGHBORS] += 1
            _, pos = block(data, pos, end)
        elif tag == _LANE_TYPE:
            value, pos = varint(data, pos, end)
            _set_enum(types, row, value, _LAST_LANE_TYPE)
        elif tag == _LANE_SPEED_LIMIT:
            speed_limit_mph[row], pos = fixed64(data, pos, end)
        elif tag == _LANE_INTERPOLATING:
            value, pos = varint(data, pos, end)
            interpolating[row] = value != 0
        else:
            pos = skip(data, pos, end, tag)
    return pos


@kernel
def _outline_stop_sign(data: ByteArray, pos: Integer, end: Integer, counts: Int64Array) -> Integer:
    counts[_POINTS] = 1  # repeated positions merge
    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag in (_SIGN_LANE, _SIGN_LANES):
            n, pos = _count_ints(data, pos, end, tag)
            counts[_STOP_SIGN_LANES] += n
        else:
            pos = skip(data, pos, end, tag)
    return pos


@kernel
def _outline_line(
    data: ByteArray,
    pos: Integer,
    end: Integer,
    row: Integer,
    types: Int8Array,
    last_type: Integer,
    counts: Int64Array,
) -> Integer:
    while pos < end:
        if _is_usual_point(data, pos, end, _LINE_POINT):
            counts[_POINTS] += 1
            pos += _USUAL_POINT_SIZE
            continue
        tag, pos = varint(data, pos, end)
        if tag == _LINE_POINT:
            counts[_POINTS] += 1
            _, pos = block(data, pos, end)
        elif tag == _LINE_TYPE:
            value, pos = varint(data, pos, end)
            _set_enum(types, row, value, last_type)
        else:
            pos = skip(data, pos, end, tag)
    return pos


@kernel
def _outline_polygon(data: ByteArray, pos: Integer, end: Integer, counts: Int64Array) -> Integer:
    while pos < end:
        if _is_usual_point(data, pos, end, _POLYGON_POINT):
            counts[_POINTS] += 1
            pos += _USUAL_POINT_SIZE
            continue
        tag, pos = varint(data, pos, end)
        if tag == _POLYGON_POINT:
            counts[_POINTS] += 1
        pos = skip(data, pos, end, tag)
    return pos


@kernel
def _read_map(
    data: ByteArray,
    spans: Int64Array,
    points: Bits64,
    entry_ids: Int64Array,
    exit_ids: Int64Array,
    sign_ids: Int64Array,
    neighbors: Int64Array,
) -> Integer:
    done = np.zeros(5, np.int64)
    for row in range(len(spans)):
        pos, end = spans[row, 0], spans[row, 1]
        kind, first = _feature_data(data, pos, end)
        while pos < end:
            field = pos
            tag, pos = varint(data, pos, end)
            if field < first or tag != kind << 3 | LENGTH_DELIMITED:
                pos = skip(data, pos, end, tag)
                continue
            start, pos = block(data, pos, end)
            if kind == _LANE:
                pos = _read_lane(
                    data, start, pos, row, points, entry_ids, exit_ids, neighbors, done
                )
            elif kind == _STOP_SIGN:
                pos = _read_stop_sign(data, start, pos, points, sign_ids, done)
            elif kind in (_ROAD_LINE, _ROAD_EDGE):
                pos = _read_points(data, start, pos, _LINE_POINT, points, done)
            else:
                pos = _read_points(data, start, pos, _POLYGON_POINT, points, done)
        if pos != end:
            return pos
        if kind == _STOP_SIGN:
            done[_POINTS] += 1
    return 0


@kernel
def _read_lane(
    data: ByteArray,
    pos: Integer,
    end: Integer,
    row: Integer,
    points: Bits64,
    entry_ids: Int64Array,
    exit_ids: Int64Array,
    neighbors: Int64Array,
    done: Int64Array,
) -> Integer:
    while pos < end:
        if _is_usual_point(data, pos, end, _LANE_POINT):
            _copy_usual_point(data, pos, points, done[_POINTS])
            done[_POINTS] += 1
            pos += _USUAL_POINT_SIZE
            continue
        tag, pos = varint(data, pos, end)
        if tag == _LANE_POINT:
            start, pos = block(data, pos, end)
            pos = _read_point(data, start, pos, points, done[_POINTS])
            done[_POINTS] += 1
        elif tag in (_LANE_ENTRY, _LANE_ENTRIES):
            done[_ENTRY_LANES], pos = _read_ints(data, pos, end, tag, entry_ids, done[_ENTRY_LANES])
        elif tag in (_LANE_EXIT, _LANE_EXITS):
            done[_EXIT_LANES], pos = _read_ints(data, pos, end, tag, exit_ids, done[_EXIT_LANES])
        elif tag in (_LANE_LEFT_NEIGHBOR, _LANE_RIGHT_NEIGHBOR):
            neighbor = neighbors[done[_NEIGHBORS]]
            done[_NEIGHBORS] += 1
            neighbor[0] = row
            neighbor[1] = tag == _LANE_RIGHT_NEIGHBOR
            start, pos = block(data, pos, end)
            pos = _read_neighbor(data, start, pos, neighbor)
        else:
            pos = skip(data, pos, end, tag)
    return pos


@kernel
def _read_stop_sign(
    data: ByteArray,
    pos: Integer,
    end: Integer,
    points: Bits64,
    sign_ids: Int64Array,
    done: Int64Array,
) -> Integer:
    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag in (_SIGN_LANE, _SIGN_LANES):
            done[_STOP_SIGN_LANES], pos = _read_ints(
                data, pos, end, tag, sign_ids, done[_STOP_SIGN_LANES]
            )
        elif tag == _SIGN_POSITION:
            start, pos = block(data, pos, end)
            pos = _read_point(data, start, pos, points, done[_POINTS])
        else:
            pos = skip(data, pos, end, tag)
    return pos


@kernel
def _read_points(
    data: ByteArray, pos: Integer, end: Integer, wanted: Integer, points: Bits64, done: Int64Array
) -> Integer:
    while pos < end:
        if _is_usual_point(data, pos, end, wanted):
            _copy_usual_point(data, pos, points, done[_POINTS])
            done[_POINTS] += 1
            pos += _USUAL_POINT_SIZE
            continue
        tag, pos = varint(data, pos, end)
        if tag == wanted:
            start, pos = block(data, pos, end)
            pos = _read_point(data, start, pos, points, done[_POINTS])
            done[_POINTS] += 1
        else:
            pos = skip(data, pos, end, tag)
    return pos


@kernel
def _read_neighbor(data: ByteArray, pos: Integer, end: Integer, neighbor: Int64Array) -> Integer:
    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag & 7 == VARINT and 1 <= tag >> 3 <= 5:
            value, pos = varint(data, pos, end)
            column = (tag >> 3) + 1
            neighbor[column] = value if column == 2 else _int32(value)
        else:
            pos = skip(data, pos, end, tag)
    return pos


@kernel
def _outline_lights(data: ByteArray, spans: Int64Array, step_offsets: Int64Array) -> Integer:
    for step in range(len(spans)):
        pos, end = spans[step, 0], spans[step, 1]
        n_lights = 0
        while pos < end:
            tag, pos = varint(data, pos, end)
            if tag == _LANE_STATE:
                n_lights += 1
            pos = skip(data, pos, end, tag)
        if pos != end:
            return pos
        step_offsets[step + 1] = step_offsets[step] + n_lights
    return 0


@kernel
def _read_lights(
    data: ByteArray, spans: Int64Array, lane_ids: Int64Array, states: Int8Array, stop_points: Bits64
) -> Integer:
    light = 0
    for step in range(len(spans)):
        pos, end = spans[step, 0], spans[step, 1]
        while pos < end:
            tag, pos = varint(data, pos, end)
            if tag != _LANE_STATE:
                pos = skip(data, pos, end, tag)
                continue
            start, pos = block(data, pos, end)
            stop = pos
            pos = start
            while pos < stop:
                tag, pos = varint(data, pos, stop)
                if tag == _SIGNAL_LANE:
                    lane_ids[light], pos = varint(data, pos, stop)
                elif tag == _SIGNAL_STATE:
                    value, pos = varint(data, pos, stop)
                    _set_enum(states, light, value, _LAST_SIGNAL_STATE)
                elif tag == _SIGNAL_STOP_POINT:
                    start, pos = block(data, pos, stop)
                    pos = _read_point(data, start, pos, stop_points, light)
                else:
                    pos = skip(data, pos, stop, tag)
            light += 1
        if pos != end:
            return pos
    return 0


def encode_scenario(scenario: Scenario) -> bytes:
    """`scenario` as a serialised `Scenario` message, which `decode_scenario` reads to the same.

    Fields come in ascending number, as the official package writes them. Of an invalid state only
    the values that are not zero are written.
    """
    return b"".join(
        (
            _fixed_rows((_TIMESTAMP, scenario.timestamps)).tobytes(),
            *(encode_block(2, track) for track in _encode_tracks(scenario.tracks)),
            *(_encode_int(4, object_id) for object_id in scenario.objects_of_interest.tolist()),
            encode_block(5, scenario.scenario_id.encode()),
            _encode_int(6, scenario.sdc_track_index),
            *(encode_block(7, step) for step in _encode_lights(scenario.traffic_lights)),
            *(encode_block(8, feature) for feature in _encode_map(scenario.road_map)),
            _encode_int(10, scenario.current_time_index),
            *(
                encode_block(11, _encode_int(1, track) + _encode_int(2, difficulty))
                for track, difficulty in zip(
                    scenario.tracks_to_predict.tolist(), scenario.difficulties.tolist(), strict=True
                )
            ),
        )
    )


def _encode_int(field: int, value: int) -> bytes:
    return encode_tag(field, VARINT) + encode_varint(value)


# How the values of a field of each wire type are laid out; of varints only booleans are.
_LAYOUTS: dict[int, np.dtype[Any]] = {
    FIXED64: np.dtype("<f8"),
    FIXED32: np.dtype("<f4"),
    VARINT: np.dtype("?"),
}


def _fixed_rows(*columns: tuple[int, npt.NDArray[np.generic]]) -> ByteArray:
    """One row of bytes an element of the columns: each tag, of one byte, before its value."""
    parts: list[ByteArray] = []
    for tag, values in columns:
        layout = _LAYOUTS[tag & 7]
        raw = np.ascontiguousarray(values, layout).view(np.uint8)
        parts.append(np.full((len(values), 1), tag, np.uint8))
        parts.append(raw.reshape(len(values), layout.itemsize))
    return np.concatenate(parts, axis=1)


def _encode_points(points: npt.NDArray[np.float64]) -> ByteArray:
    """A row of bytes a `MapPoint`."""
    return _fixed_rows((_POINT_X, points[:, 0]), (_POINT_Y, points[:, 1]), (_POINT_Z, points[:, 2]))


def _encode_tracks(tracks: Tracks) -> list[bytes]:
    n_tracks, n_steps = tracks.valid.shape
    position = tracks.position.reshape(-1, 3)
    size = tracks.size.reshape(-1, 3)
    velocity = tracks.velocity.reshape(-1, 2)
    valid = tracks.valid.reshape(-1)
    columns = (
        (_CENTER_X, position[:, 0]),
        (_CENTER_Y, position[:, 1]),
        (_CENTER_Z, position[:, 2]),
        (_LENGTH, size[:, 0]),
        (_WIDTH, size[:, 1]),
        (_HEIGHT, size[:, 2]),
        (_HEADING, tracks.heading.reshape(-1)),
        (_VELOCITY_X, velocity[:, 0]),
        (_VELOCITY_Y, velocity[:, 1]),
        (_VALID, valid),
    )
    # All states with all fields, and which of these are written.
    states = _fixed_rows(*columns)
    widths = [1 + _LAYOUTS[tag & 7].itemsize for tag, _ in columns]
    ends = np.cumsum(widths).tolist()
    kept = np.stack(
        [
            states[:, end - width + 1 : end].any(axis=1)
            for end, width in zip(ends, widths, strict=True)
        ],
        axis=1,
    )
    kept |= valid[:, None]
    kept[:, -1] = True
    heads = np.empty((len(states), 2), np.uint8)
    heads[:, 0] = _TRACK_STATE
    heads[:, 1] = kept @ widths
    written = np.concatenate(
        [np.ones_like(heads, np.bool_), np.repeat(kept, widths, axis=1)], axis=1
    )
    data = np.concatenate([heads, states], axis=1)[written].tobytes()
    n_bytes = written.reshape(n_tracks, n_steps * written.shape[1]).sum(axis=1)
    ends = np.cumsum(n_bytes).tolist()
    return [
        _encode_int(1, object_id) + _encode_int(2, object_type) + data[start:end]
        for object_id, object_type, start, end in zip(
            tracks.object_ids.tolist(),
            tracks.object_types.tolist(),
            [0, *ends][:-1],
            ends,
            strict=True,
        )
    ]


def _encode_lights(lights: TrafficLights) -> list[bytes]:
    points = _encode_points(lights.stop_points)
    n_bytes = points.shape[1]
    data = points.tobytes()
    signals = [
        encode_block(
            1,
            _encode_int(1, lane)
            + _encode_int(2, state)
            + encode_block(3, data[row * n_bytes : (row + 1) * n_bytes]),
        )
        for row, (lane, state) in enumerate(
            zip(lights.lane_ids.tolist(), lights.states.tolist(), strict=True)
        )
    ]
    offsets = lights.step_offsets.tolist()
    return [b"".join(signals[start:end]) for start, end in pairwise(offsets)]


def _encode_map(road_map: RoadMap) -> list[bytes]:
    """The map features, without their tags."""
    heads = np.empty((len(road_map.points), 2), np.uint8)
    heads[:, 0] = np.repeat(_POINT_TAGS[road_map.kinds], np.diff(road_map.point_offsets))
    points = _encode_points(road_map.points)
    heads[:, 1] = n_bytes = points.shape[1]
    data = np.concatenate([heads, points], axis=1).tobytes()
    offsets = (road_map.point_offsets * (n_bytes + 2)).tolist()
    neighbors = _encode_neighbors(road_map.neighbors)

    features = []
    for row, (feature_id, kind, type_, (start, end)) in enumerate(
        zip(
            road_map.feature_ids.tolist(),
            road_map.kinds.tolist(),
            road_map.types.tolist(),
            pairwise(offsets),
            strict=True,
        )
    ):
        feature = [_encode_int(1, feature_id)]
        if kind == _LANE:
            lane = [
                _fixed_rows((_LANE_SPEED_LIMIT, road_map.speed_limit_mph[row : row + 1])).tobytes(),
                _encode_int(2, type_),
                _encode_int(3, 1) if road_map.interpolating[row] else b"",
                data[start:end],
                _encode_packed(9, road_map.entry_lanes.of(row)),
                _encode_packed(10, road_map.exit_lanes.of(row)),
                *neighbors.get((row, 0), ()),
                *neighbors.get((row, 1), ()),
            ]
            feature.append(encode_block(kind, b"".join(lane)))
        elif kind == _STOP_SIGN:
            lanes = [_encode_int(1, lane) for lane in road_map.stop_sign_lanes.of(row).tolist()]
            feature.append(encode_block(kind, b"".join(lanes) + data[start:end]))
        elif kind in (_ROAD_LINE, _ROAD_EDGE):
            feature.append(encode_block(kind, _encode_int(1, type_) + data[start:end]))
        elif kind != MapFeatureKind.NONE:
            feature.append(encode_block(kind, data[start:end]))
        features.append(b"".join(feature))
    return features


def _encode_neighbors(neighbors: Int64Array) -> dict[tuple[int, int], list[bytes]]:
    """The `LaneNeighbor` fields of each lane and side, by (row of the lane, side)."""
    encoded: dict[tuple[int, int], list[bytes]] = {}
    for row, side, *numbers in neighbors.tolist():
        payload = b"".join(_encode_int(field, n) for field, n in enumerate(numbers, start=1))
        encoded.setdefault((row, side), []).append(encode_block(11 + side, payload))
    return encoded


def _encode_packed(field: int, numbers: Int64Array) -> bytes:
    if not len(numbers):
        return b""
    return encode_block(field, b"".join(map(encode_varint, numbers.tolist())))
