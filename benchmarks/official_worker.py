"""Score bundles with the official package; runs in its environment, not in ours.

    python official_worker.py JOB.json

A peer's script speaks the same protocol and can be given to `compare.py --peer`:

- JOB.json holds {"challenge": "2025", "bundles": [{"scenario_id", "tfrecord", "npz"}, ...]}: a
  TFRecord file of one `Scenario`, and its rollouts as `object_ids` [N] and `states`
  [R, N, 80, 4] (x, y, z, heading).
- On stdout it prints one line of JSON, {"scenes": [{"scenario_id", "seconds", "metrics"}, ...]}:
  seconds of scoring alone, warm, with the scene and the rollouts in memory in the scorer's own
  form, and the official metric names with their values. Whatever else it has to say goes to stderr.
"""

import contextlib
import json
import os
import struct
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from google.protobuf import text_format
from waymo_open_dataset.protos import (
    scenario_pb2,
    sim_agents_metrics_pb2,
    sim_agents_submission_pb2,
)
from waymo_open_dataset.wdl_limited.sim_agents_metrics import metrics

CONFIG = {
    "2025": "challenge_2025_sim_agents_config.textproto",
    "2024": "challenge_2024_config.textproto",
    "2023": "challenge_config.textproto",
}


def read_scenario(path):
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return scenario_pb2.Scenario.FromString(data[12 : 12 + length])


def read_rollouts(path, scenario_id):
    bundle = np.load(path)
    joint_scenes = []
    for joint in bundle["states"]:
        trajectories = [
            sim_agents_submission_pb2.SimulatedTrajectory(
                object_id=int(object_id), center_x=s[:, 0], center_y=s[:, 1], center_z=s[:, 2],
                heading=s[:, 3],
            )
            for object_id, s in zip(bundle["object_ids"], joint)  # noqa: B905
        ]  # fmt: skip
        joint_scenes.append(
            sim_agents_submission_pb2.JointScene(simulated_trajectories=trajectories)
        )
    return sim_agents_submission_pb2.ScenarioRollouts(
        scenario_id=scenario_id, joint_scenes=joint_scenes
    )


def score(job):
    config = text_format.Parse(
        (Path(metrics.__file__).parent / CONFIG[job["challenge"]]).read_text(),
        sim_agents_metrics_pb2.SimAgentMetricsConfig(),
    )
    for bundle in job["bundles"]:
        scenario = read_scenario(bundle["tfrecord"])
        rollouts = read_rollouts(bundle["npz"], bundle["scenario_id"])
        # The first call of a process loads and sets up TensorFlow's kernels.
        one = sim_agents_submission_pb2.ScenarioRollouts(
            scenario_id=rollouts.scenario_id, joint_scenes=rollouts.joint_scenes[:1]
        )
        metrics.compute_scenario_metrics_for_bundle(config, scenario, one)
        start = time.perf_counter()
        result = metrics.compute_scenario_metrics_for_bundle(config, scenario, rollouts)
        yield {
            "scenario_id": bundle["scenario_id"],
            "seconds": time.perf_counter() - start,
            "metrics": {
                field.name: value
                for field, value in result.ListFields()
                if isinstance(value, float)
            },
        }


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    with contextlib.redirect_stdout(sys.stderr):
        scored = list(score(job))
    print(json.dumps({"scenes": scored}))
