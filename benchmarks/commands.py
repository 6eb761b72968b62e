"""`wosac` run as users run it: its own processes, watched from outside."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PYTHON = [sys.executable, "-m"]
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """A finished command.

    Attributes:
        seconds: from start to end.
        cpu_seconds: of the command and its workers.
        memory_mb: of each process below the command that was seen, its resident memory over time;
            empty where there is no /proc.
    """

    seconds: float
    cpu_seconds: float
    memory_mb: dict[int, list[float]]


def wosac(*arguments: object, watch: bool = False) -> Run:
    """Run `wosac`.

    Raises:
        SystemExit: it failed; its own message is printed.
    """
    script = Path(sys.executable).with_name("wosac")
    command = [str(script)] if script.is_file() else [*PYTHON, "wosac_toolkit.cli"]
    return run([*command, *map(str, arguments)], watch)


def run(command: list[str], watch: bool = False) -> Run:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    memory: dict[int, list[float]] = {}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while watch:
            try:
                process.wait(SAMPLE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                for pid in _children(process.pid):
                    if resident := _resident_mb(pid):
                        memory.setdefault(pid, []).append(resident)
        _, errors = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    elapsed = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{errors.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(elapsed, cpu, memory)


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat") if os.path.isdir("/proc") else ():
        try:
            # The name in brackets may hold blanks; the parent is the second field after it.
            if int(entry.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(entry.parent.name))
        except OSError:  # it has ended
            continue
    return found


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGESIZE") / 1e6
