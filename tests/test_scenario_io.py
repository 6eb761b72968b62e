"""Scenario messages: decoded as protobuf defines it, encoded to the same, damage survived."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wosac_toolkit.errors import FormatError, ScenarioError, WosacError
from wosac_toolkit.io.scenario_proto import decode_scenario, encode_scenario
from wosac_toolkit.io.scenarios import (
    index_scenarios,
    load_scenarios,
    peek_scenario_id,
    read_scenario,
    write_scenarios,
)
from wosac_toolkit.io.tfrecord import RecordRef, iter_records, write_records
from wosac_toolkit.scenario import MapFeatureKind, Scenario

# --- An encoder of its own, to write messages by hand -------------------------------------------

VARINT, DOUBLE, BLOCK, START, END, FLOAT = range(6)


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: a number, bytes or a message, with its wire type."""

    number: int
    wire_type: int
    value: Any


Message: TypeAlias = list[Field]


def ints(number: int, *values: int) -> Message:
    return [Field(number, VARINT, value) for value in values]


def doubles(**values: float) -> Message:
    """Fields `f2=1.5` and so on."""
    return [Field(int(name[1:]), DOUBLE, value) for name, value in values.items()]


def floats(**values: float) -> Message:
    return [Field(int(name[1:]), FLOAT, value) for name, value in values.items()]


def sub(number: int, *parts: Message) -> Message:
    return [Field(number, BLOCK, [field for part in parts for field in part])]


def data(number: int, value: bytes) -> Message:
    return [Field(number, BLOCK, value)]


def varint(value: int, padding: int = 0) -> bytes:
    """`value` in as few bytes as it takes, and `padding` more."""
    value %= 1 << 64
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F)
    digits += [0] * padding
    return bytes([digit | 0x80 for digit in digits[:-1]] + digits[-1:])


def packed(number: int, *values: int) -> Message:
    return data(number, b"".join(map(varint, values)))


def field_bytes(field: Field, wire: Callable[[Message], bytes]) -> bytes:
    tag = varint(field.number << 3 | field.wire_type)
    if field.wire_type == VARINT:
        return tag + varint(field.value)
    if field.wire_type == DOUBLE:
        return tag + struct.pack("<d", field.value)
    if field.wire_type == FLOAT:
        return tag + struct.pack("<f", field.value)
    value = field.value if isinstance(field.value, bytes) else wire(field.value)
    return tag + varint(len(value)) + value


def wire(message: Message) -> bytes:
    return b"".join(field_bytes(field, wire) for field in message)


