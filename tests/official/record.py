"""Score the bundles of this folder with an official release and write its results beside them.

Runs in the oracle's environment, not in ours: `make oracle` calls it once a challenge year, with
the release of that year first on PYTHONPATH.

    python record.py 2024
"""

import gzip
import json
import os
import struct
import sys
from pathlib import Path

# Without oneDNN's fused matrix products, whose last bit depends on the processor.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
# The message classes of 2023 are too old for protobuf's compiled back end.
if sys.argv[1:] == ["2023"]:
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"

import numpy as np
from google.protobuf import text_format
from waymo_open_dataset.protos import (
    scenario_pb2,
    sim_agents_metrics_pb2,
    sim_agents_submission_pb2,
)
from waymo_open_dataset.wdl_limited.sim_agents_metrics import metrics

HERE = Path(__file__).parent
CONFIG = {
    "2025": "challenge_2025_sim_agents_config.textproto",
    "2024": "challenge_2024_config.textproto",
    "2023": "challenge_config.textproto",
}


def read_scenarios() -> dict:
    """Scenario id -> proto, of all records of scenes.tfrecord.gz."""
    data, scenarios, position = gzip.decompress((HERE / "scenes.tfrecord.gz").read_bytes()), {}, 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        scenario = scenario_pb2.Scenario.FromString(data[position + 12 : position + 12 + length])
        scenarios[scenario.scenario_id] = scenario
        position += length + 16
    return scenarios


def to_proto(scenario_id: str, object_ids: np.ndarray, states: np.ndarray):
    """Rollouts [R, N, T, 4] as the official message."""
    joint_scenes = []
    for joint in states:
        trajectories = [
            sim_agents_submission_pb2.SimulatedTrajectory(
                object_id=int(object_id), center_x=s[:, 0], center_y=s[:, 1], center_z=s[:, 2],
                heading=s[:, 3],
            )
            for object_id, s in zip(object_ids, joint, strict=True)
        ]  # fmt: skip
        joint_scenes.append(
            sim_agents_submission_pb2.JointScene(simulated_trajectories=trajectories)
        )
    return sim_agents_submission_pb2.ScenarioRollouts(
        scenario_id=scenario_id, joint_scenes=joint_scenes
    )


def as_dict(message) -> dict:
    return {field.name: value for field, value in message.ListFields()}


def main(year: str) -> None:
    config = text_format.Parse(
        (Path(metrics.__file__).parent / CONFIG[year]).read_text(),
        sim_agents_metrics_pb2.SimAgentMetricsConfig(),
    )
    scenarios = read_scenarios()
    for path in sorted(HERE.glob("*.npz")):
        bundle = np.load(path)
        scenario_id = str(bundle["scenario_id"])
        rollouts = to_proto(scenario_id, bundle["object_ids"], bundle["states"])
        result = metrics.compute_scenario_metrics_for_bundle(
            config, scenarios[scenario_id], rollouts
        )
        buckets = metrics.aggregate_metrics_to_buckets(config, result)
        # A proto leaves out fields that were not set; a zero that was set is listed.
        recorded = {
            "release": year,
            "scenario_id": scenario_id,
            "metrics": as_dict(result),
            "buckets": as_dict(buckets),
        }
        path.with_suffix(f".{year}.json").write_text(json.dumps(recorded, indent=1) + "\n")
        print(f"{path.stem} {year}: {result.metametric:.6f}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
