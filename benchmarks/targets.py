"""Measure what the toolkit promises of its speed, and say which promises it keeps.

    python benchmarks/targets.py [--scenarios PATH] [--repeats N] [--json FILE]

Everything is measured through the public entry points, warm, as medians of repeats; scenes are
the real ones of WOSAC_SHARED unless a path is given.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import commands
import numpy as np
import scenes
import tables
from kernel_times import timed_kernels
from machine import median_seconds, seconds, this_machine
from tqdm import tqdm

from wosac_toolkit import load_rollouts, load_scenarios, score_scenario
from wosac_toolkit.features import logged_features, prepare_scene, simulated_features
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.submission import SubmissionMetadata, write_submission
from wosac_toolkit.io.tfrecord import write_records
from wosac_toolkit.likelihood import count_log
from wosac_toolkit.metric import leave_one_out, score_rollouts
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Scenario

DENSE_AGENTS = 100
N_END_TO_END = 200
N_MEMORY = 1000
N_IO = 40
N_RESCORED = 3
N_SAME_BYTES = 48
WORKERS = 2
FIRST_SCORE = """
import sys
from wosac_toolkit import load_rollouts, load_scenarios, score_scenario
score_scenario(next(load_scenarios(sys.argv[1])), next(load_rollouts(sys.argv[2])))
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A promise and what became of it.

    Attributes:
        name: what is measured.
        limit: the promise; None where there is none and the figure is for information.
        measured: None where it could not be measured.
        unit: of both.
        note: what else there is to say.
    """

    name: str
    limit: float | None
    measured: float | None
    unit: str
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.limit is None or self.measured is None:
            return None
        return self.measured <= self.limit


@dataclass(frozen=True, slots=True)
class SceneTimes:
    """Milliseconds of one scene.

    Attributes:
        score: threads -> of `score_scenario`, from arrays to the meta-metric.
        parts: of its parts, one thread.
        kernels: kernel -> own time, one thread, over the whole of `score_scenario`.
        leave_one_out: of a score with all its leave-one-out scores over a score alone.
    """

    scenario_id: str
    n_agents: int
    n_evaluated: int
    score: dict[int, float]
    parts: dict[str, float]
    kernels: dict[str, float]
    leave_one_out: float


def measure_scene(scenario: Scenario, rollouts: Rollouts, repeats: int) -> SceneTimes:
    scores = {n: score_scenario(scenario, rollouts, threads=n) for n in (1, 2)}
    if repr(scores[1].metrics()) != repr(scores[2].metrics()):
        raise SystemExit(f"scenario {scenario.scenario_id}: the score depends on the threads")
    scene = prepare_scene(scenario)
    logged = count_log(logged_features(scene), scene.challenge)

    def ms(function: Callable[[], object]) -> float:
        return 1e3 * median_seconds(function, repeats)

    splits: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        with timed_kernels() as split:
            whole = seconds(lambda: score_scenario(scenario, rollouts))
        split["outside kernels (NumPy, Python)"] = whole - sum(split.values())
        for name, value in split.items():
            splits[name].append(1e3 * value)
    parts = {
        "prepare_scene": ms(lambda: prepare_scene(scenario)),
        "logged_features, count_log": ms(
            lambda: count_log(logged_features(scene), scene.challenge)
        ),
        "simulated_features": ms(lambda: simulated_features(scene, rollouts)),
        "score_rollouts (a prepared scene, as in training)": ms(
            lambda: score_rollouts(scene, logged, rollouts)
        ),
    }
    return SceneTimes(
        scenario_id=scenario.scenario_id,
        n_agents=len(scene.object_ids),
        n_evaluated=scene.n_evaluated,
        score={n: ms(lambda n=n: score_scenario(scenario, rollouts, threads=n)) for n in (1, 2)},
        parts=parts,
        kernels={name: statistics.median(values) for name, values in splits.items()},
        leave_one_out=ms(lambda: leave_one_out(scene, logged, rollouts))
        / parts["score_rollouts (a prepared scene, as in training)"],
    )


def leave_one_out_error(dataset: scenes.Dataset) -> Target:
    """Compare leave-one-out scores of some scenes with those of scoring every subset anew."""
    errors = []
    for scenario in islice(scenes.scorable(dataset), N_RESCORED):
        rollouts, scene = scenes.simulate(scenario), prepare_scene(scenario)
        logged = count_log(logged_features(scene), scene.challenge)
        quick = leave_one_out(scene, logged, rollouts).metametric
        for left_out, value in enumerate(quick):
            others = replace(rollouts, states=np.delete(rollouts.states, left_out, axis=0))
            errors.append(abs(score_rollouts(scene, logged, others).metametric - value))
    name = "leave-one-out scores, largest difference from scoring each subset"
    return Target(name, 1e-9, float(max(errors)), "", f"{N_RESCORED} scenes x 32 subsets")


def measure_scenes(dataset: scenes.Dataset, repeats: int) -> list[SceneTimes]:
    times = []
    for scenario in tqdm(scenes.scorable(dataset), "scoring", unit=" scenes", mininterval=5):
        times.append(measure_scene(scenario, scenes.simulate(scenario), repeats))
    return times


def measure_submission(dataset: scenes.Dataset, repeats: int) -> SceneTimes | None:
    """The official sample submission, if it and its scene are there."""
    rollouts = scenes.official_submission()
    if rollouts is None:
        return None
    for scenario in load_scenarios(dataset.path):
        if scenario.scenario_id == rollouts.scenario_id:
            return measure_scene(scenario, rollouts, repeats)
    return None


def scoring_targets(times: list[SceneTimes], submission: SceneTimes | None) -> Iterator[Target]:
    what = f"{len(times)} scenes x 32 rollouts"
    dense = [t for t in times if t.n_agents >= DENSE_AGENTS]
    for threads, limit in ((2, 10.0), (1, 18.0)):
        values = [t.score[threads] for t in times]
        name = f"score a scene, {_threads(threads)}"
        yield Target(f"{name}, median", limit, statistics.median(values), "ms", what)
        yield Target(f"{name}, slowest", None, max(values), "ms")
    for threads, limit in ((2, 30.0), (1, None)) if dense else ():
        name = f"score a scene of >= {DENSE_AGENTS} agents, {_threads(threads)}, slowest"
        agents = ", ".join(str(t.n_agents) for t in dense)
        slowest = max(t.score[threads] for t in dense)
        yield Target(name, limit, slowest, "ms", f"{len(dense)} scenes: {agents} agents")
    if submission is not None:
        for threads in (2, 1):
            name = f"score the official sample submission, {_threads(threads)}"
            note = f"{submission.n_agents} agents, {submission.n_evaluated} evaluated"
            yield Target(name, None, submission.score[threads], "ms", note)
    name = "all 32 leave-one-out scores and the score, over the score alone, median"
    yield Target(name, 1.25, statistics.median(t.leave_one_out for t in times), "x", what)


def io_targets(dataset: scenes.Dataset, folder: Path, repeats: int) -> Iterator[Target]:
    """Reading, from files that the operating system has in memory."""
    passes = min(repeats, 3)
    values = _read_ms(lambda: load_scenarios(dataset.path), passes)
    yield _median("read a scenario from TFRecord", 5.0, values)
    shard, npz = folder / "shard.binproto", folder / "npz"
    npz.mkdir()

    def simulated() -> Iterator[Rollouts]:
        for scenario in islice(scenes.scorable(dataset), N_IO):
            rollouts = scenes.simulate(scenario)
            write_npz(npz, rollouts)
            yield rollouts

    write_submission(shard, simulated(), SubmissionMetadata())
    for name, limit, path in (
        ("read 32 rollouts from a submission shard", 5.0, shard),
        ("read 32 rollouts from .npz", 2.0, npz),
    ):
        yield _median(name, limit, _read_ms(lambda path=path: load_rollouts(path), passes))


def _read_ms(load: Callable[[], Iterator[object]], passes: int) -> list[float]:
    """Milliseconds of each item of a stream, the median of `passes` after one that warms up."""
    rounds = []
    for _ in range(1 + passes):
        stream, values = iter(load()), []
        while True:
            start = time.perf_counter()
            item = next(stream, None)
            if item is None:
                break
            values.append(1e3 * (time.perf_counter() - start))
        rounds.append(values)
    return [statistics.median(values) for values in zip(*rounds[1:], strict=True)]


def _median(name: str, limit: float, values: list[float]) -> Target:
    note = f"{len(values)} scenes, slowest {max(values):.1f} ms"
    return Target(f"{name}, median", limit, statistics.median(values), "ms", note)


def command_targets(
    dataset: scenes.Dataset, times: list[SceneTimes], folder: Path, repeats: int
) -> Iterator[Target]:
    """`wosac score` and `wosac --help` as processes of their own."""
    ids = {t.scenario_id for t in times}
    n = -(-N_END_TO_END // len(ids)) * len(ids)
    copies = scenes.write_copies(dataset, ids, n, folder / "scenarios")
    scenes.write_copied_rollouts(dataset, copies, folder / "rollouts", "submission")
    run = min((_score(folder, i) for i in range(3)), key=lambda run: run.seconds)
    busy = run.cpu_seconds / run.seconds
    yield Target(
        f"wosac score, {WORKERS} workers, submission shards, a scene",
        20.0,
        1e3 * run.seconds / n,
        "ms",
        f"{n} scenes in {run.seconds:.1f} s, start-up included; {busy:.2f} cores busy",
    )
    yield _same_bytes(folder)

    big = folder / "memory"
    big_copies = scenes.write_copies(dataset, ids, N_MEMORY, big / "scenarios")
    scenes.write_copied_rollouts(dataset, big_copies, big / "rollouts", "npz")
    run = _score(big, 0, watch=True)
    yield from _memory(run)
    yield Target(
        f"wosac score, {WORKERS} workers, .npz, a scene",
        None,
        1e3 * run.seconds / N_MEMORY,
        "ms",
        f"{N_MEMORY} scenes in {run.seconds:.1f} s; {run.cpu_seconds / run.seconds:.2f} cores busy",
    )

    yield Target(
        "wosac --help", 0.3, median_seconds(lambda: commands.wosac("--help"), repeats), "s"
    )
    one = folder / "one"
    one.mkdir()
    name, payload = next((n, p) for n, p in scenes.records(dataset) if n in ids)
    write_records(one / "one.tfrecord-00000-of-00001", [payload])
    scenario = next(load_scenarios(one))
    path = write_npz(one, scenes.simulate(scenario))
    first = [sys.executable, "-c", FIRST_SCORE, str(one), str(path)]
    yield Target(
        "first score in a new process, kernels cached",
        2.0,
        median_seconds(lambda: commands.run(first), repeats),
        "s",
        f"scene {name}, from the start of Python to its end",
    )


def _score(folder: Path, number: int, watch: bool = False) -> commands.Run:
    return commands.wosac(
        "score", folder / "rollouts", "--scenarios", folder / "scenarios",
        "--out", folder / f"run{number}", "--workers", WORKERS, watch=watch,
    )  # fmt: skip


def _same_bytes(folder: Path) -> Target:
    """Score some scenes with 1 and 2 workers and compare all files, byte by byte."""
    runs: list[dict[str, bytes]] = []
    for workers in (1, 2):
        out = folder / f"run_of_{workers}"
        commands.wosac(
            "score", folder / "rollouts", "--scenarios", folder / "scenarios", "--out", out,
            "--workers", workers, "--limit", N_SAME_BYTES, "--per-agent",
        )  # fmt: skip
        runs.append({path.name: path.read_bytes() for path in out.iterdir()})
    one, two = runs
    files = sorted({*one, *two})
    differing = [name for name in files if one.get(name) != two.get(name)]
    note = (
        f"{', '.join(differing or files)}; {N_SAME_BYTES} scenes; 1 and 2 threads were compared "
        "on every scene"
    )
    name = "files of wosac score with 1 and 2 workers whose bytes differ"
    return Target(name, 0.0, float(len(differing)), "", note)


def _memory(run: commands.Run) -> Iterator[Target]:
    """Peak and growth of the workers: processes that hold more than a bare Python."""
    name = f"memory of a worker over {N_MEMORY} scenes"
    workers = {pid: mb for pid, mb in run.memory_mb.items() if len(mb) >= 8 and max(mb) > 60}
    if not workers:
        yield Target(f"{name}, peak", 400.0, None, "MB", "no /proc on this machine")
        return
    peak = max(max(mb) for mb in workers.values())
    growth = []
    for mb in workers.values():
        quarter = len(mb) // 4
        growth.append(max(mb[-quarter:]) - max(mb[quarter : 2 * quarter]))
    note = f"{len(workers)} workers, resident, libraries shared between them included"
    yield Target(f"{name}, peak", 400.0, peak, "MB", note)
    note = "highest of the last quarter of the run less highest of the second"
    yield Target(f"{name}, growth", 20.0, max(growth), "MB", note)


def kernel_rows(times: Iterable[SceneTimes]) -> list[dict[str, Any]]:
    """Kernels, the costliest first: median and mean over scenes, share of the whole."""
    per_scene = [t.kernels for t in times]
    names = {name for kernels in per_scene for name in kernels}
    mean = {name: float(np.mean([k.get(name, 0.0) for k in per_scene])) for name in names}
    whole = sum(mean.values())
    return [
        {
            "kernel": name,
            "median_ms": float(np.median([k.get(name, 0.0) for k in per_scene])),
            "mean_ms": mean[name],
            "share": mean[name] / whole,
        }
        for name in sorted(names, key=lambda name: -mean[name])
        if mean[name] >= 1e-3 * whole
    ]


def part_rows(times: Iterable[SceneTimes]) -> list[dict[str, Any]]:
    parts = [t.parts for t in times]
    return [
        {"part": name, "median_ms": statistics.median(p[name] for p in parts)} for name in parts[0]
    ]


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenarios", help="scenes to measure on; default the shared real ones")
    parser.add_argument("--repeats", type=int, default=5, help="of everything that is timed")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()

    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="wosac-bench-") as temporary:
        folder = Path(temporary)
        dataset = scenes.find_dataset(arguments.scenarios, folder)
        times = measure_scenes(dataset, arguments.repeats)
        submission = measure_submission(dataset, arguments.repeats)
        targets = list(scoring_targets(times, submission))
        targets.append(leave_one_out_error(dataset))
        print("reading", file=sys.stderr)
        targets += io_targets(dataset, folder, arguments.repeats)
        print("running wosac", file=sys.stderr)
        targets += command_targets(dataset, times, folder, arguments.repeats)
    result = {
        "machine": machine.as_dict(),
        "data": f"{len(times)} {dataset.text}, 32 {scenes.POLICY} rollouts each",
        "targets": [{**asdict(target), "met": target.met} for target in targets],
        "parts": part_rows(times),
        "kernels": kernel_rows(times),
    }
    print(tables.targets(result), tables.parts(result), tables.kernels(result), sep="\n\n")
    if arguments.json:
        tables.write_json(arguments.json, result)


if __name__ == "__main__":
    main()
