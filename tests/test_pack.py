"""`wosac pack`: the archive that is uploaded, the same bytes however it comes about."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from rollouts_examples import same
from submission_examples import (
    METADATA,
    OFFICIAL,
    RECORDED,
    replaced,
    some_scenes,
    straight_on,
    write_recorded,
    write_scenes,
)

from wosac_toolkit.cli.group import LazyGroup
from wosac_toolkit.errors import FormatError, WosacError
from wosac_toolkit.io import submission
from wosac_toolkit.io.npz import read_npz, write_npz
from wosac_toolkit.io.pickled import write_pickle
from wosac_toolkit.io.submission import iter_submission, read_metadata, write_submission
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Scenario
from wosac_toolkit.submission import pack
from wosac_toolkit.submission.gzip_parts import (
    HEADER,
    Part,
    PartWriter,
    combined_crc,
    trailer,
)
from wosac_toolkit.submission.metadata import make_metadata
from wosac_toolkit.submission.pack import Packed, PackError, pack_submission
from wosac_toolkit.validation import Finding


@pytest.fixture(scope="module")
def scenes(make_scenario: Callable[..., Scenario]) -> list[Scenario]:
    return some_scenes(make_scenario)


@pytest.fixture(scope="module")
def scenes_dir(scenes: list[Scenario], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), scenes)


@pytest.fixture(scope="module")
def good(scenes: list[Scenario]) -> list[Rollouts]:
    return [straight_on(scenario) for scenario in scenes]


@pytest.fixture
def folder(tmp_path: Path, good: list[Rollouts]) -> Path:
    """Rollouts as .npz files."""
    folder = tmp_path / "rollouts"
    folder.mkdir()
    for one in good:
        write_npz(folder, one)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "submission.tar.gz"


def packed(rollouts: Path, out: Path, **options: Any) -> Packed:
    return pack_submission(rollouts, out, METADATA, **{"workers": 1, **options})


def working_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts")


# --------------------------------------------------------------------------------------------------
# Parts of a gzip stream


@settings(max_examples=60, deadline=None)
@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_checksums_combine(first: bytes, second: bytes) -> None:
    expected = zlib.crc32(first + second)
    assert combined_crc(zlib.crc32(first), zlib.crc32(second), len(second)) == expected


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.lists(st.binary(max_size=60), max_size=3), min_size=1, max_size=5),
    level=st.integers(0, 9),
)
def test_parts_are_one_gzip_stream(chunks: list[list[bytes]], level: int) -> None:
    pieces, whole = [HEADER], Part()
    for i, chunk in enumerate(chunks):
        writer = PartWriter(pieces.append, level)
        for data in chunk:
            writer.add(data)
        part = writer.end(last=i == len(chunks) - 1)
        whole = whole.then(part)
    stream = b"".join(pieces) + trailer(whole)
    content = b"".join(data for chunk in chunks for data in chunk)
    assert gzip.decompress(stream) == content
    one = zlib.decompressobj(31)  # a single inflater, which stops after the first stream
    assert one.decompress(stream) == content
    assert one.eof
    assert one.unused_data == b""
    assert whole.size == len(stream) - len(HEADER) - 8
    assert (whole.raw_size, whole.crc) == (len(content), zlib.crc32(content))


# --------------------------------------------------------------------------------------------------
# The archive


def test_the_archive_has_the_official_layout(folder: Path, out: Path, good: list[Rollouts]) -> None:
    result = packed(folder, out, n_shards=2)
    assert result == Packed(out, 3, 2, 0, result.raw_bytes, out.stat().st_size)
    names, read = [], []
    # In stream mode tarfile has a single inflater, as the evaluation server may.
    with tarfile.open(out, "r|gz") as archive:
        for member in archive:
            stream = archive.extractfile(member)
            assert stream is not None
            data = stream.read()
            names.append(member.name)
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            assert (member.type, member.mode) == (tarfile.REGTYPE, 0o644)
            assert read_metadata(data, where="") == METADATA
            read += list(iter_submission(data, where=""))
    assert names == [f"submission.binproto-{i:05d}-of-00002" for i in range(2)]
    assert all(map(same, read, good))
    assert len(read) == 3
    assert len(gzip.decompress(out.read_bytes())) == result.raw_bytes
    assert result.raw_bytes % tarfile.RECORDSIZE == 0
    assert not working_folder(out).exists()


def test_shards_are_those_of_write_submission(
    folder: Path, out: Path, tmp_path: Path, good: list[Rollouts]
) -> None:
    packed(folder, out, n_shards=1)
    path = write_submission(tmp_path / "x.binproto", good, METADATA)
    with tarfile.open(out) as archive:
        (member,) = archive.getmembers()
        stream = archive.extractfile(member)
        assert stream is not None
        assert stream.read() == path.read_bytes()


def test_bytes_do_not_depend_on_how_it_came_about(
    folder: Path, out: Path, tmp_path: Path, good: list[Rollouts]
) -> None:
    packed(folder, out)
    expected = out.read_bytes()

    shards = tmp_path / "shards"
    shards.mkdir()
    write_submission(shards / "b.binproto", reversed(good), make_metadata(None, {}))
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    for one in good:
        write_pickle(pickles, one)
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    for rollouts, workers in ((folder, 2), (shards, 1), (pickles, 1)):
        packed(rollouts, out, workers=workers, overwrite=True)
        assert out.read_bytes() == expected
    packed(folder, out, level=9, overwrite=True)
    assert gzip.decompress(out.read_bytes()) == gzip.decompress(expected)


def test_as_many_shards_as_a_split_has(
    tmp_path: Path, out: Path, good: list[Rollouts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "N_SHARDS", 2)
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(7):
        write_npz(folder, Rollouts(f"s{i}", good[0].object_ids, good[0].states))
    assert packed(folder, out).n_shards == 2
    with tarfile.open(out) as archive:
        ids = [
            [one.scenario_id for one in iter_submission(stream.read(), where="")]
            for member in archive
            if (stream := archive.extractfile(member))
        ]
    assert ids == [["s0", "s1", "s2"], ["s3", "s4", "s5", "s6"]]


# --------------------------------------------------------------------------------------------------
# Interrupted


class _Stop(BaseException):
    """What a Ctrl-C is to the code that it meets."""


def interrupt(
    monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path, after: int, **options: Any
) -> None:
    """Pack, and stop when so many shards are finished."""
    real, n_done = pack._deflate, 0

    def deflate(*args: Any) -> list[Finding]:
        nonlocal n_done
        if n_done == after:
            raise _Stop
        n_done += 1
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(pack, "_deflate", deflate)
        with pytest.raises(_Stop):
            packed(folder, out, **options)
    assert not out.exists()


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("sync", [0, 1 << 28])
def test_an_interrupted_pack_resumes(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int, sync: int
) -> None:
    packed(folder, out)
    expected = out.read_bytes()
    out.unlink()
    monkeypatch.setattr(pack, "_SYNC_BYTES", sync)
    interrupt(monkeypatch, folder, out, after)
    # Half of what was being appended, and what a killed worker leaves.
    with open(working_folder(out) / "archive", "ab") as stream:
        stream.write(b"half a part")
    (working_folder(out) / ".00002.part.1.tmp").write_bytes(b"half a part")
    assert packed(folder, out).n_kept == after
    assert out.read_bytes() == expected
    assert not working_folder(out).exists()


def test_a_resumed_pack_notices_what_changed(
    folder: Path, out: Path, good: list[Rollouts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "_SYNC_BYTES", 0)
    interrupt(monkeypatch, folder, out, 2)
    changed = replaced(good[1], good[1].states + np.float32(1))
    write_npz(folder, changed)
    os.utime(folder / "b1.npz", (1e9, 1e9))
    assert packed(folder, out).n_kept == 1
    resumed = out.read_bytes()
    packed(folder, out, overwrite=True)
    assert out.read_bytes() == resumed


def test_other_options_keep_nothing(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in ({"level": 2}, {"n_shards": 2}):
        interrupt(monkeypatch, folder, out, 2)
        assert packed(folder, out, **options).n_kept == 0
        resumed = out.read_bytes()
        packed(folder, out, **options, overwrite=True)
        assert out.read_bytes() == resumed
        out.unlink()


@pytest.mark.parametrize("damage", ["note", "part", "archive", "not json", "no archive"])
def test_a_damaged_working_folder_costs_time_only(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    packed(folder, out)
    expected = out.read_bytes()
    out.unlink()
    monkeypatch.setattr(pack, "_SYNC_BYTES", 0 if "archive" in damage else 1 << 28)
    interrupt(monkeypatch, folder, out, 2)
    work = working_folder(out)
    match damage:
        case "note":
            (work / "00000.json").unlink()
        case "part":
            (work / "00000.part").write_bytes(b"short")
        case "archive":
            (work / "archive").write_bytes(b"short")
        case "not json":
            (work / "00000.json").write_text('{"fingerprint": []}')
        case _:
            (work / "archive").unlink()
    assert packed(folder, out).n_kept < 2
    assert out.read_bytes() == expected


def test_a_killed_process_resumes(folder: Path, out: Path) -> None:
    """The real thing: killed in the middle of the second shard."""
    script = (
        "import os, signal\n"
        "from wosac_toolkit.submission import pack\n"
        "from submission_examples import METADATA\n"
        "real = pack.atomic_write\n"
        "def write(path):\n"
        "    if path.name == '00001.part': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(path)\n"
        "pack.atomic_write = write\n"
        f"pack.pack_submission({str(folder)!r}, {str(out)!r}, METADATA, workers=1)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, check=False, timeout=120
    )
    assert killed.returncode == -9
    assert not out.exists()
    assert packed(folder, out).n_kept == 1
    resumed = out.read_bytes()
    packed(folder, out, overwrite=True)
    assert out.read_bytes() == resumed


def test_two_processes_do_not_pack_the_same(folder: Path, out: Path) -> None:
    working_folder(out).mkdir()
    with pack._locked(working_folder(out), out), pytest.raises(WosacError, match="another process"):
        packed(folder, out)


# --------------------------------------------------------------------------------------------------
# What is refused


def refused(folder: Path, out: Path, **options: Any) -> PackError:
    with pytest.raises(PackError) as error:
        packed(folder, out, **options)
    assert not out.exists()
    return error.value


def test_metadata_against_the_rules(folder: Path, out: Path) -> None:
    with pytest.raises(PackError) as error:
        pack_submission(folder, out, make_metadata(None, {"unique_method_name": "x"}))
    said = " ".join(finding.what for finding in error.value.findings)
    for name in ("account_name", "authors", "uses_lidar_data", "num_model_parameters"):
        assert name in said
    assert list(out.parent.iterdir()) == [folder]


def test_rollouts_that_make_no_submission(
    folder: Path, out: Path, good: list[Rollouts], scenes_dir: Path
) -> None:
    write_npz(folder, replaced(good[1], good[1].states[:31]))
    error = refused(folder, out)
    assert [(f.code, f.scenario_id) for f in error.findings] == [("rollout_count", "b1")]
    states = good[1].states.copy()
    states[3, 2, 1, 0] = np.nan
    write_npz(folder, replaced(good[1], states))
    (finding,) = refused(folder, out).findings
    assert (finding.code, finding.rollout, finding.object_id) == ("non_finite", 3, 12)
    (folder / "b1.npz").write_bytes(b"garbage")
    (finding,) = refused(folder, out).findings
    assert (finding.code, finding.file) == ("damaged", str(folder / "b1.npz"))
    (folder / "b1.npz").unlink()
    assert [f.scenario_id for f in refused(folder, out, scenarios=scenes_dir).findings] == ["b1"]
    write_npz(folder, Rollouts("stranger", good[0].object_ids, good[0].states))
    found = refused(folder, out, scenarios=scenes_dir).findings
    assert [f.code for f in found] == ["no_rollouts", "no_scenario"]


def test_a_scenario_twice(folder: Path, out: Path, good: list[Rollouts]) -> None:
    write_submission(folder / "x.binproto", good[:1], METADATA)
    found = refused(folder, out).findings
    assert [(f.code, f.scenario_id) for f in found] == [("duplicate_rollouts", "a0")] * 2


def test_shards_above_2_gb(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "MAX_MESSAGE_BYTES", 100_000)
    (finding,) = refused(folder, out, n_shards=1).findings
    assert "take more --shards" in finding.what


def test_archives_in_the_way(folder: Path, out: Path, tmp_path: Path) -> None:
    out.write_bytes(b"there")
    with pytest.raises(WosacError, match="is there already"):
        packed(folder, out)
    assert out.read_bytes() == b"there"
    for name in ("x.tar", "x.zip", ".tar.gz"):
        with pytest.raises(WosacError, match="not the name of a submission"):
            packed(folder, tmp_path / name)
    with pytest.raises(WosacError, match="no such folder"):
        packed(folder, tmp_path / "absent" / "x.tar.gz")
    for n_shards in (0, 4):
        with pytest.raises(WosacError, match="shards of 3 scenes"):
            packed(folder, tmp_path / "x.tar.gz", n_shards=n_shards)


# --------------------------------------------------------------------------------------------------
# Metadata in files

FIELDS = """
account_name: team@example.org
unique_method_name: straight on
authors: [A. Author, Ö. Other]
affiliation: somewhere
description: |
  Goes straight on.