def rewritten(message: Message, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """The message with the encoded fields of it and of each message in it changed."""

    def inner(message: Message) -> bytes:
        return b"".join(change([field_bytes(field, inner) for field in message]))

    return inner(message)


# --- A scene with every field that is kept ------------------------------------------------------


def point(x: float, y: float, z: float) -> Message:
    return doubles(f1=x, f2=y, f3=z)


def state(x: float, *, valid: bool = True) -> Message:
    return (
        doubles(f2=x, f3=x + 0.25, f4=-x)
        + floats(f5=4.5, f6=2.0, f7=1.5, f8=-3.5, f9=0.5, f10=-0.25)
        + ints(11, valid)
    )


def neighbor(*numbers: int) -> Message:
    return [field for i, n in enumerate(numbers, start=1) for field in ints(i, n)]


TRACKS = (
    sub(2, ints(1, 1234), ints(2, 1), sub(3, state(1.0)), sub(3, state(2.0)), sub(3, ints(11, 0)))
    + sub(
        2,
        ints(1, -7),
        ints(2, 3),
        sub(3, ints(11, 0)),
        sub(3, doubles(f4=-0.0) + ints(11, 0)),
        sub(3, state(40_000.125)),
    )
)  # fmt: skip
LIGHTS = (
    sub(7, sub(1, ints(1, 100), ints(2, 4), sub(3, point(5.0, 6.0, 7.0))))
    + sub(7)
    + sub(
        7,
        sub(1, ints(1, 101), ints(2, 8), sub(3, point(-5.0, 6.5, 0.0))),
        sub(1, ints(1, 1 << 40), ints(2, 0), sub(3, point(0.0, 0.0, 1.0))),
    )
)
LANE = sub(
    3,
    doubles(f1=25.5),
    ints(2, 2),
    ints(3, 1),
    sub(8, point(0.0, 1.0, 2.0)),
    sub(8, point(3.0, 4.0, 5.0)),
    packed(9, 101, 300),
    packed(10, 1 << 40),
    sub(11, neighbor(101, 0, 1, 2, 300)),
    sub(12, neighbor(102, 4, 5, 6, 7)),
    sub(12, neighbor(103, 0, -1, 0, 0)),
)
MAP = (
    sub(8, ints(1, 100), LANE)
    + sub(8, ints(1, 101), sub(3, doubles(f1=0.0), ints(2, 3)))
    + sub(8, ints(1, 200), sub(4, ints(1, 8), sub(2, point(6.0, 7.0, 8.0))))
    + sub(8, ints(1, 201), sub(5, ints(1, 2), sub(2, point(9.0, 0.5, -1.0))))
    + sub(8, ints(1, 202), sub(7, ints(1, 100, 101), sub(2, point(10.0, 11.0, 12.0))))
    + sub(8, ints(1, 203), sub(8, sub(1, point(1.5, 0.0, 0.0)), sub(1, point(2.5, 0.0, 0.0))))
    + sub(8, ints(1, 204), sub(9, sub(1, point(3.5, 0.0, 0.0))))
    + sub(8, ints(1, -5), sub(10, sub(1, point(4.5, 0.0, 0.0))))
    + sub(8, ints(1, 206))
)
SCENE: Message = (
    doubles(f1=0.0)
    + doubles(f1=0.1)
    + doubles(f1=0.2)
    + TRACKS
    + ints(4, 1234, -7)
    + data(5, "scène".encode())
    + ints(6, 1)
    + LIGHTS
    + MAP
    + ints(10, 2)
    + sub(11, ints(1, 0), ints(2, 2))
    + sub(11, ints(1, 1), ints(2, 0))
)


def leaves(value: Any, name: str = "scenario") -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{name}.{field.name}")
    else:
        yield name, value


def assert_same(left: Scenario, right: Scenario) -> None:
    """Equal to the last bit, with the same types and shapes."""
    for (name, a), (_, b) in zip(leaves(left), leaves(right), strict=True):
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            assert a.tobytes() == b.tobytes(), name
        else:
            assert (type(a), a) == (type(b), b), name


def decode_map(*fields: Message) -> Any:
    """The road map of a scene with one map feature."""
    return decode_scenario(wire(sub(8, *fields))).road_map


# --- Decoding -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene() -> Scenario:
    return decode_scenario(wire(SCENE))


class TestDecode:
    def test_scene(self, scene: Scenario) -> None:
        assert scene.scenario_id == "scène"
        assert scene.current_time_index == 2
        assert scene.sdc_track_index == 1
        np.testing.assert_array_equal(scene.timestamps, [0.0, 0.1, 0.2])
        np.testing.assert_array_equal(scene.objects_of_interest, [1234, -7])
        np.testing.assert_array_equal(scene.tracks_to_predict, [0, 1])
        np.testing.assert_array_equal(scene.difficulties, [2, 0])

    def test_tracks(self, scene: Scenario) -> None:
        tracks = scene.tracks
        np.testing.assert_array_equal(tracks.object_ids, [1234, -7])
        np.testing.assert_array_equal(tracks.object_types, [1, 3])
        np.testing.assert_array_equal(tracks.valid, [[1, 1, 0], [0, 0, 1]])
        x = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 40_000.125]])
        np.testing.assert_array_equal(
            tracks.position, np.stack([x, np.where(x > 0, x + 0.25, 0), -x], axis=-1)
        )
        shown = tracks.valid[..., None]
        np.testing.assert_array_equal(tracks.size, np.float32([4.5, 2.0, 1.5]) * shown)
        np.testing.assert_array_equal(tracks.heading, np.float32(-3.5) * tracks.valid)
        np.testing.assert_array_equal(tracks.velocity, np.float32([0.5, -0.25]) * shown)

    def test_map(self, scene: Scenario) -> None:
        road_map = scene.road_map
        np.testing.assert_array_equal(
            road_map.feature_ids, [100, 101, 200, 201, 202, 203, 204, -5, 206]
        )
        np.testing.assert_array_equal(road_map.kinds, [3, 3, 4, 5, 7, 8, 9, 10, 0])
        np.testing.assert_array_equal(road_map.types, [2, 3, 8, 2, 0, 0, 0, 0, 0])
        np.testing.assert_array_equal(road_map.speed_limit_mph, [25.5] + 8 * [0])
        np.testing.assert_array_equal(road_map.interpolating, [1] + 8 * [0])
        np.testing.assert_array_equal(road_map.point_offsets, [0, 2, 2, 3, 4, 5, 7, 8, 9, 9])
        np.testing.assert_array_equal(road_map.polyline(0), [[0, 1, 2], [3, 4, 5]])
        np.testing.assert_array_equal(road_map.polyline(4), [[10, 11, 12]])
        np.testing.assert_array_equal(road_map.points[5:, 0], [1.5, 2.5, 3.5, 4.5])

    def test_links(self, scene: Scenario) -> None:
        road_map = scene.road_map
        np.testing.assert_array_equal(road_map.entry_lanes.of(0), [101, 300])
        np.testing.assert_array_equal(road_map.exit_lanes.of(0), [1 << 40])
        np.testing.assert_array_equal(road_map.stop_sign_lanes.of(4), [100, 101])
        for links in (road_map.entry_lanes, road_map.exit_lanes, road_map.stop_sign_lanes):
            assert len(links.offsets) == 10
        np.testing.assert_array_equal(
            road_map.neighbors,
            [[0, 0, 101, 0, 1, 2, 300], [0, 1, 102, 4, 5, 6, 7], [0, 1, 103, 0, -1, 0, 0]],
        )

    def test_traffic_lights(self, scene: Scenario) -> None:
        lights = scene.traffic_lights
        np.testing.assert_array_equal(lights.step_offsets, [0, 1, 1, 3])
        np.testing.assert_array_equal(lights.lane_ids, [100, 101, 1 << 40])
        np.testing.assert_array_equal(lights.states, [4, 8, 0])
        np.testing.assert_array_equal(lights.stop_points, [[5, 6, 7], [-5, 6.5, 0], [0, 0, 1]])

    def test_nothing_gives_defaults(self) -> None:
        scene = decode_scenario(b"")
        assert (scene.scenario_id, scene.current_time_index, scene.sdc_track_index) == ("", 0, 0)
        assert scene.tracks.position.shape == (0, 0, 3)
        assert scene.road_map.points.shape == (0, 3)
        assert scene.traffic_lights.n_steps == 0

    def test_any_buffer_will_do(self, scene: Scenario) -> None:
        assert_same(decode_scenario(bytearray(wire(SCENE))), scene)
        assert_same(decode_scenario(memoryview(b"??" + wire(SCENE))[2:]), scene)


