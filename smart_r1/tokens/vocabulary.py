"""The vocabularies of motion tokens and map curves, and their files.

A motion token is half a second of movement of one class of road user: the poses at 0, 0.1, .. 0.5 s
in the frame of the first, kept as the corners of a box of the class's fixed size (SMART, arXiv
2405.15677; CAT-K, arXiv 2412.05334). A map curve is five metres or less of a polyline that begins
at the origin in the direction of x.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wosac_toolkit.errors import FormatError
from wosac_toolkit.io.files import atomic_write, one_line
from wosac_toolkit.io.pickled import read_arrays
from wosac_toolkit.scenario import Float32Array

CLASSES = ("vehicle", "pedestrian", "cyclist")
"""The classes of agents; their index is the object type less one."""

CLASS_SIZE: Float32Array = np.array([[4.8, 2.0], [1.0, 1.0], [2.0, 1.0]], np.float32)
"""Length and width [3, 2] of the boxes of the classes, metres."""

_ORIGIN = np.array([0.0, 0.0, 1.0, 0.0])
_DEFAULT = Path(__file__).parent / "default" / "vocabulary.safetensors"
_BOTH = "CAT-K and SMART keep motion tokens and map curves in two pickles: name both"


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Vocabulary:
    """V motion tokens a class and M map curves, in metres.

    Attributes:
        motion: float32 [3, V, 6, 4, 2], corners of the class's box (left front, right front,
            right back, left back) at 0, 0.1, .. 0.5 s, in the frame of the first pose.
        curves: float32 [M, 11, 2], from the origin, at first along x.

    Raises:
        FormatError: other shapes or types, numbers that are not finite, tokens that do not begin
            with the box of their class.
    """

    motion: Float32Array
    curves: Float32Array

    def __post_init__(self) -> None:
        _check("motion", self.motion, (len(CLASSES), None, 6, 4, 2))
        _check("curves", self.curves, (None, 11, 2))
        for name, tokens, size in zip(CLASSES, self.motion, CLASS_SIZE, strict=True):
            if np.abs(tokens[:, 0] - box_corners(_ORIGIN, size)).max() > 0.01:
                raise FormatError(f"the tokens of the class {name} do not begin with its box")

    def __repr__(self) -> str:
        n_tokens, n_curves = self.motion.shape[1], len(self.curves)
        return f"Vocabulary({n_tokens} tokens, {n_curves} curves, {self.fingerprint()})"

    def fingerprint(self) -> str:
        """A name for these numbers, whatever file they come from: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for array in (self.motion, self.curves):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()[:16]


def default_vocabulary() -> Vocabulary:
    """The vocabulary of the package, made from rules and synthetic scenes alone.

    It has 2,048 motion tokens a class, of which the first is standing still, and 1,024 map curves.
    `smart_r1.tokens.default` tells how it was made, and makes it again.
    """
    return load_vocabulary(_DEFAULT)


def load_vocabulary(motion: Path, curves: Path | None = None) -> Vocabulary:
    """A vocabulary from one or two files.

    Args:
        motion: `.safetensors` of this project, or the pickle of CAT-K or SMART with `token_all`
            (`agent_vocab_555_s2.pkl`).
        curves: the file with the map curves, where it is another: `.safetensors`, or the pickle
            of CAT-K and SMART with `traj_src` (`map_traj_token5.pkl`).

    Raises:
        FormatError: a file that cannot be read, or that holds no vocabulary.
    """
    where = str(motion) if curves is None else f"{motion}, {curves}"
    tokens, lines = _read_motion(motion), _read_curves(curves or motion)
    try:
        return Vocabulary(tokens, lines)
    except FormatError as error:
        raise FormatError(error.what, where=where) from None


