"""Checks of an installation: sound, fast, exact, and the scenes fit for use.

Each check is a line: fine, a warning (slower or less than it could be), or a problem (wrong or
impossible), with what mends it. Nothing here raises: what breaks is a problem found. This module
imports nothing that may be broken; the checks do, each for itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wosac_toolkit import __version__
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.files import one_line
from wosac_toolkit.workers import n_cpus

if TYPE_CHECKING:
    from wosac_toolkit.io.tfrecord import RecordRef

Status = Literal["ok", "warning", "problem"]

RECORDED = Path(__file__).parent / "recorded"
"""A synthetic scene, rollouts of it, and what the official package of each challenge says of them:
`tests/official/make_doctor_scene.py` and `record.py` make them."""

TOLERANCE = 1e-6
"""The largest difference from an official value, as in the tests of parity."""

_DISTRIBUTION = "wosac-toolkit"
_MODULES = {"google-crc32c": "google_crc32c", "pyyaml": "yaml"}
_EXTRAS = {
    "train": "smart-r1: train SMART, and simulate with it",
    "report": "pictures and pages: wosac report, explain --render, leaderboard build",
    "wandb": "training logged to Weights & Biases",
}
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)>=(?P<least>[\d.]+)(?:;\s*extra == ['\"](?P<extra>\w+)['\"])?"
)
_WORKER_BYTES = 250 << 20  # A worker's peak, measured over 1000 scenes, is 200 MB.
_SCAN_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        name: what was looked at.
        status: `ok`; `warning`, it works, but slower or less well; `problem`.
        what: what was found.
        mend: what to do about it; empty where there is nothing to do.
    """

    name: str
    status: Status
    what: str
    mend: str = ""


def examine(scenarios: str | None = None) -> Iterator[Check]:
    """Look at everything, one check at a time.

    Args:
        scenarios: the scenes to look at, as `wosac_toolkit.load_scenarios` takes them; None for
            none.
    """
    for name, look in (
        ("packages", check_packages),
        ("extras", check_extras),
        ("threads", check_threads),
        ("disk", check_disk),
        ("memory", check_memory),
        ("kernel cache", check_kernel_cache),
        ("parity", check_parity),
        ("compiled kernels", check_compiled),
        ("scenarios", lambda: check_scenarios(scenarios)),
    ):
        yield from _guarded(name, look)


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of `look`; what it raises is a problem."""
    try:
        yield from look()
    except WosacError as error:
        yield Check(name, "problem", str(error))
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        yield Check(name, "problem", what, "install again in a fresh environment")


# Packages


def check_packages() -> Iterator[Check]:
    """Python, this package, and what it needs: there, new enough, and fit to be imported."""
    system = f"{platform.system()} {platform.machine()}"
    yield Check("python", "ok", f"{platform.python_version()}, {system}, {sys.executable}")
    try:
        installed = importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            _DISTRIBUTION,
            "warning",
            f"{__version__}, imported from {Path(__file__).parent}, but not installed",
            "pip install . in its folder",
        )
        return
    stale = installed != __version__
    yield Check(
        _DISTRIBUTION,
        "warning" if stale else "ok",
        f"{__version__}, {Path(__file__).parent}" + (f", installed as {installed}" * stale),
        "install it again" if stale else "",
    )
    for name, least in requirements().get("", ()):
        yield _package(name, least)


def _package(name: str, least: str) -> Check:
    mend = f"pip install '{name}>={least}'"
    version = _version(name)
    if version is None:
        return Check(name, "problem", "not installed", mend)
    if _numbers(version) < _numbers(least):
        return Check(name, "problem", f"{version}, older than {least}", mend)
    try:
        module = importlib.import_module(_MODULES.get(name, name))
    except Exception as error:  # Binaries that do not fit together raise all kinds of errors.
        what = f"{version}, cannot be imported: {one_line(error)}"
        return Check(name, "problem", what, f"pip install --force-reinstall '{name}>={least}'")
    if getattr(module, "implementation", "c") != "c":
        what = f"{version}, without its compiled part: reading scenes takes far longer"
        return Check(name, "warning", what, f"pip install --force-reinstall {name}")
    return Check(name, "ok", version)


def check_extras() -> Iterator[Check]:
    """The optional packages: which are there, and what the others would give."""
    needed = requirements()
    for extra, gives in _EXTRAS.items() if needed else ():
        versions = {name: _version(name) for name, _ in needed.get(extra, ())}
        missing = [name for name, version in versions.items() if version is None]
        if not versions:
            what = "the installed metadata do not know it, so they are older than the code"
            yield Check(f"[{extra}]", "warning", what, "install this package again")
        elif missing:
            what = f"not installed: {', '.join(missing)} ({gives})"
            yield Check(f"[{extra}]", "ok", what, f"pip install 'wosac-toolkit[{extra}]'")
        else:
            found = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Check(f"[{extra}]", "ok", found)


def requirements() -> Mapping[str, Sequence[tuple[str, str]]]:
    """Extra, or nothing for what is always needed -> (package, least version) of each package.

    As the metadata of the installed package say; empty where it is not installed.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        if match := _REQUIREMENT.match(line):
            found.setdefault(match["extra"] or "", []).append((match["name"], match["least"]))
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


