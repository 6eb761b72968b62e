"""Where the time goes: every function of `wosac_toolkit.kernels`, timed as Python calls it.

Functions are found by looking, not by a list, so the split follows the code. Time is each
function's own: of a Python function that calls compiled ones only what it does itself. What is
called from inside compiled code is part of its caller.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import wosac_toolkit.kernels

PREFIX = "wosac_toolkit.kernels."


@contextmanager
def timed_kernels() -> Iterator[dict[str, float]]:
    """Yield a table, `module.function` -> seconds, that fills while the block runs.

    Everything must have been compiled before: code compiled inside would see the stopwatches. One
    thread only.
    """
    own_seconds: dict[str, float] = defaultdict(float)
    inner_seconds = [0.0]
    replaced: list[tuple[ModuleType, str, object]] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            inner_seconds.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                own_seconds[name] += elapsed - inner_seconds.pop()
                inner_seconds[-1] += elapsed

        return call

    functions = {id(f): (f, timed(name, f)) for name, f in _kernel_functions()}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] != "wosac_toolkit":
            continue
        for name, value in list(vars(module).items()):
            original, stopwatch = functions.get(id(value), (None, None))
            if original is not None:
                replaced.append((module, name, original))
                setattr(module, name, stopwatch)
    try:
        yield own_seconds
    finally:
        for module, name, original in replaced:
            setattr(module, name, original)


def _kernel_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for info in pkgutil.iter_modules(wosac_toolkit.kernels.__path__, PREFIX):
        if info.name == PREFIX + "jit":
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            compiled = hasattr(value, "py_func")
            if compiled or isinstance(value, FunctionType):
                home = value.py_func.__module__ if compiled else value.__module__
                if home == module.__name__:
                    yield f"{info.name.removeprefix(PREFIX)}.{name}", value
