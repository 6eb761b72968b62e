"""The decorators of all kernels.

`cache`: compiled once a machine. `error_model="numpy"`: a division by zero gives inf or nan, as in
the official code, not an exception. `nogil`: several scenes or rollouts may run in threads of one
process. Never `fastmath`: the score is a contract on rounding, NaN and the order of sums, and
without it LLVM neither reorders nor fuses float operations.

A cached kernel does not notice an edit in *another* file, so what a kernel calls lives in its own
file or in `boxes.py`, `float32.py`, `layout.py` or `io/wire_kernels.py`, whose edits need
`wosac warmup --clear`.

Two things that decide how fast a kernel is, and that its Python does not show:

- An array handed to a function with a loop in it, inlined or not, is counted as a reference, by an
  atomic addition at its beginning and end; threads that share the array then wait for each other.
  So in an innermost loop helpers take numbers. (A third of the time of road-edge distances was
  that.)
- A loop is compiled to vector instructions if it has no branch and no call, if its minima are of
  integers, if its indices cannot be negative (count from 0, over a slice), and if at a glance what
  it writes cannot be what it reads: a slice each, or one array whose offsets are constants.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` on its first call."""
    return numba.njit(cache=True, error_model="numpy", nogil=True)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """A small helper, inlined into the kernels that call it."""
    return numba.njit(cache=True, error_model="numpy", nogil=True, forceinline=True)(function)


def all_kernels() -> list[Any]:
    """The compiled functions of this package; all modules of kernels are imported."""
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        if path.stem.endswith("_kernels") or path.parent.name == "kernels":
            parts = path.relative_to(package.parent).with_suffix("").parts
            importlib.import_module(".".join(part for part in parts if part != "__init__"))
    functions = {
        id(function): function
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == package.name
        for function in vars(module).values()
        # Numba's dispatchers.
        if getattr(getattr(function, "stats", None), "cache_path", None)
    }
    return list(functions.values())
