"""`wosac convert`: rollouts from format to format, bit for bit, and nothing lost on the way."""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from rollouts_examples import example, same

from wosac_toolkit import convert
from wosac_toolkit.challenge import COMPONENTS
from wosac_toolkit.cli.convert import command
from wosac_toolkit.convert import FORMATS, MARKER, ConversionError, Format, convert_rollouts
from wosac_toolkit.errors import FormatError, RolloutsError, WosacError
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.pickled import write_pickle
from wosac_toolkit.io.rollouts import load_rollouts, rollout_files
from wosac_toolkit.io.submission import SubmissionMetadata, read_metadata, write_submission
from wosac_toolkit.manifest import Manifest, read_manifest, write_manifest
from wosac_toolkit.results import AGENT_SCHEMA, SCORE_SCHEMA, Summary
from wosac_toolkit.rollouts import Rollouts

ROOT = Path(__file__).parents[1]
METADATA = SubmissionMetadata(unique_method_name="SMART", authors=("A", "B"))

# Not the same bits as any computed NaN, and what rounding or formatting would lose.
ODD = np.array(
    [
        0x7FC00001,
        0xFFC12345,
        0x7F800001,
        0x80000000,
        0x00000001,
        0x7F800000,
        0xFF800000,
        0x3DCCCCCD,
    ],
    np.uint32,
).view(np.float32)


def scenes(*names: str, **sizes: int) -> list[Rollouts]:
    return [example(name, **sizes) for name in names]


def odd(scenario_id: str = "odd") -> Rollouts:
    """Rollouts with NaN, infinities, -0.0, denormals, and objects that are not sorted."""
    one = example(scenario_id, n_steps=6)
    states = one.states.copy()
    states.reshape(-1)[: 3 * len(ODD) : 3] = ODD
    return Rollouts(scenario_id, np.array([2**31 - 1, -(2**31), 7, 0]), states)


def write(folder: Path, format_: Format, *rollouts: Rollouts) -> Path:
    """Rollouts in one of the formats, as their own writers write them."""
    folder.mkdir(parents=True, exist_ok=True)
    if format_ == "submission":
        write_submission(folder / "x.binproto", rollouts, METADATA)
    for one in rollouts if format_ != "submission" else ():
        (write_npz if format_ == "npz" else write_pickle)(folder, one)
    return folder


