"""The machine that figures belong to, and how time is taken on it."""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numba
import numpy as np

from wosac_toolkit.workers import n_cpus

#: Above this load average others compete for the cores, and figures say little; unless no core is
#: busy now, and the average is of what ran in the minute before, such as another benchmark.
QUIET_LOAD = 0.5
QUIET_CORES = 0.1


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    cores: int
    date: str
    load: float
    busy_cores: float
    versions: str

    @property
    def quiet(self) -> bool:
        return self.load <= QUIET_LOAD or self.busy_cores <= QUIET_CORES

    def __str__(self) -> str:
        busy = "" if self.quiet else f", **busy: load average {self.load:.1f}**"
        return f"{self.cpu}, {self.cores} cores, {self.versions}, {self.date}{busy}"

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "text": str(self)}


def this_machine() -> Machine:
    """Describe the machine as it is now, and warn if it is busy."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    machine = Machine(
        cpu=_cpu_model(),
        cores=n_cpus(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        load=round(load, 2),
        busy_cores=round(_busy_cores(), 2),
        versions=(
            f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}"
        ),
    )
    if not machine.quiet:
        print(
            f"warning: load average {load:.2f} at the start, {machine.busy_cores:.2f} cores busy "
            "with something else: the machine is not quiet, and these figures are too high",
            file=sys.stderr,
        )
    return machine


def _busy_cores() -> float:
    """Cores that work while this process sleeps for a second; infinite where that is not told."""

    def busy_ticks() -> int:
        user, nice, system, _, _, *rest = map(int, stat.read_text().split("\n")[0].split()[1:9])
        return user + nice + system + sum(rest)

    stat = Path("/proc/stat")
    if not stat.is_file():
        return math.inf
    before, start = busy_ticks(), time.perf_counter()
    time.sleep(1)
    elapsed = time.perf_counter() - start
    return (busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / elapsed


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in lines if line.count(":") == 1
    )
    name = fields.get("model name", platform.machine())
    # Hypervisors shorten the name; family and model still tell the generation.
    return f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` calls, after one that warms up."""
    function()
    return statistics.median(seconds(function) for _ in range(repeats))


def read_bandwidth() -> float:
    """Bytes a second that one core reads from memory: the best of several sums over 512 MB."""
    array = np.ones(1 << 26, np.float64)
    return array.nbytes / min(seconds(lambda: np.add.reduce(array)) for _ in range(7))
