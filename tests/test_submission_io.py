"""Submission protos: what is decoded, what is written, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rollouts_examples import example, same

from wosac_toolkit.errors import FormatError, RolloutsError, WosacError
from wosac_toolkit.io.submission import (
    SubmissionMetadata,
    decode_scenario_rollouts,
    encode_metadata,
    encode_scenario_rollouts,
    iter_messages,
    iter_submission,
    read_metadata,
    scan_submission,
    write_submission,
)
from wosac_toolkit.rollouts import Rollouts

# A `SimAgentsChallengeSubmission` of two joint scenes, two objects (7 and -300) and two steps, with
# every field of the metadata, as waymo-open-dataset-tf-2-12-0 1.6.7 serializes it.
OFFICIAL = bytes.fromhex(
    "0ad8010a103633376632306361666465323266663812610a2a12080000003f0000c03f1a080000e0400000e8402208"
    "0000c03f000000402a08000080c00000003e30070a3312080000003f0000c03f1a08000096c300e095c322080000c0"
    "3f000000402a08000080c00000003e30d4fdffffffffffffff0112610a2a12080000c03f000020401a080000e04000"
    "00e84022080000c03f000000402a08000080c00000003e30070a3312080000c03f000020401a08000096c300e095c3"
    "22080000c03f000000402a08000080c00000003e30d4fdffffffffffffff0110011a076140622e6f726722016d2a01"
    "412a02c3963201783a0974776f0a6c696e65734208687474703a2f2f6d4800500158006202374d6a01706a01717001"
)
OFFICIAL_METADATA = SubmissionMetadata(
    submission_type=1,
    account_name="a@b.org",
    unique_method_name="m",
    authors=("A", "Ö"),
    affiliation="x",
    description="two\nlines",
    method_link="http://m",
    uses_lidar_data=False,
    uses_camera_data=True,
    uses_public_model_pretraining=False,
    num_model_parameters="7M",
    public_model_names=("p", "q"),
    acknowledge_complies_with_closed_loop_requirement=True,
)

# A `ScenarioRollouts` of scenario generation with the same states, likewise.
OFFICIAL_GENERATED = bytes.fromhex(
    "0a103633376632306361666465323266663812a1010a4a12080000003f0000c03f1a080000e0400000e84022080000c0"
    "3f000000402a08000080c00000003e30073a080000004000001040420800008040000090404a080000803f0000903f50"
    "010a5312080000003f0000c03f1a08000096c300e095c322080000c03f000000402a08000080c00000003e30d4fdffff"
    "ffffffffff013a08000080400000884042080000c0400000d0404a080000404000004840500212a1010a4a12080000c0"
    "3f000020401a080000e0400000e84022080000c03f000000402a08000080c00000003e30073a080000c0400000c84042"
    "0800000041000008414a080000a0400000a44050020a5312080000c03f000020401a08000096c300e095c322080000c0"
    "3f000000402a08000080c00000003e30d4fdffffffffffffff013a080000004100000441420800002041000028414a08"
    "0000e0400000e4405003"
)


def official_generated() -> Rollouts:
    base = np.float32([[4, 2, 1], [4.5, 2.25, 1.125]])  # length, width, height of two steps
    k = 4 * np.arange(2)[:, None] + 2 * np.arange(2)
    return dataclasses.replace(
        official_rollouts(),
        sizes=base + k[..., None, None].astype(np.float32),
        object_types=1 + np.arange(2)[:, None] + np.arange(2),
    )


def official_rollouts() -> Rollouts:
    states = np.empty((2, 2, 2, 4), np.float32)
    for rollout in range(2):
        for row, object_id in enumerate((7, -300)):
            states[rollout, row, :, 0] = rollout + 0.5, rollout + 1.5
            states[rollout, row, :, 1] = object_id, object_id + 0.25
            states[rollout, row, :, 2] = 1.5, 2
            states[rollout, row, :, 3] = -4, 0.125
    return Rollouts("637f20cafde22ff8", np.array([7, -300]), states)


# A second, plain writer of the wire format, to build what ours never writes.


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def block(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def packed(number: int, values: Sequence[float]) -> bytes:
    return block(number, struct.pack(f"<{len(values)}f", *values))


def unpacked(number: int, values: Sequence[float]) -> bytes:
    return b"".join(varint(number << 3 | 5) + struct.pack("<f", value) for value in values)


def trajectory(object_id: int, columns: Sequence[Sequence[float]]) -> bytes:
    fields = (packed(number, values) for number, values in zip((2, 3, 4, 5), columns, strict=True))
    return block(1, b"".join(fields) + varint(6 << 3) + varint(object_id))


def columns(object_id: int, rollout: int = 0, n_steps: int = 2) -> list[list[float]]:
    return [[100 * object_id + 10 * rollout + c + t / 4 for t in range(n_steps)] for c in range(4)]


def message(*scenes: bytes, scenario_id: bytes = b"scene") -> bytes:
    return block(1, scenario_id) + b"".join(block(2, scene) for scene in scenes)


def decode(data: bytes) -> Rollouts:
    return decode_scenario_rollouts(data, where="file")


# Decoding


def test_decodes_what_the_official_package_writes() -> None:
    (rollouts,) = iter_submission(OFFICIAL, where="file")
    assert same(rollouts, official_rollouts())
    assert read_metadata(OFFICIAL, where="file") == OFFICIAL_METADATA


def test_encodes_byte_for_byte_as_the_official_package() -> None:
    encoded = block(1, encode_scenario_rollouts(official_rollouts()))
    assert encoded + encode_metadata(OFFICIAL_METADATA) == OFFICIAL


def test_sizes_and_types_are_those_of_the_official_package() -> None:
    assert encode_scenario_rollouts(official_generated()) == OFFICIAL_GENERATED
    assert same(decode(OFFICIAL_GENERATED), official_generated())
    (read,) = iter_submission(block(1, OFFICIAL_GENERATED), where="file")
    assert same(read, official_generated())


@pytest.mark.womd
def test_official_sample_submission(goldens_dir: Path) -> None:
    with open(goldens_dir / "test_submission.binproto", "rb") as stream:
        (rollouts,) = iter_submission(stream, where="file")
    with np.load(goldens_dir / "637f20cafde22ff8_submission_r32.npz") as golden:
        rows = [rollouts.object_ids.tolist().index(i) for i in golden["object_ids"]]
        assert len(rows) == len(rollouts.object_ids)
        assert np.array_equal(rollouts.states[:, rows], golden["rollouts"])
    assert same(decode(encode_scenario_rollouts(rollouts)), rollouts)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4, unique=True),
    n_rollouts=st.integers(1, 3),
    n_steps=st.integers(0, 3),
    data=st.data(),
)
def test_encoding_and_decoding_give_the_same(
    ids: list[int], n_rollouts: int, n_steps: int, data: st.DataObject
) -> None:
    shape = (n_rollouts, len(ids), n_steps if ids else 0)

    def drawn(n: int) -> npt.NDArray[np.float32]:
        return data.draw(hnp.arrays(np.uint32, (*shape, n))).view(np.float32)

    rollouts = Rollouts("scene", np.array(ids, dtype=np.int64), drawn(4))
    if ids and n_steps and data.draw(st.booleans()):
        rollouts = dataclasses.replace(rollouts, sizes=drawn(3))
    if ids and data.draw(st.booleans()):
        types = data.draw(hnp.arrays(np.int8, shape[:2], elements=st.integers(0, 4)))
        rollouts = dataclasses.replace(rollouts, object_types=types)
    assert same(decode(encode_scenario_rollouts(rollouts)), rollouts)


def test_what_only_some_objects_have() -> None:
    """Without any size there are no sizes; a type that is missing or unknown is that of nobody."""
    typed, plain = varint(10 << 3) + varint(2), trajectory(5, columns(5))
    strange = varint(10 << 3) + varint(-3 & (1 << 64) - 1)
    first = block(1, trajectory(4, columns(4))[2:] + typed)
    odd = block(1, trajectory(6, columns(6))[2:] + strange + packed(7, [1.0, 1.0]))
    read = decode(message(first + plain + odd))
    assert read.sizes is None
    assert read.object_types is not None
    assert read.object_types.tolist() == [[2, 0, 0]]


@pytest.mark.parametrize("object_type", [-1, 5, 127])
def test_object_types_that_the_proto_does_not_know(object_type: int) -> None:
    rollouts = dataclasses.replace(official_generated(), object_types=np.full((2, 2), object_type))
    with pytest.raises(RolloutsError, match=f"object types {object_type} .* 0 to 4"):
        encode_scenario_rollouts(rollouts)


def test_objects_are_in_the_order_of_the_first_joint_scene() -> None:
    first = b"".join(trajectory(i, columns(i, rollout=0)) for i in (9, 3, 5))
    second = b"".join(trajectory(i, columns(i, rollout=1)) for i in (5, 9, 3))
    rollouts = decode(message(first, second))
    assert rollouts.object_ids.tolist() == [9, 3, 5]
    for rollout in range(2):
        for row, i in enumerate((9, 3, 5)):
            expected = np.float32(columns(i, rollout)).T
            assert np.array_equal(rollouts.states[rollout, row], expected)


def test_floats_may_be_packed_unpacked_or_in_several_pieces() -> None:
    x, y, z, heading = columns(4, n_steps=3)
    fields = unpacked(2, x), packed(3, y[:1]) + unpacked(3, y[1:]), packed(4, z), packed(5, heading)
    scene = block(1, varint(6 << 3) + varint(4) + b"".join(reversed(fields)))
    assert same(decode(message(scene)), decode(message(trajectory(4, columns(4, n_steps=3)))))


def test_unknown_fields_are_skipped() -> None:
    inside_a_group = varint(20 << 3 | 3) + varint(1 << 3) + varint(5) + varint(20 << 3 | 4)
    unknown = (
        block(19, b"??") + varint(18 << 3 | 1) + bytes(8) + unpacked(17, [1.0]) + inside_a_group
    )
    generated = packed(7, [2.0] * 2) + block(11, b"\1\1") + varint(10 << 3) + varint(1)
    plain = trajectory(4, columns(4))
    body = plain[2:] + generated + unknown
    noisy = unknown + message(unknown + block(1, body) + unknown) + unknown
    expected = dataclasses.replace(decode(message(plain)), object_types=np.array([[1]]))
    assert same(decode(noisy), expected)


def test_steps_need_not_be_80() -> None:
    assert decode(message(trajectory(1, columns(1, n_steps=7)))).states.shape == (1, 1, 7, 4)


def test_a_message_without_joint_scenes_has_no_rollouts() -> None:
    assert decode(message()).states.shape == (0, 0, 0, 4)


# Rollouts that do not fit together


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ([1, 2], "missing: 3"),
        ([1, 2, 3, 8], "not in rollout 0: 8"),
        ([1, 2, 8], "missing: 3; not in rollout 0: 8"),
        ([1, 2, 2], "missing: 3; more than once: 2"),
        ([1, 2, 3, 3], "more than once: 3"),
        ([], "missing: 1, 2, 3"),
    ],
)
def test_joint_scenes_of_different_objects(second: list[int], said: str) -> None:
    scenes = [b"".join(trajectory(i, columns(i)) for i in ids) for ids in ([1, 2, 3], second)]
    with pytest.raises(RolloutsError) as error:
        decode(message(*scenes))
    assert error.value.where == "file, scenario scene, rollout 1"
    assert f"({said})" in error.value.what


def test_an_object_twice_in_every_joint_scene() -> None:
    scene = trajectory(1, columns(1)) + trajectory(1, columns(1))
    with pytest.raises(RolloutsError, match=r"rollout 0: .*more than once: 1"):
        decode(message(scene, scene))


def test_coordinates_of_different_length() -> None:
    x, y, z, heading = columns(2)
    good, bad = trajectory(1, columns(1)), trajectory(2, [x, y[:1], z, heading])
    with pytest.raises(RolloutsError, match=r"rollout 1: .*differ in length \(objects 2\)"):
        decode(message(good + trajectory(2, columns(2)), good + bad))


def test_trajectories_of_different_length() -> None:
    scenes = [
        trajectory(1, columns(1)) + trajectory(2, columns(2, n_steps=n_steps)) for n_steps in (2, 3)
    ]
    with pytest.raises(RolloutsError, match=r"rollout 1: .*the 2 steps .*\(objects 2\)"):
        decode(message(*scenes))


def test_no_scenario_id() -> None:
    with pytest.raises(RolloutsError, match="no scenario_id"):
        decode(block(2, trajectory(1, columns(1))))


# Damaged messages


def test_every_truncation_is_an_error_or_a_shorter_message() -> None:
    whole = encode_scenario_rollouts(official_generated())
    n_rollouts = []
    for length in range(len(whole)):
        with contextlib.suppress(WosacError):
            n_rollouts.append(decode(whole[:length]).n_rollouts)
    # A message may end behind the scenario id and behind each joint scene.
    assert n_rollouts == [0, 1]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_does_more_than_an_error(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([OFFICIAL, block(1, OFFICIAL_GENERATED)])))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for read in (
        iter_submission,
        scan_submission,
        lambda d, where: [read_metadata(d, where=where)],
    ):
        with contextlib.suppress(WosacError):
            list(read(bytes(whole), where="file"))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(varint(2 << 3 | 2) + varint(1000) + b"short", id="length beyond the end"),
        pytest.param(varint(2 << 3 | 2) + b"\xff" * 9 + b"\1", id="length above 2**63"),
        pytest.param(b"\xff" * 11, id="varint of 11 bytes"),
        pytest.param(b"\x07", id="wire type 7"),
        pytest.param(b"\x00\x00", id="field 0"),
        pytest.param(varint(9 << 3 | 3) + varint(8 << 3 | 4), id="group closed by another"),
        pytest.param(varint(9 << 3 | 4), id="group that was never opened"),
        pytest.param(block(2, block(1, block(2, b"odd"))), id="packed floats of 3 bytes"),
        pytest.param(block(2, block(1, varint(2 << 3 | 5) + b"..")), id="half a float"),
    ],
)
def test_malformed_messages_name_the_byte(damage: bytes) -> None:
    with pytest.raises(FormatError, match=r"^file.*: .*malformed at byte \d+"):
        decode(message(trajectory(1, columns(1))) + damage)


@pytest.mark.parametrize("scenario_id", [b"\xff\xfe", b"a\nb", b"x" * 300])
def test_scenario_ids_that_are_no_short_text(scenario_id: bytes) -> None:
    with pytest.raises(FormatError, match="scenario_id"):
        decode(message(scenario_id=scenario_id))


# Files


def submission(*rollouts: Rollouts, metadata: bytes = b"") -> bytes:
    return b"".join(block(1, encode_scenario_rollouts(one)) for one in rollouts) + metadata


def test_a_submission_holds_many_scenarios_and_a_bare_message_one() -> None:
    a, b = example("a"), example("b")
    for data, expected in (
        (submission(a, b), [a, b]),
        (encode_metadata(OFFICIAL_METADATA) + submission(a, b), [a, b]),
        (encode_scenario_rollouts(a), [a]),
    ):
        for source in (data, memoryview(data), io.BufferedReader(io.BytesIO(data))):
            read = list(iter_submission(source, where="file"))
            assert len(read) == len(expected)
            assert all(map(same, read, expected))


@pytest.mark.parametrize(
    "scenario_id",
    [
        "637f20cafde22ff8",
        "1c365f15b70ebdbf",  # parses as a message of unknown fields: '1' is a tag of 8 bytes
        "1abcdefgh5abcd0a",
        "eb4b91b10ca94ff2_10",
        "zürich",
        "x",
    ],
)
def test_a_bare_message_is_recognised_whatever_its_id(scenario_id: str) -> None:
    one = example(scenario_id)
    for data in (encode_scenario_rollouts(one), submission(one)):
        (read,) = iter_submission(data, where="file")
        assert same(read, one)
        assert [i for i, _, _ in scan_submission(data, where="file")] == [scenario_id]


def test_a_bare_message_may_start_with_a_joint_scene() -> None:
    scene = block(2, trajectory(1, columns(1)))
    (read,) = iter_submission(scene + block(1, b"scene"), where="file")
    assert same(read, decode(message(trajectory(1, columns(1)))))


def test_a_submission_whose_first_scenario_id_comes_last() -> None:
    scene = block(2, trajectory(1, columns(1)))
    data = block(1, scene + block(1, b"a")) + submission(example("b"))
    assert [one.scenario_id for one in iter_submission(data, where="file")] == ["a", "b"]
    assert [i for i, _, _ in scan_submission(data, where="file")] == ["a", "b"]


def test_a_scan_tells_where_each_message_lies() -> None:
    expected = [example(name, n_steps=n) for name, n in (("a", 3), ("b", 90), ("c", 1))]
    for data in (
        submission(*expected, metadata=encode_metadata(OFFICIAL_METADATA)),
        encode_scenario_rollouts(expected[0]),
    ):
        spans = list(scan_submission(data, where="file"))
        messages = list(iter_messages(data, where="file"))
        assert len(spans) == len(messages)
        for (scenario_id, offset, length), (start, content), one in zip(
            spans, messages, expected, strict=False
        ):
            assert (scenario_id, offset) == (one.scenario_id, start)
            assert data[offset : offset + length] == content
            assert same(decode(content), one)


def test_a_stream_is_only_read_forwards() -> None:
    class Pipe(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.rest = data

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            piece, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
            buffer[: len(piece)] = piece
            return len(piece)

    a, b = example("a", n_steps=400), example("b")
    for data, expected in (
        (submission(a, b, metadata=encode_metadata(OFFICIAL_METADATA)), [a, b]),
        (encode_scenario_rollouts(a), [a]),
    ):
        stream = io.BufferedReader(Pipe(data))
        read = list(iter_submission(stream, where="file", size=len(data)))
        assert len(read) == len(expected)
        assert all(map(same, read, expected))


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_truncated_file_still_gives_the_scenarios_before_it(cut: int) -> None:
    data = submission(example("a"), example("b"))[:-cut]
    read = iter_submission(data, where="file")
    assert same(next(read), example("a"))
    with pytest.raises(FormatError, match="truncated"):
        next(read)
    with pytest.raises(FormatError, match="truncated"):
        list(scan_submission(data, where="file"))


@pytest.mark.parametrize(
    "data", [b"", b"not a proto at all", b"\x1f\x8b\x08\0", b"\x0a\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_files_of_another_kind(data: bytes) -> None:
    for read in (iter_submission, scan_submission):
        with pytest.raises(FormatError, match=r"^file: "):
            list(read(data, where="file"))


def test_a_claimed_size_is_not_reserved() -> None:
    with pytest.raises(FormatError, match="claims 2000000000 bytes, 3 are left"):
        list(iter_submission(b"\x0a" + varint(2_000_000_000) + b"abc", where="file"))


# Writing


def test_writes_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "x.binproto-00001-of-00150"
    given = [example("a"), example("b", n_steps=80)]
    assert write_submission(path, iter(given), OFFICIAL_METADATA) == path
    with open(path, "rb") as stream:
        assert all(map(same, iter_submission(stream, where="file"), given))
        assert read_metadata(stream, where="file") == OFFICIAL_METADATA
    assert list(tmp_path.iterdir()) == [path]


def test_flags_that_are_not_given_are_not_set() -> None:
    metadata = SubmissionMetadata(account_name="a@b.org")
    encoded = encode_metadata(metadata)
    assert encoded == varint(2 << 3) + varint(1) + block(3, b"a@b.org")
    assert read_metadata(encoded, where="file") == metadata


@pytest.mark.parametrize("before", [None, b"before"])
def test_a_shard_is_written_whole_or_not_at_all(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "x.binproto"
    if before is not None:
        path.write_bytes(before)

    def interrupted() -> Iterator[Rollouts]:
        yield example()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_submission(path, interrupted(), OFFICIAL_METADATA)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if before is None else [before])


@pytest.mark.parametrize("name", ["x.pb", "x.binproto-1-of-2", "binproto"])
def test_names_that_the_server_refuses(tmp_path: Path, name: str) -> None:
    with pytest.raises(RolloutsError, match=r"call it <name>\.binproto"):
        write_submission(tmp_path / name, [], OFFICIAL_METADATA)


def test_object_ids_must_be_int32() -> None:
    rollouts = Rollouts("scene", np.array([2**31]), np.zeros((1, 1, 1, 4), np.float32))
    with pytest.raises(RolloutsError, match="2147483648"):
        encode_scenario_rollouts(rollouts)