# The machine


def check_threads() -> Iterator[Check]:
    """CPUs, and variables of the environment that make them idle or get in each other's way."""
    cpus, total = n_cpus(), os.cpu_count() or 1
    quota = _cpu_quota()
    what = f"{cpus} of {total} may be used"
    if quota is not None and quota < cpus:
        n = max(1, int(quota))
        yield Check(
            "CPUs",
            "warning",
            f"{what}, but this container gets the time of {quota:g}",
            f"give --workers {n}: one a CPU is the default",
        )
    else:
        yield Check("CPUs", "ok", what)
    findings = [*_numba_variables(), *_thread_variables(cpus)]
    yield from findings
    if not findings:
        yield Check("environment", "ok", "no variable that slows kernels or threads down")


def _cpu_quota() -> float | None:
    """The CPU time that a container may use, in CPUs; None where there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        microseconds = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return microseconds / period_us if microseconds > 0 else None
    except (OSError, ValueError):
        return None


_SLOW_NUMBA: Mapping[str, tuple[str, Status, str]] = {
    # name: (values that do no harm, status, what the others do)
    "NUMBA_DISABLE_JIT": ("0", "problem", "kernels are interpreted, a thousand times slower"),
    "NUMBA_OPT": ("3 max", "warning", "kernels are compiled without optimisation"),
    "NUMBA_BOUNDSCHECK": ("0", "warning", "every index in the kernels is checked"),
    "NUMBA_DEBUG": ("0", "warning", "numba prints what it compiles"),
    "NUMBA_DEBUGINFO": ("0", "warning", "kernels are compiled for debuggers"),
}


def _numba_variables() -> Iterator[Check]:
    for name, (harmless, status, what) in _SLOW_NUMBA.items():
        value = os.environ.get(name, "")
        if value and value not in harmless.split():
            yield Check(name, status, f"is {value}: {what}", f"unset {name}")


def _thread_variables(cpus: int) -> Iterator[Check]:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value and (not value.isdecimal() or int(value) > cpus):
            what = f"is {value[:40]}: every process starts so many threads on {cpus} CPUs"
            if not value.isdecimal():
                what = f"is {value[:40]!r}, not a number of threads"
            yield Check(name, "warning", what, f"unset {name}; workers then have one thread each")


def check_disk() -> Iterator[Check]:
    """Free space here and for temporary files."""
    places = {"disk here": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    for (name, folder), least in zip(places.items(), (2 << 30, 100 << 20), strict=True):
        free = shutil.disk_usage(folder).free
        short = free < least
        yield Check(
            name,
            "warning" if short else "ok",
            f"{_size(free)} free, {folder}",
            "make room: rollouts take 1 to 2 MB a scene" if short else "",
        )


def check_memory() -> Iterator[Check]:
    """Memory for one worker a CPU."""
    free = _free_memory()
    if free is None:
        yield Check("memory", "ok", "how much is free is not known on this system")
        return
    cpus = n_cpus()
    n = int(free // _WORKER_BYTES)
    short = n < cpus
    yield Check(
        "memory",
        "warning" if short else "ok",
        f"{_size(free)} free, one worker a CPU takes up to {_size(cpus * _WORKER_BYTES)}",
        f"give --workers {max(1, n)}" if short else "",
    )


def _free_memory() -> float | None:
    """Bytes that this process may still use, None where the system does not say."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(float(available.split()[1]) * 1024)
    except (OSError, StopIteration, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup")
        most = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        cache = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
        limits.append(float(most - used + (int(cache[1]) if cache else 0)))
    except (OSError, ValueError):
        pass
    return min(limits, default=None)


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MB"


# Kernels


def check_kernel_cache() -> Iterator[Check]:
    """Where compiled kernels are kept, and whether there are any."""
    try:
        folders = sorted({Path(kernel.stats.cache_path) for kernel in _kernels()})
    except RuntimeError as error:  # Numba finds no folder that it may write to.
        yield Check(
            "kernel cache", "problem", one_line(error), "set NUMBA_CACHE_DIR to a writable folder"
        )
        return
    compiled = [path for folder in folders for path in folder.glob("*.nbi")]
    locked = [folder for folder in folders if not _is_writable(folder)]
    listed = ", ".join(map(str, folders))
    if locked:
        yield Check(
            "kernel cache",
            "problem" if not compiled else "warning",
            f"cannot be written: {', '.join(map(str, locked))}",
            "set NUMBA_CACHE_DIR to a writable folder",
        )
    elif not compiled:
        yield Check(
            "kernel cache",
            "warning",
            f"empty, so the next check compiles: {listed}",
            "wosac warmup compiles ahead of the first score",
        )
    else:
        yield Check("kernel cache", "ok", listed)


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def _kernels() -> list[Any]:
    from wosac_toolkit.kernels.jit import all_kernels

    return all_kernels()


def check_compiled() -> Iterator[Check]:
    """Whether the kernels that the check of parity called came from the cache."""
    kernels = _kernels()
    loaded = [kernel for kernel in kernels if kernel.stats.cache_hits]
    compiled = [kernel for kernel in kernels if kernel.stats.cache_misses]
    old = sorted({kernel.py_func.__name__ for kernel in loaded if _is_older_than_helpers(kernel)})
    if old:
        yield Check(
            "compiled kernels",
            "warning",
            f"{len(old)} are older than a module whose code they hold: {', '.join(old[:5])}",
            "wosac warmup --clear",
        )
    elif compiled:
        n = len(compiled) + len(loaded)
        yield Check(
            "compiled kernels",
            "warning",
            f"{len(compiled)} of {n} were missing or older than their code, and compiled just now",
            "wosac warmup compiles them all, once a machine",
        )
    else:
        yield Check("compiled kernels", "ok", f"{len(loaded)} loaded from the cache")


def _is_older_than_helpers(kernel: Any) -> bool:
    """Numba compares a kernel with its own file only (see `kernels.jit`)."""
    function = kernel.py_func
    called = [
        value.py_func.__code__.co_filename
        for value in function.__globals__.values()
        if hasattr(value, "py_func") and value.py_func.__module__ != function.__module__
    ]
    changed = max((os.path.getmtime(path) for path in called), default=0.0)
    pattern = f"*.{function.__qualname__}-{function.__code__.co_firstlineno}.*.nbi"
    indices = list(Path(kernel.stats.cache_path).glob(pattern))
    return bool(indices) and max(path.stat().st_mtime for path in indices) < changed


# Exactness


def check_parity(folder: Path = RECORDED) -> Iterator[Check]:
    """Score recorded rollouts by the rules of each challenge; compare with the official package."""
    from wosac_toolkit.challenge import ALL_CHALLENGES
    from wosac_toolkit.io.npz import read_npz
    from wosac_toolkit.io.scenarios import load_scenarios
    from wosac_toolkit.metric import score_scenario

    scenarios = {one.scenario_id: one for one in load_scenarios(folder / "scenes.tfrecord.gz")}
    for challenge in ALL_CHALLENGES:
        (path,) = folder.rglob(f"*.{challenge}.json")
        recorded = json.loads(path.read_text("utf-8"))
        official = {**recorded["metrics"], **recorded["buckets"]}
        scenario_id = official.pop("scenario_id")
        start = time.perf_counter()
        rollouts = read_npz(path.with_name(f"{scenario_id}.npz"))
        score = score_scenario(scenarios[scenario_id], rollouts, challenge)
        seconds = time.perf_counter() - start
        yield _compared(challenge, official, {**score.metrics(), **score.buckets()}, seconds)


def _compared(
    challenge: str,
    official: Mapping[str, float],
    ours: Mapping[str, float | None],
    seconds: float,
) -> Check:
    differences = {name: _difference(ours.get(name), value) for name, value in official.items()}
    worst = max(differences, key=lambda name: differences[name])
    name = f"parity {challenge}"
    if differences[worst] <= TOLERANCE:
        what = f"{len(official)} official values, largest difference {differences[worst]:.1g}"
        return Check(name, "ok", f"{what}, {seconds:.2f} s")
    return Check(
        name,
        "problem",
        f"{worst} is {ours.get(worst)}, officially {official[worst]}",
        "wosac warmup --clear; if that does not help, report it with this output",
    )


def _difference(ours: float | None, official: float) -> float:
    """Infinite where it is no number."""
    difference = float("inf") if ours is None else abs(ours - official)
    return difference if difference == difference else float("inf")


# Scenes


def check_scenarios(path: str | None) -> Iterator[Check]:
    """The files of scenes: all there, whole, and scenes that can be simulated and scored.

    Every file is counted; the first, the last, and as many of the others as there is time for are
    walked from record to record, and their first and last record are read and looked at.
    """
    if path is None:
        what = "none given"
        yield Check("scenarios", "ok", what, "give --scenarios PATH to have a folder looked at")
        return
    from wosac_toolkit.io.tfrecord import find_shards

    shards = find_shards(path)
    missing = _missing_shards(shards)
    if empty := [shard for shard in shards if not shard.stat().st_size]:
        missing.append(f"{len(empty)} files are empty, the first is {empty[0].name}")
    yield Check(
        "scenarios",
        "warning" if missing else "ok",
        f"{len(shards)} files, {_size(sum(shard.stat().st_size for shard in shards))}: {path}"
        + "".join(f"; {text}" for text in missing),
        "fetch the missing ones, or score with --missing intersect" if missing else "",
    )
    yield from _look_into(shards)


_SHARD = re.compile(r"(?P<name>.*)-(?P<i>\d{5})-of-(?P<n>\d{5})(\.gz)?")


def _missing_shards(shards: Sequence[Path]) -> list[str]:
    """What the names of the files say is not there."""
    found: dict[tuple[str, int], set[int]] = {}
    for shard in shards:
        if match := _SHARD.fullmatch(shard.name):
            key = str(shard.with_name(match["name"])), int(match["n"])
            found.setdefault(key, set()).add(int(match["i"]))
    return [
        f"{n - len(numbers)} of the {n} files {Path(name).name}-* are missing"
        for (name, n), numbers in found.items()
        if len(numbers) < n
    ]


def _look_into(shards: Sequence[Path]) -> Iterator[Check]:
    from wosac_toolkit.io.scenarios import read_scenario

    order = sorted(range(len(shards)), key=lambda i: _reversed_bits(i, len(shards)))
    start = time.perf_counter()
    kinds: dict[str, int] = {"whole": 0, "of the test split": 0}
    n_walked = n_records = n_faults = 0
    for i in order:
        if n_walked >= 2 and time.perf_counter() - start > _SCAN_SECONDS:
            break
        n_walked += 1
        try:
            records = _ends(shards[i])
            n_records += records[0]
            for record in records[1]:
                scenario = read_scenario(record)
                fault, kind = _fault(scenario)
                if fault:
                    n_faults += 1
                    where = f"{record}: scenario {scenario.scenario_id}"
                    yield Check("scene", "problem", f"{where}: {fault}", "fetch the file again")
                else:
                    kinds[kind] += 1
        except (WosacError, OSError) as error:
            n_faults += 1
            what = error.what if isinstance(error, WosacError) else one_line(error)
            where = error.where if isinstance(error, WosacError) else str(shards[i])
            mend = error.mend if isinstance(error, WosacError) else ""
            yield Check("scene", "problem", f"{where or shards[i]}: {what}", mend)
        if n_faults >= 10:
            break
    if n_faults:
        return
    if not n_records:
        yield Check("scenes", "problem", "no scene in these files", "fetch them again")
        return
    read = ", ".join(f"{n} {kind}" for kind, n in kinds.items() if n)
    only_test = not kinds["whole"]
    yield Check(
        "scenes",
        "ok",
        f"{n_records} scenes in the {n_walked} of {len(shards)} files walked; read: {read}",
        "the test split has no future: simulate and validate, but it cannot be scored"
        if only_test
        else "",
    )


def _reversed_bits(i: int, n: int) -> tuple[bool, bool, str]:
    """A key that sorts the first and last of `n` things first, then those between, spread out."""
    return i != 0, i != n - 1, format(i, f"0{n.bit_length()}b")[::-1]


def _ends(shard: Path) -> tuple[int, list[RecordRef]]:
    """How many records a file has, and the first and the last of them."""
    from wosac_toolkit.io.tfrecord import iter_refs

    n = 0
    ends: list[RecordRef] = []
    for ref in iter_refs(shard):
        n += 1
        ends = [*ends[:1], ref]
    return n, ends


def _fault(scenario: Any) -> tuple[str, str]:
    """What keeps a scene from being simulated, and which kind of scene it is."""
    history = scenario.current_time_index + 1
    kind = "of the test split" if scenario.n_steps <= history else "whole"
    n_tracks = len(scenario.tracks.object_ids)
    if not len(scenario.sim_agents()):
        return f"no object is valid at step {history - 1}, so none can be simulated", kind
    if not 0 <= scenario.sdc_track_index < n_tracks:
        return f"sdc_track_index is {scenario.sdc_track_index}, with {n_tracks} tracks", kind
    if kind == "whole" and scenario.n_steps < history + 80:
        return f"{scenario.n_steps} steps, too few for {history} of history and 80 of future", kind
    if not len(scenario.road_map.feature_ids):
        return "no map", kind
    return "", kind
