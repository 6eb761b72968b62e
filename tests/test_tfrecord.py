"""TFRecord framing: shards are found, records are checked, damage is named."""

from __future__ import annotations

import gzip
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wosac_toolkit.errors import FormatError, WosacError
from wosac_toolkit.io.tfrecord import (
    RecordRef,
    find_shards,
    iter_records,
    iter_refs,
    iter_views,
    read_record,
    write_records,
)

#: What TensorFlow's TFRecordWriter makes of the payloads b"123456789" and b"".
FROM_TENSORFLOW = bytes.fromhex(
    "090000000000000037f97139313233343536373839e5b08ac7000000000000000029039807d8ea82a2"
)
PAYLOADS = [b"first", b"", bytes(range(256)) * 300, b"last"]


@pytest.fixture(params=["plain", "gzip"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with `PAYLOADS`; its name does not tell whether it is compressed."""
    path = tmp_path / "a.tfrecord-00000-of-00001"
    write_records(path, PAYLOADS)
    if request.param == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def checksum(data: bytes) -> bytes:
    """The masked CRC-32C, computed bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return ((rotated + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def frame(payload: bytes) -> bytes:
    """One record."""
    length = len(payload).to_bytes(8, "little")
    return length + checksum(length) + payload + checksum(payload)


class TestRecords:
    def test_written_as_tensorflow_writes_them(self, tmp_path: Path) -> None:
        write_records(tmp_path / "a.tfrecord", [b"123456789", b""])
        assert (tmp_path / "a.tfrecord").read_bytes() == FROM_TENSORFLOW

    def test_read_in_order(self, shard: Path) -> None:
        assert [payload for _, payload in iter_records(shard)] == PAYLOADS

    def test_views_and_refs_agree_with_records(self, shard: Path) -> None:
        records = list(iter_records(shard))
        assert [(ref, bytes(view)) for ref, view in iter_views(shard)] == records
        assert list(iter_refs(shard)) == [ref for ref, _ in records]

    def test_offsets_are_those_of_the_uncompressed_stream(self, shard: Path) -> None:
        offsets = [ref.offset for ref in iter_refs(shard)]
        assert offsets == [0, 16 + 5, 2 * 16 + 5, 3 * 16 + 5 + 76800]

    def test_read_one_by_one_in_any_order(self, shard: Path) -> None:
        refs = list(iter_refs(shard))
        for i in (2, 3, 0, 0, 1, 3, 2):
            assert read_record(refs[i]) == PAYLOADS[i]

    def test_an_empty_file_has_no_records(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.tfrecord"
        path.touch()
        assert list(iter_records(path)) == list(iter_views(path)) == []

    def test_a_length_that_looks_like_gzip_is_still_a_length(self, tmp_path: Path) -> None:
        payload = bytes(0x088B1F)
        path = tmp_path / "a.tfrecord"
        write_records(path, [payload])
        assert path.read_bytes()[:3] == b"\x1f\x8b\x08"
        (ref,) = iter_refs(path)
        assert read_record(ref) == payload

    @given(payloads=st.lists(st.binary(max_size=40), max_size=5))
    def test_framing_is_as_specified(
        self, payloads: list[bytes], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.mktemp("any") / "a.tfrecord"
        write_records(path, payloads)
        assert path.read_bytes() == b"".join(map(frame, payloads))
        assert [payload for _, payload in iter_records(path)] == payloads

    def test_a_forked_process_reads_gzip_at_its_own_position(self, shard: Path) -> None:
        refs = list(iter_refs(shard))
        assert read_record(refs[0]) == PAYLOADS[0]
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.map(read_record, refs[1:]) == PAYLOADS[1:]
        assert [read_record(ref) for ref in refs[1:]] == PAYLOADS[1:]


class TestWriting:
    def test_an_error_leaves_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError):
            write_records(tmp_path / "a.tfrecord", (bytes(1 // i) for i in (1, 0)))
        assert list(tmp_path.iterdir()) == []

    def test_an_error_keeps_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        write_records(path, [b"old"])
        with pytest.raises(ZeroDivisionError):
            write_records(path, (bytes(1 // i) for i in (1, 0)))
        assert [payload for _, payload in iter_records(path)] == [b"old"]


def everything(path: Path) -> list[list[bytes]]:
    """The payloads as each of the readers gives them."""
    refs = list(iter_refs(path))
    return [
        [payload for _, payload in iter_records(path)],
        [read_record(ref) for ref in refs],
    ]


class TestDamage:
    @pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
    def test_a_cut_between_records_alone_goes_unnoticed(
        self, tmp_path: Path, compress: Callable[[bytes], bytes]
    ) -> None:
        path = tmp_path / "a.tfrecord"
        whole = frame(b"one") + frame(b"second")
        for n in range(len(whole)):
            path.write_bytes(compress(whole[:n]))
            if n in (0, 19):
                assert everything(path) == [[b"one"]] * 2 if n else [[]] * 2
            else:
                with pytest.raises(
                    FormatError, match=f"record {int(n > 19)}, byte {19 * (n > 19)}"
                ):
                    everything(path)

    def test_a_cut_of_a_gzip_file_is_always_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        whole = gzip.compress(frame(b"one") + frame(b"second"))
        for n in range(12, len(whole)):
            path.write_bytes(whole[:n])
            with pytest.raises(FormatError, match="record"):
                everything(path)

    def test_every_flipped_byte_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        whole = frame(b"one") + frame(b"second")
        for n in range(len(whole)):
            damaged = bytearray(whole)
            damaged[n] ^= 0x10
            path.write_bytes(damaged)
            with pytest.raises(FormatError, match=rf"a\.tfrecord, record {int(n >= 19)}, byte"):
                list(iter_records(path))

    def test_a_false_length_is_not_allocated(self, tmp_path: Path) -> None:
        length = (1 << 62).to_bytes(8, "little")
        for compress in (bytes, gzip.compress):
            path = tmp_path / "a.tfrecord"
            path.write_bytes(compress(length + checksum(length) + bytes(100)))
            with pytest.raises(FormatError, match=r"record 0, byte 0: .* are announced"):
                everything(path)

    def test_another_kind_of_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        path.write_bytes(b"PK\x03\x04" + bytes(100))
        with pytest.raises(FormatError, match="not a TFRecord"):
            list(iter_records(path))

    def test_a_ref_to_another_place(self, shard: Path) -> None:
        ref = next(iter_refs(shard))
        with pytest.raises(FormatError, match="byte 3"):
            read_record(RecordRef(ref.path, 3, ref.length))
        with pytest.raises(FormatError, match="no record of 4 bytes"):
            read_record(RecordRef(ref.path, ref.offset, 4))
        with pytest.raises(FormatError, match="no record of 5 bytes"):
            read_record(RecordRef(ref.path, 1 << 40, 5))
        assert read_record(ref) == PAYLOADS[0]

    def test_a_gzip_file_that_has_been_replaced_is_opened_again(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        path.write_bytes(gzip.compress(frame(b"old")))
        (ref,) = iter_refs(path)
        assert read_record(ref) == b"old"
        (tmp_path / "new").write_bytes(gzip.compress(frame(b"new")))
        os.replace(tmp_path / "new", path)
        assert read_record(ref) == b"new"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as users have it, with files that are no shards."""
    for name in (
        "training/t.tfrecord-00001-of-00002",
        "training/t.tfrecord-00000-of-00002",
        "training/.t.tfrecord-00000-of-00002.123.tmp",
        "training/t.tfrecord-00000-of-00002_.gstmp",
        "validation/v.tfrecord.gz",
        "validation/notes.txt",
        "single.tfrecord",
        "renamed",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_records(path, [name.encode()])
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestFindShards:
    @pytest.mark.parametrize(
        ("path", "found"),
        [
            ("single.tfrecord", ["single.tfrecord"]),
            ("renamed", ["renamed"]),
            ("validation", ["validation/v.tfrecord.gz"]),
            (
                ".",
                [
                    "single.tfrecord",
                    "training/t.tfrecord-00000-of-00002",
                    "training/t.tfrecord-00001-of-00002",
                    "validation/v.tfrecord.gz",
                ],
            ),
            (
                "t*/*-of-00002",
                ["training/t.tfrecord-00000-of-00002", "training/t.tfrecord-00001-of-00002"],
            ),
            ("v*", ["validation/v.tfrecord.gz"]),
            (
                "training/t.tfrecord@2",
                ["training/t.tfrecord-00000-of-00002", "training/t.tfrecord-00001-of-00002"],
            ),
            ("renamed,single.tfrecord", ["renamed", "single.tfrecord"]),
            (["single.tfrecord", "renamed", "single.tfrecord"], ["single.tfrecord", "renamed"]),
            (Path("renamed"), ["renamed"]),
        ],
    )
    def test_found(self, tree: Path, path: str | list[str] | Path, found: list[str]) -> None:
        assert find_shards(path) == [Path(name) for name in found]

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("absent", "absent: no such TFRecord file, folder or glob"),
            ("training/t.tfrecord@3", "3 of 3 shards are missing, first t.tfrecord-00000-of-00003"),
            ("x*", "no such TFRecord"),
            ([], "no TFRecord files given"),
            ("renamed,absent", "absent"),
            ("", "no such TFRecord"),
        ],
    )
    def test_nothing_there(self, tree: Path, path: str | list[str], message: str) -> None:
        with pytest.raises(WosacError, match=message):
            find_shards(path)

    def test_a_folder_without_shards(self, tmp_path: Path) -> None:
        with pytest.raises(WosacError, match="no TFRecord files in this folder"):
            find_shards(tmp_path)