def archive(path: Path, *shards: list[Rollouts]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for number, shard in enumerate(shards):
            name = f"x.binproto-{number:05d}-of-{len(shards):05d}"
            data = write_submission(path.parent / name, shard, METADATA).read_bytes()
            (path.parent / name).unlink()
            info = tarfile.TarInfo(f"sub/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def assert_same_bits(got: Rollouts, expected: Rollouts) -> None:
    assert got.scenario_id == expected.scenario_id
    assert got.object_ids.tolist() == expected.object_ids.tolist()
    assert same(got, expected)


def assert_holds(path: Path, *expected: Rollouts) -> None:
    """These scenes, in this order, and no other."""
    loaded = list(load_rollouts(path))
    assert [one.scenario_id for one in loaded] == [one.scenario_id for one in expected]
    for got, one in zip(loaded, expected, strict=True):
        assert_same_bits(got, one)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of rollouts in a folder."""
    return {path.name: path.read_bytes() for path in rollout_files(folder)}


def run(*args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


# Nothing is lost


@pytest.mark.parametrize(("start", "to"), list(itertools.product(FORMATS, FORMATS)))
def test_every_format_becomes_every_other_bit_for_bit(
    tmp_path: Path, start: Format, to: Format
) -> None:
    rollouts = [odd(), *scenes("scene1", "scene2")]
    write(tmp_path / "in", start, *rollouts)
    done = convert_rollouts(tmp_path / "in", tmp_path / "out", to)
    assert (done.format, done.n_scenes, done.n_kept) == (to, 3, 0)
    assert_holds(tmp_path / "out", *rollouts)


@pytest.mark.parametrize("path", list(itertools.permutations(FORMATS)))
def test_all_the_way_round_gives_the_same_bytes(tmp_path: Path, path: tuple[Format, ...]) -> None:
    write(tmp_path / "0", path[0], odd(), *scenes("scene1", "scene2"))
    convert_rollouts(tmp_path / "0", tmp_path / "1", path[0])
    for number, to in enumerate((*path[1:], path[0]), start=1):
        convert_rollouts(tmp_path / str(number), tmp_path / str(number + 1), to)
    first, last = contents(tmp_path / "1"), contents(tmp_path / "4")
    if path[0] == "submission":  # Its metadata is lost on the way.
        last = {
            name: write_submission(
                tmp_path / name, load_rollouts(tmp_path / "4" / name), METADATA
            ).read_bytes()
            for name in last
        }
    assert first == last


@settings(max_examples=20, deadline=None)
@given(
    states=st_numpy.arrays(
        np.uint32, st.tuples(*(st.integers(1, 3) for _ in range(3)), st.just(4))
    ),
    data=st.data(),
)
def test_any_bits_survive(
    tmp_path_factory: pytest.TempPathFactory, states: Any, data: st.DataObject
) -> None:
    n = states.shape[1]
    ids = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=n, max_size=n, unique=True))
    one = Rollouts("scene", np.array(ids), states.view(np.float32))
    folder = tmp_path_factory.mktemp("any")
    write(folder / "0", "npz", one)
    for number, to in enumerate(("submission", "pickle", "npz")):
        convert_rollouts(folder / str(number), folder / str(number + 1), to)  # type: ignore[arg-type]
    assert_holds(folder / "3", one)


def test_wider_and_narrower_floats_become_float32(tmp_path: Path) -> None:
    one = example("scene")
    for dtype in ("<f2", "<f8", ">f4"):
        folder = tmp_path / dtype[1:]
        folder.mkdir()
        states = one.states.astype(dtype)
        np.savez(folder / "scene.npz", object_ids=one.object_ids.astype(">i2"), states=states)
        convert_rollouts(folder, folder / "out", "submission")
        assert_holds(folder / "out", replace(one, states=states.astype(np.float32)))


def test_pickles_are_those_that_trajtok_loads(tmp_path: Path) -> None:
    write(tmp_path / "in", "submission", odd())
    convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle")
    loaded = pickle.loads((tmp_path / "out" / "odd.pkl").read_bytes())
    assert list(loaded) == ["simulated_states", "agent_id"]
    assert loaded["simulated_states"].dtype == np.float32
    assert loaded["simulated_states"].tobytes() == odd().states.tobytes()
    assert loaded["agent_id"].tolist() == odd().object_ids.tolist()


def test_closed_loop_pickles_of_catk(tmp_path: Path) -> None:
    one = example("abc")
    branch = {"model_rollouts": {"m": {"rollouts": one.states}}, "agents_id": one.object_ids}
    path = tmp_path / "in" / "scenario_abc_closedloop_wosac.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(branch))
    convert_rollouts(path.parent, tmp_path / "out", "npz")
    assert (tmp_path / "out" / "abc.npz").exists()
    assert_holds(tmp_path / "out", one)


def sized(scenario_id: str) -> Rollouts:
    """Rollouts of scenario generation."""
    one = example(scenario_id, n_steps=91)
    n_rollouts, n_objects, n_steps, _ = one.states.shape
    return replace(
        one,
        sizes=np.arange(n_rollouts * n_objects * n_steps * 3, dtype=np.float32).reshape(
            n_rollouts, n_objects, n_steps, 3
        ),
        object_types=np.arange(n_rollouts * n_objects).reshape(n_rollouts, -1) % 3 + 1,
    )


@pytest.mark.parametrize("to", convert._WITH_SIZES)
@pytest.mark.parametrize("left_out", ["", "sizes", "object_types"])
def test_sizes_and_types_go_along(tmp_path: Path, to: Format, left_out: str) -> None:
    one = sized("scene")
    if left_out:
        one = replace(one, **{left_out: None})
    write(tmp_path / "in", "npz", one)
    convert_rollouts(tmp_path / "in", tmp_path / "there", to)
    assert_holds(tmp_path / "there", one)
    convert_rollouts(tmp_path / "there", tmp_path / "back", "npz")
    assert contents(tmp_path / "back") == contents(tmp_path / "in")


@pytest.mark.parametrize("to", sorted(set(FORMATS) - set(convert._WITH_SIZES)))
def test_formats_that_cannot_hold_sizes(tmp_path: Path, to: Format) -> None:
    write(tmp_path / "in", "npz", sized("scene"))
    with pytest.raises(ConversionError) as error:
        convert_rollouts(tmp_path / "in", tmp_path / "out", to)
    assert "scene.npz: scenario scene: simulated sizes or types" in error.value.findings[0]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARKER]


# Archives, shards, single files


@pytest.mark.parametrize("to", FORMATS)
def test_an_archive_of_shards(tmp_path: Path, to: Format) -> None:
    rollouts = scenes("c", "a", "b")
    path = archive(tmp_path / "x.tar.gz", rollouts[:2], rollouts[2:])
    convert_rollouts(path, tmp_path / "out", to)
    order = rollouts if to == "submission" else sorted(rollouts, key=lambda one: one.scenario_id)
    assert_holds(tmp_path / "out", *order)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.tar.gz"]


def test_shards_keep_the_order_of_their_source(tmp_path: Path) -> None:
    rollouts = scenes("e", "a", "d", "b", "c")
    write(tmp_path / "in", "submission", *rollouts)
    done = convert_rollouts(tmp_path / "in", tmp_path / "out", "submission", scenes_per_shard=2)
    assert done.n_files == 3
    names = [f"rollouts.binproto-{i:05d}-of-00003" for i in range(3)]
    assert list(contents(tmp_path / "out")) == names
    assert_holds(tmp_path / "out" / names[0], *rollouts[:2])
    assert_holds(tmp_path / "out" / names[2], *rollouts[4:])


def test_the_metadata_goes_from_shards_to_shards(tmp_path: Path) -> None:
    write(tmp_path / "in", "submission", *scenes("a", "b"))
    convert_rollouts(tmp_path / "in", tmp_path / "out", "submission", scenes_per_shard=1)
    for path in rollout_files(tmp_path / "out"):
        metadata = read_metadata(path.read_bytes(), where="")
        assert metadata.unique_method_name == "SMART"
        assert metadata.authors == ("A", "B")


@pytest.mark.parametrize("name", ["all.binproto", "all.binproto-00003-of-00150"])
def test_one_shard_of_all_scenes(tmp_path: Path, name: str) -> None:
    rollouts = scenes("a", "b", "c")
    write(tmp_path / "in", "npz", *rollouts)
    convert_rollouts(tmp_path / "in", tmp_path / name, scenes_per_shard=1)
    assert_holds(tmp_path / name, *rollouts)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "in"]


@pytest.mark.parametrize(("start", "end"), [("a.npz", "a.pkl"), ("a.pkl", "a.npz")])
def test_one_file_of_one_scene(tmp_path: Path, start: str, end: str) -> None:
    write(tmp_path, "npz" if start == "a.npz" else "pickle", odd("a"))
    convert_rollouts(tmp_path / start, tmp_path / end)
    assert_holds(tmp_path / end, odd("a"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.pkl"]


def test_the_manifest_goes_along_so_that_the_scenes_are_found(tmp_path: Path) -> None:
    write(tmp_path / "in", "npz", *scenes("a", "b"))
    manifest = Manifest("/scenes", "log", 3, 3, 2, "npz", "0.1")
    write_manifest(tmp_path / "in", manifest)
    convert_rollouts(tmp_path / "in", tmp_path / "out", "submission")
    assert read_manifest(tmp_path / "out") == replace(manifest, format="submission")


def test_the_same_rollouts_give_the_same_bytes(tmp_path: Path) -> None:
    rollouts = [odd("a"), *scenes("b", "c")]
    for format_ in FORMATS:
        outs = []
        for start in ("npz", "pickle"):
            write(tmp_path / start, start, *rollouts)
            out = tmp_path / f"{start}-{format_}"
            convert_rollouts(tmp_path / start, out, format_)
            outs.append(contents(out))
        assert outs[0] == outs[1]


# What is interrupted goes on


@pytest.mark.parametrize("to", FORMATS)
def test_an_interrupted_conversion_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Format
) -> None:
    rollouts = scenes(*"abcdef")
    source = archive(tmp_path / "x.tar.gz", rollouts[:3], rollouts[3:])
    read, n_read = convert._read, 0

    def killed(*args: Any) -> Rollouts:
        nonlocal n_read
        n_read += 1
        if n_read == 4:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(convert, "_read", killed)
    with pytest.raises(KeyboardInterrupt):
        convert_rollouts(source, tmp_path / "out", to, scenes_per_shard=2)
    n_kept = 2 if to == "submission" else 3
    before = contents(tmp_path / "out")
    assert len(before) == (1 if to == "submission" else 3)
    assert not list((tmp_path / "out").glob(".*"))
    done = convert_rollouts(source, tmp_path / "out", to, scenes_per_shard=2)
    assert (done.n_scenes, done.n_kept) == (6, n_kept)
    assert n_read == 4 + 6 - n_kept
    assert_holds(tmp_path / "out", *rollouts)
    convert_rollouts(source, tmp_path / "whole", to, scenes_per_shard=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_conversion_has_nothing_left_to_do(tmp_path: Path) -> None:
    write(tmp_path / "in", "npz", *scenes("a", "b"))
    convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle")
    done = convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle")
    assert (done.n_scenes, done.n_kept) == (2, 2)


def test_a_source_that_changed_is_converted_again(tmp_path: Path) -> None:
    a, b = scenes("a", "b")
    write(tmp_path / "in", "npz", a, b)
    convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle")
    time.sleep(0.05)  # More than the steps in which file systems count time.
    write(tmp_path / "in", "npz", odd("b"))
    # Not even a file that claims to be old is mistaken for the one that was converted.
    os.utime(tmp_path / "in" / "b.npz", (1, 1))
    done = convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle")
    assert done.n_kept == 1
    assert_holds(tmp_path / "out", a, odd("b"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "other"}, "differs in source"),
        ({"to": "pickle"}, "differs in format"),
        ({"scenes_per_shard": 2}, "differs in scenes_per_shard"),
    ],
)
def test_a_folder_is_of_one_conversion(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    for name in ("in", "other"):
        write(tmp_path / name, "npz", *scenes("a", "b"))
    asked: dict[str, Any] = {"source": "in", "to": "submission", "scenes_per_shard": 1}
    out = tmp_path / "out"
    for number, request in enumerate((asked, {**asked, **change})):
        source = tmp_path / request.pop("source")
        if number == 0:
            convert_rollouts(source, out, **request)
            before = contents(out)
            continue
        with pytest.raises(WosacError, match=said):
            convert_rollouts(source, out, **request)
    assert contents(out) == before


def test_a_folder_with_other_rollouts_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "in", "npz", *scenes("a", "b"))
    write(tmp_path / "out", "pickle", example("z"))
    with pytest.raises(WosacError, match=r"other rollouts already: z\.pkl"):
        convert_rollouts(tmp_path / "in", tmp_path / "out", "npz")
    with pytest.raises(WosacError, match=r"other rollouts already: a\.npz, b\.npz"):
        convert_rollouts(tmp_path / "in", tmp_path / "in", "pickle")
    assert list(contents(tmp_path / "out")) == ["z.pkl"]
    # Scenes that the source has lost would stay behind.
    convert_rollouts(tmp_path / "in", tmp_path / "new", "pickle")
    (tmp_path / "in" / "a.npz").unlink()
    with pytest.raises(WosacError, match=r"other rollouts already: a\.pkl"):
        convert_rollouts(tmp_path / "in", tmp_path / "new", "pickle")


def test_a_damaged_marker(tmp_path: Path) -> None:
    write(tmp_path / "in", "npz", example("a"))
    convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle")
    for text in (b"{", b"[]", b"\xff"):
        (tmp_path / "out" / MARKER).write_bytes(text)
        with pytest.raises(FormatError, match=rf"{MARKER}: .*delete it"):
            convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle")


def test_memory_does_not_grow_with_the_scenes(tmp_path: Path) -> None:
    rollouts = scenes(*(f"scene{i:02d}" for i in range(12)), n_rollouts=8, n_objects=16, n_steps=80)
    size = rollouts[0].states.nbytes
    write(tmp_path / "in", "npz", *rollouts)
    del rollouts
    convert_rollouts(tmp_path / "in", tmp_path / "warm", "submission")
    tracemalloc.start()
    convert_rollouts(tmp_path / "in", tmp_path / "out", "submission")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 7 * size


# What cannot be converted


def test_every_bad_scene_is_named_and_the_others_are_converted(tmp_path: Path) -> None:
    a, b, c, d = scenes("a", "b", "c", "d")
    write(tmp_path / "in", "npz", a, b, replace(c, object_ids=np.array([7, 7, 8, 8])), d)
    (tmp_path / "in" / "b.npz").write_bytes(b"PK damaged")
    with pytest.raises(ConversionError) as error:
        convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle")
    assert "2 of 4 scenes could not be converted" in str(error.value)
    damaged, repeated = error.value.findings
    assert "b.npz" in damaged
    assert repeated.endswith("c.npz: scenario c: objects come more than once: 7, 8")
    assert_holds(tmp_path / "out", a, d)
    write(tmp_path / "in", "npz", b, c)
    assert convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle").n_kept == 2
    assert_holds(tmp_path / "out", a, b, c, d)


def test_a_shard_is_written_only_if_all_its_scenes_are_sound(tmp_path: Path) -> None:
    rollouts = scenes(*"abcdef")
    large = {i: replace(rollouts[i], object_ids=np.arange(4) + 2**31 - 2) for i in (2, 3)}
    write(tmp_path / "in", "npz", *(large.get(i, one) for i, one in enumerate(rollouts)))
    with pytest.raises(ConversionError) as error:
        convert_rollouts(tmp_path / "in", tmp_path / "out", "submission", scenes_per_shard=2)
    assert len(error.value.findings) == 2
    for name, finding in zip("cd", error.value.findings, strict=True):
        assert f"{name}.npz: scenario {name}: object ids that are not int32" in finding
        assert "2147483648, 2147483649" in finding
    assert_holds(tmp_path / "out", *rollouts[:2], *rollouts[4:])


@pytest.mark.parametrize("shape", [(0, 4, 5, 4), (3, 0, 5, 4), (3, 4, 0, 4)])
@pytest.mark.parametrize("to", FORMATS)
def test_rollouts_without_states_would_lose_their_shape(
    tmp_path: Path, shape: tuple[int, ...], to: Format
) -> None:
    write(tmp_path / "in", "npz", Rollouts("a", np.arange(shape[1]), np.zeros(shape, np.float32)))
    with pytest.raises(ConversionError) as error:
        convert_rollouts(tmp_path / "in", tmp_path / "out", to)
    assert "scenario a: no states" in error.value.findings[0]


def test_nothing_is_written_of_a_scenario_that_comes_twice(tmp_path: Path) -> None:
    write(tmp_path / "in", "npz", *scenes("a", "b"))
    write(tmp_path / "in", "submission", *scenes("c", "b"))
    with pytest.raises(RolloutsError, match=r"x\.binproto.*scenario b is here and in .*b\.npz"):
        convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_of_a_truncated_shard_or_archive(tmp_path: Path) -> None:
    write(tmp_path / "in", "submission", *scenes("a", "b"))
    shard = tmp_path / "in" / "x.binproto"
    shard.write_bytes(shard.read_bytes()[:-100])
    tar = archive(tmp_path / "x.tar.gz", scenes("a", "b"))
    tar.write_bytes(tar.read_bytes()[:-20])
    plain = tmp_path / "y.tar.gz"
    plain.write_bytes(gzip.compress(b"no tar"))
    for source in (tmp_path / "in", tar, plain):
        with pytest.raises(FormatError, match=source.name):
            convert_rollouts(source, tmp_path / "out", "npz")
    assert not (tmp_path / "out").exists()


def test_ids_that_cannot_name_a_file(tmp_path: Path) -> None:
    write(tmp_path / "in", "submission", example("a/b"))
    with pytest.raises(RolloutsError, match="'a/b' cannot be the name of a file"):
        convert_rollouts(tmp_path / "in", tmp_path / "out", "npz")
    write(tmp_path / "in", "submission", example("x_closedloop_wosac"))
    with pytest.raises(RolloutsError, match="would be read as x from a file"):
        convert_rollouts(tmp_path / "in", tmp_path / "out", "pickle")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("out", "to", "said"),
    [
        ("out", None, "no format given.*--to npz, submission or pickle"),
        ("x.tar.gz", None, "wosac pack"),
        ("a.npz", "pickle", "the name is that of a npz file, not of pickle"),
        ("b.npz", None, r"of scenario a \(call the file a\.npz\)"),
        ("a.pickle", None, r"call the file a\.pkl"),
    ],
)
def test_an_output_that_cannot_be(tmp_path: Path, out: str, to: Format | None, said: str) -> None:
    write(tmp_path / "in", "npz", example("a"))
    with pytest.raises(WosacError, match=said):
        convert_rollouts(tmp_path / "in", tmp_path / out, to)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_one_file_for_many_scenes_or_a_file_that_exists(tmp_path: Path) -> None:
    write(tmp_path / "in", "npz", *scenes("a", "b"))
    with pytest.raises(WosacError, match=r"2 scenarios cannot be in one npz file"):
        convert_rollouts(tmp_path / "in", tmp_path / "a.npz")
    (tmp_path / "x.binproto").write_bytes(b"precious")
    with pytest.raises(WosacError, match="exists already"):
        convert_rollouts(tmp_path / "in", tmp_path / "x.binproto")
    assert (tmp_path / "x.binproto").read_bytes() == b"precious"


# The command


def test_the_command(tmp_path: Path) -> None:
    write(tmp_path / "in", "npz", *scenes("a", "b"))
    out = tmp_path / "out"
    first = run(tmp_path / "in", out, "--to", "submission", "--scenes-per-shard", 1)
    assert first.exit_code == 0, first.output
    size = sum(path.stat().st_size for path in rollout_files(out)) / 1e6
    assert first.stdout == f"2 scenes converted: {out} (2 files, {size:.1f} MB)\n"
    again = run(
        tmp_path / "in", out, "--to", "submission", "--scenes-per-shard", 1, "--format", "json"
    )
    found = json.loads(again.stdout)
    assert found["out"] == str(out)
    assert (found["n_scenes"], found["n_kept"], found["n_files"]) == (2, 2, 2)


def test_help_is_quick_to_come() -> None:
    code = (
        "import sys\n"
        "from wosac_toolkit.cli.convert import command\n"
        "command(['--help'], standalone_mode=False)\n"
        "print([m for m in ('numba', 'numpy', 'pandas', 'pyarrow') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# The page on formats


def test_the_page_on_formats_names_every_column_and_field() -> None:
    page = (ROOT / "docs" / "formats.md").read_text("utf-8")
    columns = {name for name in AGENT_SCHEMA if not name.endswith(("_likelihood", "_steps"))}
    fields = [
        field.name
        for kind in (Manifest, Summary, SubmissionMetadata, Rollouts)
        for field in dataclasses.fields(kind)
    ]  # type: ignore[arg-type]
    for name in {*columns, *COMPONENTS, *SCORE_SCHEMA, *fields}:
        assert f"`{name}`" in page, name
    for schema, head in ((SCORE_SCHEMA, "### scores"), (AGENT_SCHEMA, "### agents")):
        section = page.split(head)[1].split("\n### ")[0]
        named = {
            name
            for row in section.splitlines()
            if row.startswith("| `")
            for name in re.findall(r"`(\w+)`", row.split("|")[1])
        }
        assert named <= schema.keys(), named - schema.keys()
