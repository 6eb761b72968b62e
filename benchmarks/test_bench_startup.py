"""New processes: what a user waits for before anything happens."""

from __future__ import annotations

import sys

import commands
import scenes
from targets import FIRST_SCORE

from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.tfrecord import write_records


def _bench(benchmark, *command):
    benchmark.pedantic(lambda: commands.run(list(map(str, command))), rounds=5, warmup_rounds=1)


def test_bare_python(benchmark):
    """What the others cannot be faster than."""
    _bench(benchmark, sys.executable, "-c", "pass")


def test_import(benchmark):
    _bench(benchmark, sys.executable, "-c", "import wosac_toolkit")


def test_import_of_the_metric(benchmark):
    _bench(benchmark, sys.executable, "-c", "import wosac_toolkit.metric")


def test_help(benchmark):
    benchmark.pedantic(lambda: commands.wosac("--help"), rounds=5, warmup_rounds=1)


def test_first_score(benchmark, dataset, cases, tmp_path):
    """Read and score one scene with the compiled kernels in the cache on disk."""
    case = cases["median"]
    wanted = case.scenario.scenario_id
    payload = next(p for name, p in scenes.records(dataset) if name == wanted)
    write_records(tmp_path / "one.tfrecord", [payload])
    path = write_npz(tmp_path, case.rollouts)
    _bench(benchmark, sys.executable, "-c", FIRST_SCORE, tmp_path / "one.tfrecord", path)