class TestProtobufRules:
    """What every protobuf parser makes of unusual messages."""

    def test_fields_in_any_order(self, scene: Scenario) -> None:
        backwards = rewritten(
            [field for field in SCENE if field.number not in (1, 2, 4, 7, 8, 11)], lambda f: f[::-1]
        )
        rest = wire([field for field in SCENE if field.number in (1, 2, 4, 7, 8, 11)])
        assert_same(decode_scenario(backwards + rest), scene)

    def test_states_and_points_with_fields_in_another_order(self) -> None:
        usual = sub(2, sub(3, state(3.0))) + sub(8, sub(4, sub(2, point(1.0, 2.0, 3.0))))
        other = sub(2, sub(3, state(3.0)[::-1])) + sub(
            8, sub(4, sub(2, point(1.0, 2.0, 3.0)[::-1]))
        )
        assert_same(decode_scenario(wire(other)), decode_scenario(wire(usual)))

    def test_last_value_wins(self) -> None:
        track = sub(2, ints(1, 5, 6), ints(2, 1, 2), sub(3, state(9.0), state(1.0)))
        scene = decode_scenario(wire(ints(6, 4, 3) + data(5, b"a") + data(5, b"b") + track))
        assert (scene.sdc_track_index, scene.scenario_id) == (3, "b")
        np.testing.assert_array_equal(scene.tracks.object_ids, [6])
        np.testing.assert_array_equal(scene.tracks.object_types, [2])
        np.testing.assert_array_equal(scene.tracks.position[0, 0], [1.0, 1.25, -1.0])

    def test_a_singular_message_given_twice_is_merged(self) -> None:
        stop_point = sub(3, doubles(f1=1.0, f2=2.0)) + sub(3, doubles(f2=5.0))
        lights = decode_scenario(wire(sub(7, sub(1, stop_point)))).traffic_lights
        np.testing.assert_array_equal(lights.stop_points, [[1, 5, 0]])
        sign = decode_map(sub(7, sub(2, doubles(f1=1.0))), sub(7, sub(2, doubles(f3=2.0))))
        np.testing.assert_array_equal(sign.points, [[1, 0, 2]])
        lane = decode_map(sub(3, sub(8)), sub(3, ints(2, 3), packed(9, 7)), sub(3, sub(8)))
        assert (lane.points.shape, lane.types.item()) == ((2, 3), 3)
        np.testing.assert_array_equal(lane.entry_lanes.of(0), [7])

    def test_the_last_feature_data_replaces_the_others(self) -> None:
        line = sub(4, ints(1, 3), sub(2, point(1.0, 2.0, 3.0)))
        lane = sub(3, ints(2, 1), sub(8), sub(8), sub(11), packed(9, 1, 2))
        feature = decode_map(lane, ints(1, 7), line)
        assert feature.kinds.item() == MapFeatureKind.ROAD_LINE
        assert (feature.feature_ids.item(), feature.types.item()) == (7, 3)
        np.testing.assert_array_equal(feature.points, [[1, 2, 3]])
        assert len(feature.entry_lanes.ids) == len(feature.neighbors) == 0
        again = decode_map(sub(3, ints(2, 2), sub(8)), line, sub(3, sub(8)))
        assert (again.kinds.item(), again.types.item(), len(again.points)) == (3, 0, 1)

    def test_a_stop_sign_has_a_point_even_without_a_position(self) -> None:
        np.testing.assert_array_equal(decode_map(sub(7, ints(1, 4))).points, [[0, 0, 0]])

    def test_undefined_enum_numbers_are_dropped(self) -> None:
        track = sub(2, ints(2, 3, 5, -1))
        prediction = sub(11, ints(2, 1, 3))
        light = sub(7, sub(1, ints(2, 4, 9)))
        scene = decode_scenario(wire(track + prediction + light))
        assert scene.tracks.object_types.item() == 3
        assert scene.difficulties.item() == 1
        assert scene.traffic_lights.states.item() == 4
        assert decode_map(sub(3, ints(2, 3, 4))).types.item() == 3
        assert decode_map(sub(4, ints(1, 8, 9))).types.item() == 8
        assert decode_map(sub(5, ints(1, 2, 3))).types.item() == 2

    def test_int32_keeps_the_low_32_bits(self) -> None:
        scene = decode_scenario(wire(ints(6, 2 + (1 << 32)) + sub(2, ints(1, (1 << 32) - 5))))
        assert scene.sdc_track_index == 2
        assert scene.tracks.object_ids.item() == -5

    def test_bool_is_any_number_but_zero(self) -> None:
        scene = decode_scenario(wire(sub(2, sub(3, ints(11, 1 << 40)), sub(3, ints(11, 1, 0)))))
        np.testing.assert_array_equal(scene.tracks.valid, [[True, False]])

    def test_repeated_numbers_packed_or_not(self) -> None:
        times = data(1, struct.pack("<2d", 0.5, 1.5)) + doubles(f1=2.5)
        scene = decode_scenario(wire(times + packed(4, 1, -2) + ints(4, 3) + packed(4)))
        np.testing.assert_array_equal(scene.timestamps, [0.5, 1.5, 2.5])
        np.testing.assert_array_equal(scene.objects_of_interest, [1, -2, 3])
        lane = decode_map(sub(3, ints(9, 1), packed(9, 2, 3), ints(10, 4)))
        np.testing.assert_array_equal(lane.entry_lanes.ids, [1, 2, 3])
        np.testing.assert_array_equal(lane.exit_lanes.ids, [4])
        sign = decode_map(sub(7, packed(1, 5, 6), ints(1, 7)))
        np.testing.assert_array_equal(sign.stop_sign_lanes.ids, [5, 6, 7])

    def test_varints_may_be_longer_than_needed(self) -> None:
        tag, value = varint(6 << 3, padding=2), varint(9, padding=9)
        assert decode_scenario(tag + value).sdc_track_index == 9

    def test_a_field_of_another_wire_type_is_unknown(self) -> None:
        other = ints(2, 1) + data(6, b"??") + sub(8, ints(3, 9)) + sub(2, data(1, b"x"))
        scene = decode_scenario(wire(other))
        assert scene.sdc_track_index == 0
        assert scene.road_map.kinds.item() == 0
        assert scene.tracks.object_ids.item() == 0

    def test_neighbours_of_a_lane_are_left_then_right(self) -> None:
        lane = sub(3, sub(12, ints(1, 1)), sub(11, ints(1, 2)), sub(12, ints(1, 3)))
        scene = decode_scenario(wire(sub(8, lane) + sub(8, lane)))
        np.testing.assert_array_equal(
            scene.road_map.neighbors[:, :3],
            [[0, 0, 2], [0, 1, 1], [0, 1, 3], [1, 0, 2], [1, 1, 1], [1, 1, 3]],
        )


