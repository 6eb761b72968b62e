"""Score the same rollouts with the official package, with peers and with ours; compare the time.

    python benchmarks/compare.py --official PYTHON [--untuned] [--peer NAME=PYTHON:SCRIPT ...]
        [--scenarios PATH --rollouts PATH [--n N]] [--json FILE]

PYTHON is an interpreter of an environment with waymo-open-dataset. The scorers run one after
another, each alone on the machine; the scores must agree. Without --scenarios and --rollouts the
official sample submission (32 rollouts of a real scene of 50 agents) is scored, and where that is
not at hand a synthetic scene. A scene takes the official package about two minutes.

The official package allocates and frees gigabytes, and with glibc's default thresholds spends most
of its time in page faults. To be fair to it they are set high; --untuned also runs it without.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import scenes
import tables
from machine import median_seconds, this_machine

from wosac_toolkit import load_rollouts, load_scenarios, score_scenario
from wosac_toolkit.io.scenarios import write_scenarios
from wosac_toolkit.io.tfrecord import write_records
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Scenario
from wosac_toolkit.synthetic import generate_scenarios

CHALLENGE = "2025"
OFFICIAL_WORKER = Path(__file__).with_name("official_worker.py")
# Never give memory back to the system between two tensors.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 33),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
# Metrics are of order 1 (displacement errors of some metres) and float32 at the official side; its
# corners of boxes differ in the last bit between processors, which can move a value across an edge.
TOLERANCE = 1e-4
REPEATS = 9


@dataclass(frozen=True, slots=True)
class Other:
    """A scorer that speaks the protocol of `official_worker.py`."""

    name: str
    python: str
    script: Path
    environment: dict[str, str]
    must_agree: bool


def others(arguments: argparse.Namespace) -> list[Other]:
    found = []
    if arguments.official:
        name = "official, allocator tuned"
        found.append(Other(name, arguments.official, OFFICIAL_WORKER, TUNED, True))
        if arguments.untuned:
            found.append(Other("official", arguments.official, OFFICIAL_WORKER, {}, True))
    for peer in arguments.peer:
        name, _, rest = peer.partition("=")
        python, _, script = rest.rpartition(":")
        if not (name and python and script):
            raise SystemExit(f"--peer {peer}: give NAME=PYTHON:SCRIPT")
        found.append(Other(name, python, Path(script), TUNED, False))
    if not found:
        raise SystemExit("nothing to compare with: give --official or --peer")
    return found


def write_bundles(arguments: argparse.Namespace, folder: Path) -> tuple[list[dict[str, str]], str]:
    """Write each scene and its rollouts as the protocol has them.

    Returns:
        The bundles of the job, and what they are.
    """
    if arguments.rollouts:
        source, text = Path(arguments.rollouts), "the rollouts given"
        path = scenes.find_dataset(arguments.scenarios, folder).path
        chosen: list[Rollouts] = list(islice(load_rollouts(source), arguments.n))
    elif (submission := scenes.official_submission()) is not None:
        path, chosen = str(scenes.SHARED / "womd"), [submission]
        text = "the official package's sample submission"
    else:
        print("no real scenes: comparing on a synthetic one", file=sys.stderr)
        write_scenarios(folder / "synthetic", generate_scenarios(1, seed=0), 1)
        path, text = str(folder / "synthetic"), "a SYNTHETIC scene, not WOMD"
        chosen = [scenes.simulate(s) for s in load_scenarios(path)]
    dataset, wanted, bundles = scenes.Dataset(path, text), {r.scenario_id: r for r in chosen}, []
    for scenario_id, payload in scenes.records(dataset):
        if (rollouts := wanted.pop(scenario_id, None)) is None:
            continue
        record, states = folder / f"{scenario_id}.tfrecord", folder / f"{scenario_id}.npz"
        write_records(record, [payload])
        np.savez(states, object_ids=rollouts.object_ids, states=rollouts.states)
        bundles.append({"scenario_id": scenario_id, "tfrecord": str(record), "npz": str(states)})
    if wanted:
        raise SystemExit(f"rollouts of scenes that are not there: {', '.join(wanted)}")
    return bundles, text


def run_other(other: Other, bundles: list[dict[str, str]], folder: Path) -> dict[str, Any]:
    """Scenario id -> seconds and metrics."""
    job = folder / "job.json"
    job.write_text(json.dumps({"challenge": CHALLENGE, "bundles": bundles}))
    print(f"running {other.name}", file=sys.stderr)
    process = subprocess.run(
        [other.python, str(other.script), str(job)],
        env={**os.environ, **other.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise SystemExit(f"{other.name} failed:\n{process.stderr[-4000:]}")
    scored = json.loads(process.stdout.strip().splitlines()[-1])["scenes"]
    return {scene["scenario_id"]: scene for scene in scored}


def our_seconds(scenario: Scenario, rollouts: Rollouts) -> dict[str, float]:
    """Threads -> seconds of a score."""
    return {
        str(n): median_seconds(
            lambda n=n: score_scenario(scenario, rollouts, CHALLENGE, threads=n), REPEATS
        )
        for n in (1, 2)
    }


def largest_difference(ours: dict[str, float | None], theirs: dict[str, float]) -> float:
    """Over the metrics that both have; NaN agrees with NaN."""
    differences = [0.0]
    for name, value in theirs.items():
        own = ours.get(name)
        if own is not None and not (math.isnan(own) and math.isnan(value)):
            difference = abs(own - value)
            differences.append(math.inf if math.isnan(difference) else difference)
    return max(differences)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    scorers = others(arguments)
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="wosac-compare-") as temporary:
        folder = Path(temporary)
        bundles, text = write_bundles(arguments, folder)
        results = [(other, run_other(other, bundles, folder)) for other in scorers]
        compared = []
        for bundle in bundles:
            (scenario,) = load_scenarios(bundle["tfrecord"])
            (rollouts,) = load_rollouts(bundle["npz"])
            score = score_scenario(scenario, rollouts, CHALLENGE)
            ours = our_seconds(scenario, rollouts)
            entry: dict[str, Any] = {
                "scenario_id": scenario.scenario_id,
                "n_agents": score.n_sim_agents,
                "n_rollouts": score.n_rollouts,
                "ours": ours,
                "metrics": score.metrics(),
                "others": [],
            }
            for other, scored in results:
                scene = scored[scenario.scenario_id]
                difference = largest_difference(score.metrics(), scene["metrics"])
                if other.must_agree and not difference <= TOLERANCE:
                    raise SystemExit(
                        f"scenario {scenario.scenario_id}: {other.name} differs by {difference}: "
                        f"{scene['metrics']} against {score.metrics()}"
                    )
                entry["others"].append({"name": other.name, "difference": difference, **scene})
            compared.append(entry)
    return {
        "machine": machine.as_dict(),
        "data": f"Of {text}, seconds of scoring alone, both sides with their inputs in memory",
        "scenes": compared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", metavar="PYTHON", help="interpreter of its environment")
    parser.add_argument("--untuned", action="store_true", help="also with the default allocator")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON:SCRIPT")
    parser.add_argument("--scenarios", help="scenes; default the shared real ones")
    parser.add_argument("--rollouts", help="rollouts of some of these scenes, any format")
    parser.add_argument("--n", type=int, default=2, help="score the first N of them")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    result = compare(arguments)
    print(tables.comparison(result))
    if arguments.json:
        tables.write_json(arguments.json, result)


if __name__ == "__main__":
    main()
