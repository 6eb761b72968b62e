"""Rollouts as the pickles of CAT-K, TrajTok and the tools around them: one file a scenario.

TrajTok's fast evaluator, and the evaluators made from it, exchange `<scenario_id>.pkl` with

    {"agent_id": [N] integers, "simulated_states": [R, N, T, 4] floats}

as NumPy arrays or torch tensors; x, y, z (m), heading (rad) in the scenario's global frame. CAT-K's
closed-loop files, `scenario_<id>_closedloop_wosac.pkl`, hold `agents_id` and, one a model,
`model_rollouts[<model>]["rollouts"]`. Either may name its scenario as `scenario_id` or
`_scenario_id`; it must then be that of the file name.

A pickle is a program, so `pickle.load` runs whatever its author wrote. `_run` is a machine for the
few instructions that such files need. It imports nothing and calls nothing but the functions of
`_GLOBALS`, stand-ins that rebuild arrays as views of the bytes that the file holds: what it
reserves stays in proportion to the size of the file, whatever shapes are claimed. Torch tensors
become arrays without torch.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from wosac_toolkit.errors import FormatError, RolloutsError
from wosac_toolkit.io.files import atomic_write, one_line, scenario_file
from wosac_toolkit.rollouts import Rollouts

MAX_ARRAY_BYTES = 2**31 - 1
"""The largest array read, the same bound as that of a protobuf message."""

MAX_INSTRUCTIONS = 100_000
"""The longest pickle program run; those that hold rollouts have some 150 instructions."""

Array: TypeAlias = npt.NDArray[Any]
Global: TypeAlias = Callable[..., Any] | np.dtype[Any] | str

_CLOSED_LOOP = re.compile(r"(?:scenario_)?(?P<id>.+)_closedloop_wosac")
_AS_NUMPY = "save NumPy arrays: pickle.dump({'agent_id': ids.cpu().numpy(), ...}, file)"


def read_pickle(path: str | os.PathLike[str]) -> Rollouts:
    """The rollouts of `<scenario_id>.pkl`.

    Raises:
        FormatError: damaged, or a pickle that asks for more than arrays; names what it asks for.
        RolloutsError: a key is missing, the shapes do not fit together, several models in one
            file, or the content names another scenario than the file.
    """
    path = Path(path)
    where = str(path)
    content = _content(path, "rollouts", _AS_NUMPY)
    if not isinstance(content, dict):
        raise RolloutsError(f"holds {_named(content)}, expected a dict", where=where, mend=_MEND)
    scenario_id = pickle_scenario_id(path)
    for key in ("scenario_id", "_scenario_id"):
        named = content.get(key)
        if isinstance(named, str) and named != scenario_id:
            raise RolloutsError(
                f"holds scenario {named[:80]!r}",
                where=where,
                mend="name the file after its scenario",
            )
    ids = _array(content, "agents_id" if "agents_id" in content else "agent_id", "iu", where)
    states = _array(*_states_of(content, where), "f", where)
    # The arrays are views of the file's bytes: copied here, and left.
    with np.errstate(over="ignore"):
        return Rollouts(scenario_id, ids.astype(np.int64), states.astype(np.float32, order="C"))


def pickle_scenario_id(path: Path) -> str:
    """The scenario that a pickle is named after: its stem, less CAT-K's prefix and suffix."""
    closed_loop = _CLOSED_LOOP.fullmatch(path.stem)
    return closed_loop["id"] if closed_loop else path.stem


def read_arrays(path: str | os.PathLike[str], names: Sequence[str]) -> list[Array]:
    """Arrays out of a pickle that holds a dict of them, or of dicts of them.

    Args:
        path: the file.
        names: of the arrays wanted; those inside of a dict in the dict as `outer/inner`.

    Returns:
        One for each name, read-only views of the file's bytes.

    Raises:
        FormatError: damaged, a pickle that asks for more than arrays (named), or an array is
            missing.
    """
    content = _content(Path(path), "plain arrays", "save NumPy arrays")
    arrays = []
    for name in names:
        value = content
        for key in name.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, _Array) or value.array is None:
            raise FormatError(f"holds no array {name}", where=str(path))
        if value.array.nbytes > MAX_ARRAY_BYTES:  # Elements can be repeated.
            raise FormatError(f"{name} claims {value.array.nbytes} bytes", where=str(path))
        arrays.append(value.array)
    return arrays


def _content(path: Path, what: str, mend: str) -> Any:
    """What the pickle of `what` builds, its arrays as `_Array`."""
    where = str(path)
    try:
        size = path.stat().st_size
        if size > MAX_ARRAY_BYTES:
            raise FormatError(f"{size} bytes, more than the {MAX_ARRAY_BYTES} allowed", where=where)
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", where=where) from None
    if data[:2] == b"PK":
        raise FormatError("an archive of torch.save, not a pickle", where=where, mend=mend)
    try:
        return _run(io.BytesIO(data), _GLOBALS)
    except _Refusal as refusal:
        raise FormatError(
            f"asks for {one_line(refusal)}, which is not part of {what}", where=where, mend=mend
        ) from None
    except _Damage as damage:
        raise FormatError(one_line(damage), where=where) from None