def save_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write a vocabulary as `.safetensors`; the file appears when it is complete."""
    _write(path, {"motion": vocabulary.motion, "curves": vocabulary.curves})


def save_poses(path: Path, poses: Float32Array, curves: Float32Array) -> None:
    """Write a vocabulary whose motion is given as poses, which takes half the space.

    Args:
        path: a `.safetensors` file, which appears when it is complete.
        poses: float32 [3, V, 5, 4], see `corners_of_poses`.
        curves: float32 [M, 11, 2].
    """
    _write(path, {"poses": poses, "curves": curves})


def corners_of_poses(poses: Float32Array) -> Float32Array:
    """The motion of a vocabulary from the poses of its tokens.

    Args:
        poses: float32 [3, V, 5, 4]: x, y (m), cosine and sine of the heading after 0.1, .. 0.5 s.
            (Not the heading: its sine may differ between machines in the last digit.)

    Returns:
        float32 [3, V, 6, 4, 2], as `Vocabulary.motion`.
    """
    first = np.broadcast_to(_ORIGIN, (*poses.shape[:2], 1, 4))
    all_poses = np.concatenate([first, poses], axis=2, dtype=np.float64)
    return box_corners(all_poses, CLASS_SIZE[:, None, None]).astype(np.float32)


def box_corners(
    poses: npt.NDArray[np.floating[Any]], size: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[Any]:
    """Corners of boxes [..., 4, 2]: left front, right front, right back, left back.

    Args:
        poses: [..., 4]: x, y, cosine and sine of the heading.
        size: [..., 2], length and width.
    """
    x, y, cos, sin = np.moveaxis(poses[..., None, :], -1, 0)
    signs = np.array([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5]], np.float32)
    along, across = np.moveaxis(size[..., None, :] * signs, -1, 0)
    return np.stack([x + cos * along - sin * across, y + sin * along + cos * across], axis=-1)


def _check(
    name: str, array: npt.NDArray[Any], shape: tuple[int | None, ...], where: str = ""
) -> None:
    """See that an array is float32, finite, and of a shape; None stands for any length but 0."""
    lengths = zip(array.shape, shape, strict=False)
    fits = array.ndim == len(shape) and all(n == m or (m is None and n > 0) for n, m in lengths)
    if not fits or array.dtype != np.float32:
        expected = ", ".join("n" if n is None else str(n) for n in shape)
        raise FormatError(
            f"{name} is {array.dtype} {list(array.shape)}, expected float32 [{expected}]",
            where=where,
        )
    if not np.isfinite(array).all():
        raise FormatError(f"{name} has numbers that are not finite", where=where)


def _read_motion(path: Path) -> Float32Array:
    if path.suffix != ".safetensors":
        names = ("token_all/veh", "token_all/ped", "token_all/cyc")
        classes = _read_pickle(path, names)
        if len({array.shape for array in classes}) > 1:
            shapes = ", ".join(str(list(array.shape)) for array in classes)
            raise FormatError(f"the classes' tokens differ in shape: {shapes}", where=str(path))
        return np.stack(classes)
    arrays = _read_safetensors(path, ("motion", "poses"))
    if "motion" in arrays:
        return arrays["motion"]
    if "poses" not in arrays:
        raise FormatError("holds no motion tokens", where=str(path), mend=_BOTH)
    _check("poses", arrays["poses"], (len(CLASSES), None, 5, 4), str(path))
    return corners_of_poses(arrays["poses"])


def _read_curves(path: Path) -> Float32Array:
    if path.suffix != ".safetensors":
        return _read_pickle(path, ("traj_src",))[0]
    arrays = _read_safetensors(path, ("curves",))
    if "curves" not in arrays:
        raise FormatError("holds no map curves", where=str(path), mend=_BOTH)
    return arrays["curves"]


def _read_pickle(path: Path, names: tuple[str, ...]) -> list[Float32Array]:
    try:
        arrays = read_arrays(path, names)
    except FormatError as error:
        raise FormatError(error.what, where=error.where, mend=error.mend or _BOTH) from None
    for name, array in zip(names, arrays, strict=True):
        if array.dtype.kind != "f":
            raise FormatError(f"{name} is an array of {array.dtype}", where=str(path))
    with np.errstate(over="ignore"):  # What becomes infinite is found later.
        return [array.astype(np.float32) for array in arrays]


def _read_safetensors(path: Path, names: tuple[str, ...]) -> dict[str, Float32Array]:
    """Those of the arrays that the file has."""
    from safetensors import SafetensorError, safe_open

    arrays = {}
    try:
        path.open("rb").close()  # Its errors say what is wrong; those of the library do not.
        with safe_open(path, framework="numpy") as file:
            for name in set(names) & set(file.keys()):
                if (dtype := file.get_slice(name).get_dtype()) != "F32":
                    raise FormatError(f"{name} is {dtype}, expected F32", where=str(path))
                arrays[name] = file.get_tensor(name)
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except SafetensorError as error:
        raise FormatError(f"not sound safetensors: {one_line(error)}", where=str(path)) from None
    return arrays


def _write(path: Path, arrays: dict[str, Float32Array]) -> None:
    from safetensors.numpy import save

    with atomic_write(path) as stream:
        stream.write(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
