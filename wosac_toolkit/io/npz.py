"""Rollouts as NumPy archives: one `<scenario_id>.npz` a scenario.

Members: `object_ids` [N], any integer type; `states` [R, N, T, 4], float16, float32 or float64, as
x, y, z (m), heading (rad) in the scenario's global frame; of scenario generation also `sizes`
[R, N, T, 3] of the same types, length, width, height (m), and optionally `object_types` [R, N], any
integer type; optionally `scenario_id`, a text that must be the name of the file. Other members are
left unread. Nothing in such a file is ever
unpickled. What the header of an array claims is held against the size of its member, and that
against what the file can hold, before memory is reserved.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from wosac_toolkit.errors import FormatError, RolloutsError, WosacError
from wosac_toolkit.io.files import atomic_write, one_line, scenario_file
from wosac_toolkit.rollouts import Rollouts

MAX_MEMBER_BYTES = 2**31 - 1
"""The largest array read, the same bound as that of a protobuf message."""

_MAX_DEFLATE_RATIO = 1032


def read_npz(path: str | os.PathLike[str]) -> Rollouts:
    """The rollouts of `<scenario_id>.npz`.

    Raises:
        FormatError: not a NumPy archive, damaged, or an array of another type.
        RolloutsError: a member is missing, the shapes do not fit together, or the content names
            another scenario than the file.
    """
    path = Path(path)
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name: _read_member(archive, name, kinds, path) for name, kinds in _MEMBERS.items()
            }
    except WosacError:
        raise
    except _ZIP_ERRORS as error:
        raise FormatError(f"not a sound NumPy archive: {one_line(error)}", where=where) from None
    ids, states, named = arrays["object_ids"], arrays["states"], arrays["scenario_id"]
    if ids is None or states is None:
        raise RolloutsError(
            f"has no member {'object_ids' if ids is None else 'states'!r}",
            where=where,
            mend="save object_ids [N] and states [R, N, T, 4] with numpy.savez",
        )
    if named is not None and _as_text(named) != path.stem:
        raise RolloutsError(
            f"holds scenario {_as_text(named)!r}",
            where=where,
            mend="name the file after its scenario",
        )
    with np.errstate(over="ignore"):
        return Rollouts(
            path.stem, ids, states, sizes=arrays["sizes"], object_types=arrays["object_types"]
        )


def write_npz(directory: str | os.PathLike[str], rollouts: Rollouts) -> Path:
    """Write `<directory>/<scenario_id>.npz`, not compressed; it appears when it is complete.

    Raises:
        RolloutsError: the scenario id cannot be the name of a file.
    """
    path = scenario_file(Path(directory), rollouts.scenario_id, ".npz")
    arrays: dict[str, Any] = {
        "object_ids": rollouts.object_ids,
        "states": rollouts.states,
        "sizes": rollouts.sizes,
        "object_types": rollouts.object_types,
        "scenario_id": np.array(rollouts.scenario_id),
    }
    with atomic_write(path) as stream:
        np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})
    return path


def _read_member(
    archive: zipfile.ZipFile, name: str, kinds: str, path: Path
) -> npt.NDArray[Any] | None:
    """The array `name`, whose dtype must be of one of `kinds`; None where there is none."""
    where = f"{path}, member {name}"
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        return None
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError("neither stored nor deflated", where=where)
    most = min(MAX_MEMBER_BYTES, _MAX_DEFLATE_RATIO * os.path.getsize(path))
    if info.file_size > most:
        raise FormatError(f"claims {info.file_size} bytes, at most {most} can be", where=where)
    with archive.open(info) as member:
        shape, fortran_order, dtype = _read_header(member, where)
        if dtype.kind not in kinds or dtype.hasobject:
            raise FormatError(f"an array of {dtype}, expected {_KINDS[kinds]}", where=where)
        n_bytes = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or n_bytes != info.file_size - member.tell():
            raise FormatError(
                f"its header claims {dtype} {list(shape)}, which its "
                f"{info.file_size - member.tell()} bytes of data are not",
                where=where,
            )
        flat = np.empty(math.prod(shape), dtype)
        _fill(flat.view(np.uint8).data, member, where)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _fill(target: memoryview, member: IO[bytes], where: str) -> None:
    """Read the rest of `member` to `target`, which must have its size.

    Pieces, as zipfile inflates no more than was asked for, and large temporary ones cost more in
    page faults than the array itself. At the end zipfile compares the checksum.
    """
    start = 0
    while piece := member.read(_PIECE_BYTES):
        stop = start + len(piece)
        if stop > len(target):
            break
        target[start:stop] = piece
        start = stop
    if start != len(target) or piece:
        raise FormatError("not of the size that the archive claims", where=where)


_PIECE_BYTES = 1 << 18
# What zipfile raises for damaged archives; RuntimeError for encrypted ones.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)
_MEMBERS = {
    "object_ids": "iu",
    "states": "f",
    "sizes": "f",
    "object_types": "iu",
    "scenario_id": "US",
}
_KINDS = {"iu": "integers", "f": "float32", "US": "a text"}


def _read_header(member: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype, as the header of a `.npy` file claims them."""
    try:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(member)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(member)
    # NumPy hands on whatever its parsers of literals and dtypes raise for garbage.
    except Exception as error:
        raise FormatError(f"not a NumPy array: {one_line(error)}", where=where) from None
    raise FormatError(f"NumPy format version {version}, expected 1.0 or 2.0", where=where)


def _as_text(array: npt.NDArray[Any]) -> str:
    if array.size != 1:
        return ""
    value = array.reshape(-1)[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
