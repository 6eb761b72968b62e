"""The front door: files, folders, globs and archives of rollouts in any format."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from rollouts_examples import example, same

from wosac_toolkit.errors import FormatError, RolloutsError
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.pickled import write_pickle
from wosac_toolkit.io.rollouts import (
    index_rollouts,
    is_archive,
    iter_archive,
    load_rollouts,
    rollout_files,
)
from wosac_toolkit.io.submission import (
    SubmissionMetadata,
    encode_scenario_rollouts,
    write_submission,
)

A, B, C, D, E = (example(name) for name in "abcde")
METADATA = SubmissionMetadata(account_name="a@b.org")


def shard(*rollouts: object, folder: Path, name: str = "x.binproto-00000-of-00001") -> Path:
    return write_submission(folder / name, rollouts, METADATA)  # type: ignore[arg-type]


def fill(folder: Path) -> Path:
    """A folder that mixes all formats, and what else lies in such folders."""
    folder.mkdir(exist_ok=True)
    write_npz(folder, A)
    write_pickle(folder, B)
    shard(C, D, folder=folder)
    (folder / "bare.binproto").write_bytes(encode_scenario_rollouts(E))
    for name in (
        "manifest.json",
        "README.md",
        ".hidden.npz",
        ".x.binproto.7.tmp",
        "scores.parquet",
    ):
        (folder / name).write_bytes(b"no rollouts")
    (folder / "sub.npz").mkdir()
    return folder


def load(path: Path | str) -> list[str]:
    return [rollouts.scenario_id for rollouts in load_rollouts(path)]


# Folders, globs, files


def test_a_folder_may_mix_all_formats(tmp_path: Path) -> None:
    folder = fill(tmp_path / "rollouts")
    loaded = {rollouts.scenario_id: rollouts for rollouts in load_rollouts(folder)}
    assert sorted(loaded) == ["a", "b", "c", "d", "e"]
    assert all(same(loaded[one.scenario_id], one) for one in (A, B, C, D, E))


def test_an_index_tells_what_can_be_read_later(tmp_path: Path) -> None:
    folder = fill(tmp_path / "rollouts")
    refs = index_rollouts(folder)
    assert [(ref.scenario_id, ref.format) for ref in refs] == [
        ("a", "npz"),
        ("b", "pickle"),
        ("e", "submission"),
        ("c", "submission"),
        ("d", "submission"),
    ]
    for ref in refs:
        sent = pickle.loads(pickle.dumps(ref))
        assert sent == ref
        assert same(sent.read(), example(ref.scenario_id))
        assert str(ref.path) in ref.where


def test_files_are_told_by_their_names_alone(tmp_path: Path) -> None:
    for name in ("a.npz", "b.pkl", "c.pickle", "scenario_d_closedloop_wosac.pkl"):
        (tmp_path / name).write_bytes(b"")
    assert {ref.scenario_id for ref in index_rollouts(tmp_path)} == {"a", "b", "c", "d"}


def test_a_scenario_in_two_files_is_given_twice(tmp_path: Path) -> None:
    write_npz(tmp_path, A)
    shard(A, B, folder=tmp_path)
    assert [ref.scenario_id for ref in index_rollouts(tmp_path)] == ["a", "a", "b"]
    assert load(tmp_path) == ["a", "a", "b"]


def test_globs(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    fill(tmp_path / "two")
    assert load(str(tmp_path / "*" / "*.npz")) == ["a", "a"]
    assert load(str(tmp_path / "**" / "x.binproto-*-of-*")) == ["c", "d", "c", "d"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    shard(A, folder=tmp_path, name="run[1].binproto")
    assert load(tmp_path / "run[1].binproto") == ["a"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none", "no such file or folder"),
        ("*.npz", "no such file or folder"),
        ("empty", "no rollouts in this folder"),
        ("notes.txt", "not a file of rollouts"),
        ("empty/.hidden.npz", "not a file of rollouts"),
    ],
)
@pytest.mark.parametrize("read", [load_rollouts, index_rollouts, rollout_files])
def test_nothing_found(
    tmp_path: Path, read: Callable[[Path], object], path: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty" / ".hidden.npz").touch()
    with pytest.raises(RolloutsError, match=said) as error:
        read(tmp_path / path)
    for accepted in (".npz", ".pkl", ".binproto", ".tar.gz"):
        assert accepted in error.value.mend


def test_a_shard_that_changed_after_it_was_indexed(tmp_path: Path) -> None:
    path = shard(A, B, folder=tmp_path)
    first, second = index_rollouts(path)
    shard(C, folder=tmp_path)
    with pytest.raises(RolloutsError, match="holds scenario 'c', not 'a'"):
        first.read()
    with pytest.raises(FormatError, match="shorter than when it was indexed"):
        second.read()


@pytest.mark.parametrize("write", [write_npz, write_pickle, None])
def test_a_file_that_is_gone_when_it_is_read(
    tmp_path: Path, write: Callable[..., Path] | None
) -> None:
    path = write(tmp_path, A) if write else shard(A, folder=tmp_path)
    (ref,) = index_rollouts(path)
    path.unlink()
    with pytest.raises(FormatError, match=rf"{path.name}.*: .*No such file"):
        ref.read()


def test_a_truncated_shard_is_found_when_it_is_indexed(tmp_path: Path) -> None:
    path = shard(A, B, folder=tmp_path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(FormatError, match=rf"{path.name}: .*truncated"):
        index_rollouts(tmp_path)


# Archives


def pack(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                content.name = name
                archive.addfile(content)
    return path


def special(kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, link
    return info


def shard_bytes(folder: Path, *rollouts: object) -> bytes:
    path = shard(*rollouts, folder=folder)
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize(
    ("name", "mode"), [("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar", "w"), ("x.tar.gz", "w")]
)
def test_an_archive_of_shards(tmp_path: Path, name: str, mode: str) -> None:
    members: dict[str, bytes | tarfile.TarInfo] = {
        "sub": special(tarfile.DIRTYPE),
        "sub/x.binproto-00000-of-00002": shard_bytes(tmp_path, A, B),
        "README.md": b"not a shard",
        "sub/._x.binproto-00000-of-00002": b"what a Mac leaves",
        "x.binproto-00001-of-00002": shard_bytes(tmp_path, C),
        "bare.binproto": encode_scenario_rollouts(D),
    }
    path = pack(tmp_path / name, members, mode)
    assert is_archive(path)
    archived = list(iter_archive(path))
    assert [one.scenario_id for one in archived] == ["a", "b", "c", "d"]
    assert all(map(same, (one.read() for one in archived), (A, B, C, D)))
    assert archived[1].message == encode_scenario_rollouts(B)
    assert f"{name}, member sub/x.binproto-00000-of-00002, message at byte" in archived[1].where
    assert load(path) == ["a", "b", "c", "d"]
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_in_a_folder_is_loaded_but_not_indexed(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar.gz", {"x.binproto": shard_bytes(tmp_path, A)})
    write_npz(tmp_path, B)
    assert sorted(load(tmp_path)) == ["a", "b"]
    with pytest.raises(RolloutsError, match=r"x\.tar\.gz: an archive .* not indexed"):
        index_rollouts(tmp_path)
    assert [is_archive(path) for path in rollout_files(tmp_path)] == [False, True]


def test_gzip_files_of_several_parts(tmp_path: Path) -> None:
    tar = pack(
        tmp_path / "plain.tar", {"x.binproto": shard_bytes(tmp_path, A, B)}, "w"
    ).read_bytes()
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(tar[:1000]) + gzip.compress(tar[1000:]))
    assert load(path) == ["a", "b"]


@pytest.mark.parametrize("name", ["../../up.binproto", "/tmp/abs.binproto", "a/../../b.binproto"])
def test_names_of_members_are_never_paths(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    path = pack(folder / "x.tar", {name: shard_bytes(tmp_path, A)}, "w")
    assert load(path) == ["a"]
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == {path}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_shards_that_are_no_regular_files(tmp_path: Path, kind: bytes) -> None:
    secret = shard(A, folder=tmp_path, name="secret.binproto")
    path = pack(tmp_path / "x.tar", {"x.binproto": special(kind, link=str(secret))}, "w")
    with pytest.raises(FormatError, match=r"member x\.binproto: not a regular file"):
        list(iter_archive(path))


def test_links_and_devices_of_other_names_are_passed_over(tmp_path: Path) -> None:
    members: dict[str, bytes | tarfile.TarInfo] = {
        "passwd": special(tarfile.SYMTYPE, "/etc/passwd"),
        "null": special(tarfile.CHRTYPE),
        "x.binproto": shard_bytes(tmp_path, A),
    }
    assert load(pack(tmp_path / "x.tar", members, "w")) == ["a"]


@pytest.mark.parametrize("size", [5 << 30, 3 << 29, -512])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_claimed_sizes_are_not_reserved(tmp_path: Path, size: int, kind: bytes) -> None:
    info = tarfile.TarInfo("x.binproto")
    info.size, info.type = size, kind
    path = tmp_path / "x.tar"
    claimed = b"\x0a\xff\xff\xff\xff\x04" if kind == tarfile.REGTYPE else b""
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + claimed + bytes(4096))
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"x\.tar"):
        list(iter_archive(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20


def test_a_truncated_archive_still_gives_the_scenarios_before(tmp_path: Path) -> None:
    long = [example(name, n_steps=400) for name in "ab"]
    path = pack(tmp_path / "x.tar", {"x.binproto": shard_bytes(tmp_path, *long)}, "w")
    path.write_bytes(path.read_bytes()[:-20_000])
    archived = iter_archive(path)
    assert same(next(archived).read(), long[0])
    with pytest.raises(FormatError, match=r"x\.tar: .*unexpected end"):
        next(archived)


def test_a_truncated_gzip_archive(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar.gz", {"x.binproto": shard_bytes(tmp_path, A)})
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"x\.tar\.gz: .*ended before the end"):
            list(iter_archive(path))


def test_a_damaged_archive_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar.gz", {"x.binproto": shard_bytes(tmp_path, A)})
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="CRC"):
        list(iter_archive(path))


def test_a_name_of_two_lines_is_told_in_one(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"a\nb/x.binproto": b"no proto"}, "w")
    with pytest.raises(FormatError) as error:
        list(iter_archive(path))
    assert "\n" not in str(error.value)


def test_an_archive_without_shards(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar.gz", {"a.npz": b"", "x.binproto.txt": b""})
    with pytest.raises(FormatError, match="without shards"):
        list(iter_archive(path))


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no archive"), b"\x1f\x8b"])
def test_files_that_are_no_archives(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.tar\.gz: "):
        list(iter_archive(path))