def write_pickle(directory: str | os.PathLike[str], rollouts: Rollouts) -> Path:
    """Write `<directory>/<scenario_id>.pkl` as TrajTok does; it appears when it is complete.

    Raises:
        RolloutsError: the scenario id cannot be the name of a file.
    """
    path = scenario_file(Path(directory), rollouts.scenario_id, ".pkl")
    content = {"simulated_states": rollouts.states, "agent_id": rollouts.object_ids}
    data = pickle.dumps(content, protocol=3)
    # NumPy 2 names its modules so that NumPy 1, which those tools run on, cannot load the file;
    # both know the old name. Protocol 3 writes it as a line of text, once, at the beginning.
    head = data[:128].replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    with atomic_write(path) as stream:
        stream.write(head)
        stream.write(memoryview(data)[128:])
    return path


_MEND = "expected agent_id [N] and simulated_states [R, N, T, 4]"


def _states_of(content: dict[Any, Any], where: str) -> tuple[dict[Any, Any], str]:
    """The dict that holds the states, and the key."""
    models = content.get("model_rollouts")
    if not isinstance(models, dict):
        return content, "simulated_states"
    if len(models) != 1:
        raise RolloutsError(
            f"holds the rollouts of {len(models)} models: {', '.join(map(repr, models))}",
            where=where,
            mend="write one folder of <scenario_id>.pkl a model",
        )
    (branch,) = models.values()
    return (branch if isinstance(branch, dict) else {}), "rollouts"


def _array(content: dict[Any, Any], key: str, kinds: str, where: str) -> Array:
    if key not in content:
        raise RolloutsError(f"has no key {key!r}", where=where, mend=_MEND)
    value = content[key]
    if not isinstance(value, _Array) or value.array is None:
        raise FormatError(f"{key} is {_named(value)}, not an array", where=where, mend=_AS_NUMPY)
    if value.array.dtype.kind not in kinds:
        raise FormatError(
            f"{key} is an array of {value.array.dtype}, expected "
            + ("integers" if "i" in kinds else "float32"),
            where=where,
        )
    # A view can repeat its elements, so it may claim more than the file holds.
    if value.array.nbytes > MAX_ARRAY_BYTES:
        raise FormatError(
            f"{key} claims {value.array.nbytes} bytes, more than the {MAX_ARRAY_BYTES} allowed",
            where=where,
        )
    return value.array


def _named(value: object) -> str:
    return "None" if value is None else type(value).__name__.strip("_").lower()


# What pickles build, in place of the objects that they name


class _Dtype:
    """Stands for `numpy.dtype`, whose byte order its state sets."""

    def __init__(self, code: str) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise _Refusal(f"an array of dtype {code!r}")
        self.dtype: np.dtype[Any] = np.dtype(code)

    def build(self, state: tuple[Any, ...]) -> None:
        _version, order, subarray, names, fields = state[:5]
        if order not in ("<", ">", "|", "=") or (subarray, names, fields) != (None, None, None):
            raise _Refusal("an array of a structured dtype")
        self.dtype = self.dtype.newbyteorder(order)


_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[US]\d{1,4}")


