"""NumPy archives of rollouts: what is read, what is refused, and that nothing is unpickled."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollouts_examples import example, same

from wosac_toolkit.errors import FormatError, RolloutsError
from wosac_toolkit.io.npz import read_npz, write_npz

ONE = example("scene")


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "scene.npz"
    np.savez(path, **{"object_ids": ONE.object_ids, "states": ONE.states, **arrays})
    return path


def save_members(folder: Path, members: dict[str, bytes]) -> Path:
    """An archive of deflated members, as they are."""
    path = folder / "scene.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: np.ndarray[Any, Any], shape: tuple[int, ...] | None = None) -> bytes:
    """A `.npy` file that claims `shape`."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(stream, header | {"shape": shape or array.shape})
    return stream.getvalue() + array.tobytes()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_npz(tmp_path, ONE)
    assert path == tmp_path / "scene.npz"
    assert list(tmp_path.iterdir()) == [path]
    read = read_npz(path)
    assert same(read, ONE)
    assert read.states.flags.writeable
    with np.load(path, allow_pickle=False) as archive:
        assert archive["states"].dtype == np.float32
        assert str(archive["scenario_id"]) == "scene"


def test_the_same_rollouts_give_the_same_bytes(tmp_path: Path) -> None:
    contents = [write_npz(tmp_path, ONE).read_bytes() for _ in range(2)]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("ids_dtype", ["<i4", "<i8", "<u2", ">i8"])
def test_floats_and_integers_of_any_width(tmp_path: Path, dtype: str, ids_dtype: str) -> None:
    path = save(
        tmp_path, states=ONE.states.astype(dtype), object_ids=ONE.object_ids.astype(ids_dtype)
    )
    assert same(read_npz(path), ONE)


def test_fortran_order_and_compression(tmp_path: Path) -> None:
    path = tmp_path / "scene.npz"
    np.savez_compressed(path, states=np.asfortranarray(ONE.states), object_ids=ONE.object_ids)
    assert same(read_npz(path), ONE)


def test_float64_beyond_float32_is_left_to_the_scorer(tmp_path: Path) -> None:
    path = save(tmp_path, states=np.full((1, 4, 1, 4), 1e300))
    assert np.isinf(read_npz(path).states).all()


def test_other_members_are_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, note=np.array([{"pickled": "object"}], dtype=object))
    assert same(read_npz(path), ONE)


@pytest.mark.parametrize("name", ["states", "object_ids"])
def test_a_missing_member(tmp_path: Path, name: str) -> None:
    content = {"states": npy(ONE.states), "object_ids": npy(ONE.object_ids)}
    path = save_members(tmp_path, {f"{k}.npy": v for k, v in content.items() if k != name})
    with pytest.raises(RolloutsError, match=rf"scene\.npz: has no member '{name}'"):
        read_npz(path)


def test_content_of_another_scenario(tmp_path: Path) -> None:
    path = write_npz(tmp_path, ONE).rename(tmp_path / "other.npz")
    with pytest.raises(RolloutsError, match=r"other\.npz: holds scenario 'scene'"):
        read_npz(path)


@pytest.mark.parametrize(
    ("member", "array"),
    [
        ("states", np.array([{}], dtype=object)),
        ("states", np.zeros((1, 4, 1, 4), np.int32)),
        ("states", np.zeros((1, 4, 1, 4), np.complex64)),
        ("states", np.zeros((1, 4, 1, 4), [("x", "<f4")])),
        ("object_ids", np.arange(4.0)),
        ("object_ids", np.array(["7"] * 4)),
        ("scenario_id", np.array({}, dtype=object)),
    ],
)
def test_arrays_of_another_type(tmp_path: Path, member: str, array: Any) -> None:
    path = save(tmp_path, **{member: array})
    with pytest.raises(
        FormatError, match=rf"scene\.npz, member {member}: an array of .*, expected"
    ):
        read_npz(path)


@pytest.mark.parametrize("shape", [(2, 4, 5, 4), (3, 5, 5, 4), (3, 4, 5), (60, 4)])
def test_shapes_that_do_not_fit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    ids = np.arange(5) if shape[1] != 5 else np.arange(4)
    path = save(tmp_path, states=np.zeros(shape, np.float32), object_ids=ids)
    with pytest.raises(RolloutsError, match="scenario scene: states must be"):
        read_npz(path)


@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (3, 4, 5), (1 << 40, 1 << 40), (-1, 4, 5, 4)])
def test_claimed_shapes_are_held_against_the_size(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save_members(
        tmp_path,
        {"states.npy": npy(ONE.states, shape=shape), "object_ids.npy": npy(ONE.object_ids)},
    )
    with pytest.raises(FormatError, match="its header claims float32"):
        read_npz(path)


def test_a_member_cannot_claim_more_than_the_file_can_hold(tmp_path: Path) -> None:
    path = save_members(tmp_path, {"object_ids.npy": npy(ONE.object_ids)})
    data = path.read_bytes()
    size = len(npy(ONE.object_ids)).to_bytes(4, "little")
    assert data.count(size) == 2
    path.write_bytes(data.replace(size, (1 << 30).to_bytes(4, "little")))
    tracemalloc.start()
    with pytest.raises(FormatError, match="claims 1073741824 bytes"):
        read_npz(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write_npz(tmp_path, ONE)
    data = bytearray(path.read_bytes())
    data[data.index(ONE.states.tobytes()) + 10] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="CRC-32"):
        read_npz(path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = write_npz(tmp_path, ONE)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"scene\.npz: not a sound NumPy archive"):
            read_npz(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        read_npz(tmp_path / "none.npz")


@pytest.mark.parametrize("scenario_id", ["../up", "a/b", "..", ".hidden", "", "a\nb", "a\\b"])
def test_scenario_ids_that_are_no_file_names(tmp_path: Path, scenario_id: str) -> None:
    with pytest.raises(RolloutsError, match="cannot be the name of a file"):
        write_npz(tmp_path, example(scenario_id))
    assert list(tmp_path.iterdir()) == []
