"""A file of prepared scenes: every array of `SceneTensors` as one tensor over all of them.

The agents of scene i are rows `agent_offsets[i]:agent_offsets[i + 1]` of the arrays of agents, and
its map tokens rows `map_offsets[i]:map_offsets[i + 1]` of those of the map. Nothing is padded, and
reading a scene reads no other. The scenes that had to be left out are named in the file's header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smart_r1.map_pieces import UInt8Array
from smart_r1.scene_tensors import AgentStates, SceneTensors
from wosac_toolkit.errors import FormatError
from wosac_toolkit.io.files import atomic_write, one_line
from wosac_toolkit.scenario import Int64Array
from wosac_toolkit.validation import Finding

Array = npt.NDArray[Any]

_LEFT_OUT = "left_out"
_LONGEST_REASON = 500
_MEND = "delete it and run the same smart-r1 prepare again"

# Array of SceneTensors -> type and shape of a row.
_STATES: dict[str, tuple[str, tuple[int, ...]]] = {
    "position": ("float32", (19, 2)),
    "heading": ("float32", (19,)),
    "valid": ("bool", (19,)),
}
_AGENTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "object_ids": ("int64", ()),
    "classes": ("int8", ()),
    "size": ("float32", (3,)),
    "z": ("float32", ()),
    "roles": ("bool", (3,)),
    "trainable": ("bool", ()),
    **{f"logged.{name}": row for name, row in _STATES.items()},
    **{f"in_range.{name}": row for name, row in _STATES.items()},
}
_MAP: dict[str, tuple[str, tuple[int, ...]]] = {
    "map_points": ("float32", (3, 2)),
    "map_heading": ("float32", ()),
    "map_type": ("uint8", ()),
    "map_polygon": ("uint8", ()),
    "map_light": ("uint8", ()),
}
# What the model looks up in tables of so many rows.
_TABLE_ROWS = {"classes": 3, "map_type": 10, "map_polygon": 4, "map_light": 5}


def write_shard(
    path: Path, scenes: Sequence[SceneTensors], left_out: Sequence[Finding] = ()
) -> None:
    """Write a shard, whole or not at all; the same scenes give the same bytes.

    Args:
        path: the file.
        scenes: what it holds, any number.
        left_out: the scenes that it was to hold too, and why it does not.
    """
    tensors: dict[str, Array] = {
        "scenario_ids": pack_ids(scene.scenario_id for scene in scenes),
        "origin": np.array([scene.origin for scene in scenes], np.float64).reshape(-1, 2),
        "agent_offsets": offsets(len(scene.classes) for scene in scenes),
        "map_offsets": offsets(len(scene.map_type) for scene in scenes),
    }
    for name, (dtype, shape) in (_AGENTS | _MAP).items():
        arrays = [attrgetter(name)(scene) for scene in scenes]
        tensors[name] = np.concatenate([np.zeros((0, *shape), dtype), *arrays])
    reasons = [(f.scenario_id, f.code, f.what[:_LONGEST_REASON]) for f in left_out]
    # One key only: several would come in another order in each process.
    write_tensors(path, tensors, {_LEFT_OUT: json.dumps(reasons)})


def write_tensors(path: Path, tensors: dict[str, Array], metadata: dict[str, str]) -> None:
    """Write a `.safetensors` file, whole or not at all."""
    from safetensors.numpy import save

    data = save(tensors, metadata=metadata)
    with atomic_write(path) as stream:
        stream.write(data)


class Shard:
    """A shard, mapped into memory.

    Attributes:
        path: the file.
        scenario_ids: n ids.
        agent_offsets: int64 [n + 1].
        map_offsets: int64 [n + 1].
        left_out: the scenes that it was to hold too, and why it does not.
    """

    def __init__(self, path: Path) -> None:
        """Map a file and check its layout.

        Raises:
            FormatError: it is no shard, or a damaged one.
        """
        self.path = path
        self._tensors = TensorFile(path)
        self.scenario_ids = unpack_ids(self._tensors.read("scenario_ids", "uint8", ndim=2), path)
        n = len(self.scenario_ids)
        self.agent_offsets = self._offsets("agent_offsets", n, _AGENTS)
        self.map_offsets = self._offsets("map_offsets", n, _MAP)
        self._origin = self._tensors.read("origin", "float64", ndim=2)
        if self._origin.shape != (n, 2) or not np.isfinite(self._origin).all():
            raise damaged(path, f"'origin' is not that of {n} scenes")
        self.left_out = self._read_left_out()

    def __len__(self) -> int:
        return len(self.scenario_ids)

    def __getitem__(self, row: int) -> SceneTensors:
        """Read one scene.

        Raises:
            FormatError: it holds numbers that no scene has.
        """
        agents = int(self.agent_offsets[row]), int(self.agent_offsets[row + 1])
        pieces = int(self.map_offsets[row]), int(self.map_offsets[row + 1])
        fields: dict[str, Any] = {name: self._read(name, agents, row) for name in _AGENTS}
        fields |= {name: self._read(name, pieces, row) for name in _MAP}
        for view in ("logged", "in_range"):
            states = {name: fields.pop(f"{view}.{name}") for name in _STATES}
            fields[view] = AgentStates(**states)
        return SceneTensors(scenario_id=self.scenario_ids[row], origin=self._origin[row], **fields)

    def _read(self, name: str, rows: tuple[int, int], scene: int) -> Array:
        array = self._tensors.rows(name, rows)
        if array.dtype.kind == "f":
            sound = bool(np.isfinite(array).all())
        elif len(array) and name in _TABLE_ROWS:
            sound = array.min() >= 0 and array.max() < _TABLE_ROWS[name]
        else:
            sound = True
        if not sound:
            where = f"{self.path}: scenario {self.scenario_ids[scene]}"
            raise damaged(where, f"{name!r} has values that no scene has")
        return array

    def _offsets(
        self, name: str, n: int, arrays: dict[str, tuple[str, tuple[int, ...]]]
    ) -> Int64Array:
        offsets: Int64Array = self._tensors.read(name, "int64", ndim=1)
        if len(offsets) != n + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise damaged(self.path, f"{name!r} are not the offsets of {n} scenes")
        for array, (dtype, row) in arrays.items():
            self._tensors.expect(array, dtype, (int(offsets[-1]), *row))
        return offsets

    def _read_left_out(self) -> list[Finding]:
        try:
            rows: Any = json.loads(self._tensors.metadata[_LEFT_OUT])
            return [Finding(str(code), str(what), str(name)) for name, code, what in rows]
        except (KeyError, ValueError, TypeError):
            raise damaged(self.path, f"no list {_LEFT_OUT!r} in its header") from None


class TensorFile:
    """A `.safetensors` file whose tensors are what is expected of them.

    Attributes:
        path: the file.
        metadata: what its header says besides.
    """

    def __init__(self, path: Path) -> None:
        """Map it; the library has then compared what the header claims with the file's size."""
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            file: Any = safe_open(path, framework="numpy")
            self.metadata: dict[str, str] = file.metadata() or {}
            self._slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise damaged(path, one_line(error)) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        if name not in self._slices:
            raise damaged(self.path, f"no tensor {name!r}")
        return tuple(self._slices[name].get_shape())

    def expect(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """See that a tensor has this type and shape."""
        found = self.shape(name), _DTYPES.get(self._slices[name].get_dtype(), "another type")
        if found != (shape, dtype):
            what = f"{name!r} is {found[1]} {list(found[0])}, not {dtype} {list(shape)}"
            raise damaged(self.path, what)

    def read(self, name: str, dtype: str, ndim: int) -> Array:
        """A whole tensor."""
        shape = self.shape(name)
        if len(shape) != ndim:
            raise damaged(self.path, f"{name!r} has the shape {list(shape)}")
        self.expect(name, dtype, shape)
        return self.rows(name, (0, shape[0]))

    def rows(self, name: str, ends: tuple[int, int]) -> Array:
        """Rows `ends[0]` to `ends[1] - 1` of a tensor of which it is known to have them."""
        tensor = self._slices[name]
        if ends[0] == ends[1]:  # of which the library makes an error
            return np.zeros((0, *tensor.get_shape()[1:]), _DTYPES[tensor.get_dtype()])
        array: Array = tensor[slice(*ends)]
        return array


_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I64": "int64",
    "F32": "float32",
    "F64": "float64",
}


def damaged(where: Path | str, what: str) -> FormatError:
    """The error of a file that is not as it was written."""
    return FormatError(f"the file is damaged: {what}", where=str(where), mend=_MEND)


def offsets(sizes: Iterable[int]) -> Int64Array:
    """Where each of some lists begins in their concatenation, and its end, int64 [n + 1]."""
    return np.cumsum([0, *sizes], dtype=np.int64)


def pack_ids(ids: Iterable[str]) -> UInt8Array:
    """Ids as UTF-8 bytes [n, longest], with zeros at their ends."""
    packed = np.array([scenario_id.encode() for scenario_id in ids], dtype=np.bytes_)
    return packed.view(np.uint8).reshape(len(packed), packed.itemsize)


def unpack_ids(packed: UInt8Array, path: Path) -> tuple[str, ...]:
    """The ids that `pack_ids` packed.

    Raises:
        FormatError: they are not text.
    """
    rows = (row.tobytes().rstrip(b"\0") for row in packed)
    try:
        return tuple(row.decode() for row in rows)
    except UnicodeDecodeError:
        raise damaged(path, "scenario ids that are not text") from None