def key(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


class TestMalformed:
    @pytest.mark.parametrize(
        ("message", "byte"),
        [
            pytest.param(b"\x80", 1, id="truncated tag"),
            pytest.param(b"\x00\x01", 1, id="field number 0"),
            pytest.param(varint(1 << 32 | 8) + b"\x01", 5, id="field number above 2**29 - 1"),
            pytest.param(b"\x0e", 1, id="wire type 6"),
            pytest.param(key(3, END), 1, id="end of a group that has not begun"),
            pytest.param(key(100, START), 2, id="group without end"),
            pytest.param(key(100, START) + key(101, END), 4, id="end of another group"),
            pytest.param(key(100, START) * 101 + key(100, END) * 101, 202, id="groups too deep"),
            pytest.param(key(6, VARINT) + b"\xff" * 10 + b"\x01", 11, id="varint of 11 bytes"),
            pytest.param(key(5, BLOCK) + varint(4) + b"abc", 2, id="length beyond the end"),
            pytest.param(key(5, BLOCK) + varint(-1), 11, id="negative length"),
            pytest.param(key(5, BLOCK) + varint(1 << 62), 10, id="huge length"),
            pytest.param(key(1, DOUBLE) + bytes(7), 1, id="truncated double"),
            pytest.param(key(1, BLOCK) + varint(9) + bytes(9), 10, id="packed doubles"),
            pytest.param(wire(data(4, b"\x01\x80")), 4, id="packed ints"),
            pytest.param(wire(sub(2, sub(3)) + sub(2, data(3, b"\x11\x00"))), 9, id="state"),
            pytest.param(wire(sub(2, data(3, b"\x2d\x00"))), 5, id="size of a state"),
            pytest.param(wire(sub(7, data(1, b"\x08"))), 5, id="traffic light"),
            pytest.param(wire(sub(8, data(3, b"\x42\x01"))), 6, id="point beyond its lane"),
            pytest.param(wire(sub(8, sub(3, data(8, b"\x09")))), 7, id="point of a lane"),
            pytest.param(wire(sub(8, sub(3, data(11, b"\x08")))), 7, id="neighbour"),
            pytest.param(wire(sub(8, sub(3, data(9, b"\x80")))), 7, id="entry lanes"),
            pytest.param(wire(sub(8, sub(5, data(2, b"\x09")))), 7, id="point of a road edge"),
            pytest.param(wire(sub(8, sub(7, data(2, b"\x09")))), 7, id="stop sign"),
            pytest.param(wire(sub(8, sub(8, data(1, b"\x09")))), 7, id="crosswalk"),
            pytest.param(wire(data(11, b"\x08")), 3, id="prediction"),
        ],
    )
    def test_names_record_and_byte(self, message: bytes, byte: int) -> None:
        with pytest.raises(FormatError, match=rf"^a\.tfrecord.*malformed at byte {byte} "):
            decode_scenario(message, where="a.tfrecord")

    def test_an_id_that_is_no_text(self) -> None:
        with pytest.raises(FormatError, match="scenario_id is not UTF-8"):
            decode_scenario(wire(data(5, b"\xff")))

    def test_tracks_of_different_lengths(self) -> None:
        tracks = sub(2, ints(1, 5), sub(3)) + sub(2, ints(1, 66), sub(3), sub(3))
        with pytest.raises(ScenarioError, match=r"r: scenario x, track 66: 2 states, .* has 1"):
            decode_scenario(wire(data(5, b"x") + tracks), where="r")

    def test_lengths_are_compared_before_anything_is_allocated(self) -> None:
        long_track = sub(2, data(3, b"") * 200_000)
        message = wire(long_track) + wire(sub(2)) * 200_000  # as a table, 40 G states
        with pytest.raises(ScenarioError, match="track 0"):
            decode_scenario(message)


# --- Damage -------------------------------------------------------------------------------------


def unknown(number: int, wire_type: int, value: bytes) -> bytes:
    if wire_type == BLOCK:
        return key(number, BLOCK) + varint(len(value)) + value
    if wire_type == START:
        return key(number, START) + unknown(1, BLOCK, value) + key(number, END)
    fixed = {VARINT: varint(len(value) << 7), DOUBLE: value[:8].ljust(8), FLOAT: value[:4].ljust(4)}
    return key(number, wire_type) + fixed[wire_type]


unknown_fields = st.builds(
    unknown,
    st.one_of(st.integers(20, 40), st.integers(20, 2**29 - 1)),
    st.sampled_from([VARINT, DOUBLE, BLOCK, START, FLOAT]),
    st.binary(max_size=200),
)


def with_inserted(message: Message, inserted: dict[int, bytes]) -> tuple[bytes, int]:
    """The message with bytes put into some of the places between fields, counted through all the
    messages in it, and the number of these places."""
    n_places = 0

    def insert(fields: list[bytes]) -> list[bytes]:
        nonlocal n_places
        first, n_places = n_places, n_places + len(fields) + 1
        gaps = [inserted.get(place, b"") for place in range(first, n_places)]
        return [gaps[0], *(part for pair in zip(fields, gaps[1:], strict=True) for part in pair)]

    return rewritten(message, insert), n_places


N_PLACES = with_inserted(SCENE, {})[1]


class TestDamage:
    @given(
        inserted=st.dictionaries(
            st.integers(0, N_PLACES - 1), unknown_fields, min_size=1, max_size=8
        )
    )
    def test_unknown_fields_anywhere_change_nothing(
        self, inserted: dict[int, bytes], scene: Scenario
    ) -> None:
        message, _ = with_inserted(SCENE, inserted)
        assert len(message) > len(wire(SCENE))
        assert_same(decode_scenario(message), scene)

    def test_fields_that_a_scenario_does_not_keep(self) -> None:
        sensors = data(12, b"laser") + data(13, b"camera")
        boundaries = data(13, b"left") + data(14, b"right")
        kept = sub(3, ints(2, 1), sub(8, point(1.0, 2.0, 3.0)))
        given_ = sub(3, ints(2, 1), sub(8, point(1.0, 2.0, 3.0)), boundaries)
        assert_same(
            decode_scenario(wire(sensors + sub(8, given_) + sensors)),
            decode_scenario(wire(sub(8, kept))),
        )

    def test_a_cut_is_noticed_unless_between_fields(self) -> None:
        whole = wire(SCENE)
        ends = np.cumsum([0] + [len(wire([field])) for field in SCENE]).tolist()
        for n in range(len(whole)):
            if n in ends:
                assert_same(
                    decode_scenario(whole[:n]), decode_scenario(wire(SCENE[: ends.index(n)]))
                )
            else:
                with pytest.raises(FormatError, match="malformed at byte"):
                    decode_scenario(whole[:n])

    @given(
        flips=st.lists(
            st.tuples(st.integers(0, len(wire(SCENE)) - 1), st.integers(0, 255)),
            min_size=1,
            max_size=4,
        )
    )
    def test_flipped_bytes_give_a_scene_or_an_error(self, flips: Sequence[tuple[int, int]]) -> None:
        damaged = bytearray(wire(SCENE))
        for index, byte in flips:
            damaged[index] = byte
        try:
            scene = decode_scenario(damaged)
        except WosacError:
            return
        assert_same(decode_scenario(encode_scenario(scene)), scene)

    @given(st.binary(max_size=200))
    def test_any_bytes_give_a_scene_or_an_error(self, noise: bytes) -> None:
        try:
            decode_scenario(noise)
        except WosacError:
            return


# --- Encoding -----------------------------------------------------------------------------------


class TestEncode:
    def test_bytes_as_the_official_package_writes_them(self, scene: Scenario) -> None:
        assert encode_scenario(scene) == wire(SCENE)

    def test_reads_back_the_same(self, make_scenario: Callable[..., Scenario]) -> None:
        scene = make_scenario(
            lanes={7: [(0, 0), (50, 0)]}, signals=[[(7, 4, (50, 0))], [], [(7, 6, (50, 0))]]
        )
        assert_same(decode_scenario(encode_scenario(scene)), scene)

    def test_every_bit_of_a_float_is_kept(self) -> None:
        odd = [-0.0, float("nan"), float("inf"), 5e-324]
        states = [sub(3, doubles(f2=x) + floats(f8=x) + ints(11, i % 2)) for i, x in enumerate(odd)]
        scene = decode_scenario(wire(sub(2, *states)))
        assert np.signbit(scene.tracks.position[0, 0, 0])
        assert np.isnan(scene.tracks.heading[0, 1])
        assert_same(decode_scenario(encode_scenario(scene)), scene)

    def test_other_float_types_are_converted(self, make_scenario: Callable[..., Scenario]) -> None:
        scene = make_scenario()
        tracks = dataclasses.replace(
            scene.tracks,
            position=scene.tracks.position.astype(np.float32),
            heading=scene.tracks.heading.astype(np.float64),
        )
        other = dataclasses.replace(scene, tracks=tracks)
        decoded = decode_scenario(encode_scenario(other))
        np.testing.assert_array_equal(decoded.tracks.position, tracks.position)
        np.testing.assert_array_equal(decoded.tracks.heading, tracks.heading)


class TestPeek:
    def test_id(self) -> None:
        assert peek_scenario_id(wire(SCENE)) == "scène"

    def test_what_follows_the_id_is_not_read(self) -> None:
        assert peek_scenario_id(wire(TRACKS + data(5, b"abc")) + b"\xff" * 20) == "abc"

    def test_without_id(self) -> None:
        assert peek_scenario_id(wire(TRACKS)) == ""

    def test_unknown_fields_before_the_id(self) -> None:
        nested = sub(5, data(5, b"no"))
        group = varint(20 << 3 | 3) + wire(nested) + varint(20 << 3 | 4)
        unknown = wire(ints(300, 1 << 63) + doubles(f301=1.5) + floats(f302=2.5) + data(303, b"x"))
        assert peek_scenario_id(unknown + group + wire(SCENE)) == "scène"

    @pytest.mark.parametrize("n_bytes", range(1, 12))
    def test_cut_before_the_id(self, n_bytes: int) -> None:
        with pytest.raises(FormatError, match=r"malformed at byte 0 "):
            peek_scenario_id(wire(sub(2, data(100, b"12345678")))[:n_bytes])

    @given(st.binary(max_size=60))
    def test_what_is_refused_cannot_be_decoded_either(self, noise: bytes) -> None:
        assume(noise.count(b"\x2a") <= 1)  # one id at most: decoding takes the last
        try:
            peek_scenario_id(noise)
        except FormatError:
            with pytest.raises(FormatError):
                decode_scenario(noise)

    def test_malformed_before_the_id(self) -> None:
        with pytest.raises(FormatError, match=r"^here: .*malformed at byte 0 "):
            peek_scenario_id(b"\xff", where="here")


# --- Files --------------------------------------------------------------------------------------


@pytest.fixture
def scenes(make_scenario: Callable[..., Scenario]) -> list[Scenario]:
    return [make_scenario(scenario_id=f"scene {i}", n_tracks=i + 1) for i in range(5)]


class TestFiles:
    def test_one_shard_keeps_the_order(self, tmp_path: Path, scenes: list[Scenario]) -> None:
        paths = write_scenarios(tmp_path / "new", iter(scenes), 1)
        assert paths == [tmp_path / "new" / "scenarios.tfrecord-00000-of-00001"]
        for loaded, scene in zip(load_scenarios(tmp_path / "new"), scenes, strict=True):
            assert_same(loaded, scene)

    def test_shards_take_turns(self, tmp_path: Path, scenes: list[Scenario]) -> None:
        paths = write_scenarios(tmp_path, scenes, 3, prefix="toy")
        assert [path.name for path in paths] == [f"toy.tfrecord-0000{i}-of-00003" for i in range(3)]
        assert [scene.scenario_id[-1] for scene in load_scenarios(paths)] == list("03142")

    def test_index_and_read(self, tmp_path: Path, scenes: list[Scenario]) -> None:
        paths = write_scenarios(tmp_path, scenes, 2)
        paths[1].write_bytes(gzip.compress(paths[1].read_bytes()))
        index = index_scenarios(tmp_path)
        assert [scenario_id[-1] for scenario_id in index] == list("02413")
        for scene in scenes:
            assert_same(read_scenario(index[scene.scenario_id]), scene)

    def test_an_error_leaves_no_shard(self, tmp_path: Path, scenes: list[Scenario]) -> None:
        def failing() -> Iterator[Scenario]:
            yield from scenes
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_scenarios(tmp_path, failing(), 2)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("n_shards", [0, -1, 100_000])
    def test_numbers_of_shards(self, tmp_path: Path, n_shards: int) -> None:
        with pytest.raises(WosacError, match=f"cannot write {n_shards} shards"):
            write_scenarios(tmp_path, [], n_shards)

    def test_loading_nothing_fails_at_the_call(self, tmp_path: Path) -> None:
        with pytest.raises(WosacError, match="no TFRecord files"):
            load_scenarios(tmp_path)

    def test_duplicate_ids_name_both_places(self, tmp_path: Path, scenes: list[Scenario]) -> None:
        write_scenarios(tmp_path / "a", scenes[:2], 1)
        write_scenarios(tmp_path / "b", scenes[1:2], 1)
        with pytest.raises(
            WosacError,
            match=r"b/scen.*record 0, byte 0: scenario scene 1 .* in .*a/scen.*, byte \d+",
        ):
            index_scenarios([tmp_path / "a", tmp_path / "b"])

    def test_a_record_of_another_kind(self, tmp_path: Path) -> None:
        path = tmp_path / "tf_example.tfrecord"
        write_records(path, [wire(SCENE), wire(ints(20, 1))])
        for read in (lambda: list(load_scenarios(path)), lambda: index_scenarios(path)):
            with pytest.raises(FormatError, match=r"record 1, byte .* without a scenario id"):
                read()

    def test_a_damaged_record_names_its_place(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        write_records(path, [wire(SCENE), wire(SCENE)[:-1]])
        offset = 16 + len(wire(SCENE))
        with pytest.raises(FormatError, match=f"a.tfrecord, record 1, byte {offset}: .*malformed"):
            list(load_scenarios(path))
        with pytest.raises(FormatError, match=f"a.tfrecord, byte {offset}: .*malformed"):
            read_scenario(RecordRef(str(path), offset, len(wire(SCENE)) - 1))

    @pytest.mark.parametrize("current", [-1, 3])
    def test_a_current_step_outside_the_record(self, tmp_path: Path, current: int) -> None:
        path = tmp_path / "a.tfrecord"
        write_records(path, [wire(SCENE + ints(10, current))])
        with pytest.raises(
            ScenarioError, match=f"current_time_index {current} is not one of the 3"
        ):
            list(load_scenarios(path))


@pytest.mark.womd
class TestRealScenes:
    def test_counts_are_those_of_the_manifest(self, womd_dir: Path) -> None:
        with open(womd_dir / "manifest.csv", newline="") as file:
            rows = {row["scenario_id"]: row for row in csv.DictReader(file)}
        scenes = {scene.scenario_id: scene for scene in load_scenarios(womd_dir)}
        assert set(scenes) == set(rows)
        assert list(index_scenarios(womd_dir)) == list(scenes)
        for scenario_id, scene in scenes.items():
            road_map = scene.road_map
            edges = road_map.of_kind(MapFeatureKind.ROAD_EDGE)
            counted = {
                "n_tracks": len(scene.tracks.object_ids),
                "n_sim_agents": len(scene.sim_agents()),
                "n_eval_agents": len(scene.evaluated_agents()),
                "n_road_edges": len(edges),
                "n_road_edge_points": np.diff(road_map.point_offsets)[edges].sum(),
                "n_lanes": len(road_map.of_kind(MapFeatureKind.LANE)),
                "n_tl_lanes": len(np.unique(scene.traffic_lights.lane_ids)),
            }
            assert counted == {name: int(rows[scenario_id][name]) for name in counted}

    def test_encoded_and_decoded_again(self, womd_dir: Path) -> None:
        for file in sorted(womd_dir.glob("*/*.tfrecord*"))[::3]:
            for ref, payload in iter_records(file):
                scene = decode_scenario(payload, where=str(ref))
                assert_same(decode_scenario(encode_scenario(scene)), scene)