method_link: https://example.org/straight
uses_lidar_data: false
uses_camera_data: false
uses_public_model_pretraining: no
num_model_parameters: 7M
acknowledge_complies_with_closed_loop_requirement: true
"""


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    path = tmp_path / "method.yaml"
    path.write_text(FIELDS, "utf-8")
    return path


def test_a_file_of_metadata(fields: Path) -> None:
    assert make_metadata(fields, {}) == METADATA
    changed = make_metadata(
        fields, {"unique_method_name": "faster", "uses_lidar_data": True, "authors": ("B",)}
    )
    assert (changed.unique_method_name, changed.uses_lidar_data) == ("faster", True)
    assert changed.authors == ("B",)
    assert changed.affiliation == "somewhere"
    assert make_metadata(fields, {"uses_lidar_data": None, "authors": ()}) == METADATA


def test_numbers_and_single_authors_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("num_model_parameters: 24\nauthors: Me\n")
    metadata = make_metadata(path, {})
    assert (metadata.num_model_parameters, metadata.authors) == ("24", ("Me",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acount_name: x", "did you mean account_name?"),
        ("submission_type: 1", "unknown field 'submission_type'"),
        ("uses_lidar_data: 0", "true or false"),
        ("uses_lidar_data: 'false'", "true or false"),
        ("authors: {a: b}", "list of texts"),
        ("authors: [1]", "list of texts"),
        ("affiliation: [x]", "must be a text"),
        ("affiliation: true", "must be a text"),
        ("- a", "not a mapping"),
        ("", "not a mapping"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.system ['exit 1']", "not YAML"),
        ("\x00", "not YAML"),
        ("x" * (1 << 20) + "y", "above 1 MB"),
    ],
)
def test_files_that_are_no_metadata(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(FormatError, match=f"^{path}: ") as error:
        make_metadata(path, {})
    assert said in str(error.value)


# --------------------------------------------------------------------------------------------------
# The command

GROUP = LazyGroup("wosac", program="wosac", commands={"pack": ("wosac_toolkit.cli.pack", "")})


def wosac(*args: object) -> Result:
    return CliRunner().invoke(
        GROUP, [str(arg) for arg in args], prog_name="wosac", env={"WOSAC_SCENARIOS": None}
    )


def test_the_command_packs_and_validates(
    folder: Path, out: Path, fields: Path, scenes_dir: Path
) -> None:
    result = wosac(
        "pack", folder, "--out", out, "--metadata", fields, "--scenarios", scenes_dir,
        "--method-name", "straighter", "--split", "val",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3 scenes packed in 3 shards, ")
    assert lines[-1].startswith(f"valid: {out}: no findings; 3 scenes of 3, 3 shards")
    with tarfile.open(out) as archive:
        stream = archive.extractfile(archive.getmembers()[0])
        assert stream is not None
        name = read_metadata(stream.read(), where="").unique_method_name
    assert name == "straighter"


def test_all_metadata_as_flags(folder: Path, out: Path) -> None:
    result = wosac(
        "pack", folder, "--out", out, "--no-validate",
        "--method-name", "m", "--account", "a@b.org", "--author", "A", "--author", "B",
        "--affiliation", "x", "--description", "y", "--link", "http://z", "--num-parameters", "7M",
        "--no-lidar", "--camera", "--public-pretraining", "--public-model", "p", "--closed-loop",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "valid" not in result.stdout
    with tarfile.open(out) as archive:
        stream = archive.extractfile(archive.getmembers()[0])
        assert stream is not None
        metadata = read_metadata(stream.read(), where="")
    assert (metadata.authors, metadata.uses_lidar_data) == (("A", "B"), False)
    assert (metadata.uses_camera_data, metadata.uses_public_model_pretraining) == (True, True)
    assert metadata.acknowledge_complies_with_closed_loop_requirement is True


def test_the_command_says_what_is_missing(folder: Path, out: Path) -> None:
    result = wosac("pack", folder, "--out", out, "--method-name", "m")
    assert result.exit_code == 2
    assert "account_name is empty" in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()


def test_findings_of_the_packed_archive_end_with_1(
    folder: Path, out: Path, fields: Path, scenes_dir: Path, good: list[Rollouts]
) -> None:
    write_npz(folder, Rollouts("a0", np.array([10, 99]), good[0].states))
    result = wosac("pack", folder, "--out", out, "--metadata", fields, "--scenarios", scenes_dir)
    assert result.exit_code == 1
    assert "error unknown_object" in result.stdout
    assert out.exists()


# --------------------------------------------------------------------------------------------------
# The official package


@pytest.mark.parametrize("name", RECORDED)
def test_the_official_package_has_accepted_these_bytes(
    tmp_path: Path, out: Path, name: str
) -> None:
    """`check_pack.py` has recorded the shards that the official package parsed and validated."""
    challenge, source = RECORDED[name]
    packed(write_recorded(source, tmp_path / "rollouts"), out, challenge=challenge)
    recorded = json.loads((source / "packed.json").read_text())
    assert (recorded["challenge"], recorded["faults"]) == (name, [])
    with tarfile.open(out) as archive:
        shards = {
            member.name: hashlib.sha256(stream.read()).hexdigest()
            for member in archive
            if (stream := archive.extractfile(member))
        }
    assert shards == recorded["shards"]


@pytest.mark.parametrize("name", RECORDED)
def test_the_official_package_accepts_it(tmp_path: Path, out: Path, name: str) -> None:
    python = os.environ.get("ORACLE_PYTHON") or str(
        Path(__file__).parents[1] / ".venv-oracle" / "bin" / "python"
    )
    if shutil.which(python) is None:
        pytest.skip("no official package: `make oracle`, or set ORACLE_PYTHON to its interpreter")
    challenge, source = RECORDED[name]
    packed(write_recorded(source, tmp_path / "rollouts"), out, challenge=challenge)
    command = [python, str(OFFICIAL / "check_pack.py"), "--challenge", name, str(out)]
    result = subprocess.run(
        [*command, str(source / "scenes.tfrecord.gz")],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((source / "packed.json").read_text())


def test_rollouts_survive_bit_by_bit(folder: Path, out: Path) -> None:
    """Also those that are no round numbers."""
    states = np.random.default_rng(0).integers(0, 1 << 32, (32, 2, 80, 4), np.uint32)
    finite = np.where(np.isfinite(states.view(np.float32)), states.view(np.float32), np.float32(1))
    finite = np.clip(finite, -20, 20)
    write_npz(folder, Rollouts("a0", np.array([10, 11]), finite))
    packed(folder, out, level=random.Random(0).randrange(10))
    with tarfile.open(out) as archive:
        stream = archive.extractfile(archive.getmembers()[0])
        assert stream is not None
        (read,) = iter_submission(stream.read(), where="")
    assert same(read, read_npz(folder / "a0.npz"))