class _Array:
    """Stands for `numpy.ndarray` or `torch.Tensor`; `array` is None until its state is set."""

    def __init__(self, array: Array | None = None) -> None:
        self.array = array

    def build(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran_order, data = state
        self.array = _view(data, dtype, shape, "F" if fortran_order else "C")


class _Refusal(Exception):
    """The pickle asks for what it must not have."""


class _Damage(ValueError):
    """The pickle makes no sense."""


def _view(data: object, dtype: object, shape: object, order: str) -> Array:
    """`data` as an array, without a copy, if it has the size that shape and dtype claim."""
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise _Refusal("an array of Python objects")
    lengths = _lengths(shape)
    if math.prod(lengths) * dtype.dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes are no {dtype.dtype} {list(lengths)}")
    return np.frombuffer(data, dtype.dtype).reshape(lengths, order="F" if order == "F" else "C")


def _lengths(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("not a shape")
    return shape


def _reconstruct(_type: object, _shape: object, _code: object) -> _Array:
    return _Array()


def _scalar(dtype: object, data: object) -> Any:
    return _view(data, dtype, (), "C").item()


def _frombuffer(data: object, dtype: object, shape: object, order: str) -> _Array:
    return _Array(_view(data, dtype, shape, order))


def _dtype(code: str, _align: object = None, _copy: object = None) -> _Dtype:
    return _Dtype(code)


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _load_storage(data: bytes) -> Array:
    """The numbers of a torch storage, which torch pickles in its old file format.

    That is four pickles (a magic number, the version, the system, the storage's type), a fifth that
    lists the storage's key, its number of elements as int64, and the elements.
    """
    stream = io.BytesIO(data)
    magic, version, system, storage, _keys = (_run(stream, _STORAGES) for _ in range(5))
    if magic != 0x1950A86A20F9469CFC6C or version != 1001 or system["little_endian"] is not True:
        raise ValueError("not a torch storage")
    kind, dtype, _key, _device, length, view = storage
    if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
        raise ValueError("not a torch storage")
    written = int.from_bytes(stream.read(8), "little")
    start = stream.tell()
    if written != length or len(data) - start != length * dtype.itemsize:
        raise ValueError("a truncated torch storage")
    return np.frombuffer(data, dtype, offset=start)


def _rebuild_tensor(
    storage: object, offset: int, size: object, stride: object, *_autograd: object
) -> _Array:
    """A tensor as a view of its storage; every element it can reach is checked to be inside."""
    lengths, strides = _lengths(size), _lengths(stride)
    if not isinstance(storage, np.ndarray) or len(lengths) != len(strides):
        raise ValueError("not a torch tensor")
    if 0 in lengths:
        return _Array(np.empty(lengths, storage.dtype))
    last = offset + sum((n - 1) * step for n, step in zip(lengths, strides, strict=True))
    if offset < 0 or last >= len(storage):
        raise ValueError("a torch tensor that reaches outside its storage")
    return _Array(
        np.lib.stride_tricks.as_strided(
            storage[offset:],
            lengths,
            [storage.itemsize * step for step in strides],
            writeable=False,
        )
    )


_STORAGES: Mapping[tuple[str, str], Global] = {
    ("torch", name): np.dtype(code)
    for name, code in {
        "DoubleStorage": "<f8",
        "FloatStorage": "<f4",
        "HalfStorage": "<f2",
        "LongStorage": "<i8",
        "IntStorage": "<i4",
        "ShortStorage": "<i2",
        "CharStorage": "i1",
        "ByteStorage": "u1",
    }.items()
}

_GLOBALS: Mapping[tuple[str, str], Global] = {
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): _dtype,
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    **{
        (f"{core}.{module}", name): function
        for core in ("numpy.core", "numpy._core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


# The machine

_LITERALS = frozenset(
    {
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False}


def _run(stream: io.BytesIO, known: Mapping[tuple[str, str], Global]) -> Any:
    """What the pickle at the stream's position builds, from the globals `known` and nothing else.

    Reads what Python writes in protocols 3 to 5, and torch in 2. The stream then stands after it.

    Raises:
        _Refusal: it asks for what is not known.
        _Damage: it makes no sense.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    start = stream.tell()

    def take(n: int) -> list[Any]:
        """The last `n` items, or those above the last mark where `n` is negative."""
        start = marks.pop() if n < 0 else len(stack) - n
        if not 0 <= start <= len(stack):
            raise ValueError("the stack is too short")
        items = stack[start:]
        del stack[start:]
        return items

    try:
        # Bounds every claimed size by what is left of the stream.
        instructions: Iterator[tuple[Any, Any, Any]] = pickletools.genops(stream)
        for n, (opcode, argument, _) in enumerate(instructions):
            if n == MAX_INSTRUCTIONS:
                raise ValueError(f"more than {n} instructions")
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    marks.append(len(stack))
                case name if name in _LITERALS:
                    stack.append(_CONSTANTS.get(name, argument))
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(take(int(opcode.name[-1]))))
                case "TUPLE":
                    stack.append(tuple(take(-1)))
                case "EMPTY_LIST":
                    stack.append([])
                case "APPEND":
                    _extend(take(1), stack[-1])
                case "APPENDS":
                    _extend(take(-1), stack[-1])
                case "EMPTY_DICT":
                    stack.append({})
                case "SETITEM":
                    _set_items(take(2), stack[-1])
                case "SETITEMS":
                    _set_items(take(-1), stack[-1])
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_find(argument.split(" "), known))
                case "STACK_GLOBAL":
                    stack.append(_find(take(2), known))
                case "BINPERSID":
                    pass  # Leaves the tuple that describes a torch storage to `_load_storage`.
                case "REDUCE":
                    function, arguments = take(2)
                    if not isinstance(function, FunctionType):
                        raise TypeError("a call of what is no function")
                    stack.append(function(*arguments))
                case "BUILD":
                    (state,) = take(1)
                    if not isinstance(stack[-1], _Dtype | _Array):
                        raise TypeError("a state for what has none")
                    stack[-1].build(state)
                case _:
                    raise _Refusal(f"the pickle instruction {opcode.name}")
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        where = f"between bytes {start} and {stream.tell()}"
        raise _Damage(f"damaged pickle, {where}: {error}") from None
    raise AssertionError("pickletools raises for a pickle without end")


def _find(names: list[Any], known: Mapping[tuple[str, str], Global]) -> Global:
    module, name = names
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a global without a name")
    if (module, name) not in known:
        raise _Refusal(f"{module}.{name}")
    return known[module, name]


def _extend(items: list[Any], target: object) -> None:
    if not isinstance(target, list):
        raise TypeError("items for what is no list")
    target.extend(items)


def _set_items(items: list[Any], target: object) -> None:
    keys = items[::2]
    # Tuples would do as keys too, but nested ones can take for ever to hash.
    if not isinstance(target, dict) or not all(isinstance(key, str | int) for key in keys):
        raise TypeError("items for what is no dict of names")
    target.update(zip(keys, items[1::2], strict=True))
