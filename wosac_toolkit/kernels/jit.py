"""The decorators of all kernels.

`cache`: compiled once a machine. `error_model="numpy"`: a division by zero gives inf or nan, as in
the official code, not an exception. `nogil`: several scenes or rollouts may run in threads of one
process. Never `fastmath`: the score is a contract on rounding, NaN and the order of sums, and
without it LLVM neither reorders nor fuses float operations.

A cached kernel does not notice an edit in *another* file, so what a kernel calls lives in its own
file or in `float32.py`, `layout.py` or `io/wire_kernels.py`, whose edits need
`wosac warmup --clear`.
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
