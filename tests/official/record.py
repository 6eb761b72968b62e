"""Score the bundles of a folder with an official release and write its results beside them.

Runs in the oracle's environment, not in ours: `make oracle` calls it once a challenge year, with
the release of that year first on PYTHONPATH.

    python record.py 2024
    python record.py 2024 ../../wosac_toolkit/recorded

Without a folder it is this one. `scenario_gen_2025` is the sister challenge, which the release of
2025 scores too; its bundles lie in `scenario_gen/`. Of those in this folder the features are
recorded as well, in `<name>.features.npz`.
"""

import dataclasses
import gzip
import json
import os
import struct
import sys
from pathlib import Path

# Without oneDNN's fused matrix products, whose last bit depends on the processor.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
# The message classes of 2023 are too old for protobuf's compiled back end.
if sys.argv[1:2] == ["2023"]:
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"

import numpy as np
from google.protobuf import text_format
from waymo_open_dataset.protos import (
    scenario_pb2,
    sim_agents_metrics_pb2,
    sim_agents_submission_pb2,
)
from waymo_open_dataset.wdl_limited.sim_agents_metrics import metrics

HERE = Path(__file__).resolve().parent
SCENARIO_GEN = "scenario_gen_2025"
CONFIG = {
    SCENARIO_GEN: "challenge_2025_scenario_gen_config.textproto",
    "2025": "challenge_2025_sim_agents_config.textproto",
    "2024": "challenge_2024_config.textproto",
    "2023": "challenge_config.textproto",
}


def read_scenarios(folder: Path) -> dict:
    """Scenario id -> proto, of all records of scenes.tfrecord.gz."""
    data, scenarios, position = gzip.decompress((folder / "scenes.tfrecord.gz").read_bytes()), {}, 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        scenario = scenario_pb2.Scenario.FromString(data[position + 12 : position + 12 + length])
        scenarios[scenario.scenario_id] = scenario
        position += length + 16
    return scenarios


def to_proto(bundle):
    """Rollouts as the official message: states [R, N, T, 4] and what else the bundle has."""
    joint_scenes = []
    for r, joint in enumerate(bundle["states"]):
        trajectories = [
            sim_agents_submission_pb2.SimulatedTrajectory(
                object_id=int(object_id), center_x=s[:, 0], center_y=s[:, 1], center_z=s[:, 2],
                heading=s[:, 3],
            )
            for object_id, s in zip(bundle["object_ids"], joint, strict=True)
        ]  # fmt: skip
        if "sizes" in bundle:
            sized = zip(trajectories, bundle["sizes"][r], bundle["object_types"][r], strict=True)
            for trajectory, size, object_type in sized:
                trajectory.length.extend(size[:, 0])
                trajectory.width.extend(size[:, 1])
                trajectory.height.extend(size[:, 2])
                trajectory.object_type = int(object_type)
        joint_scenes.append(
            sim_agents_submission_pb2.JointScene(simulated_trajectories=trajectories)
        )
    return sim_agents_submission_pb2.ScenarioRollouts(
        scenario_id=str(bundle["scenario_id"]), joint_scenes=joint_scenes
    )


def as_dict(message) -> dict:
    return {field.name: value for field, value in message.ListFields()}


def score(year: str, config, scenario, rollouts, features_file):
    """The metrics of a bundle; of scenario generation the features go to the file, if any."""
    if year != SCENARIO_GEN:
        return metrics.compute_scenario_metrics_for_bundle(config, scenario, rollouts)
    # Other releases have neither.
    from waymo_open_dataset.utils.sim_agents import submission_specs
    from waymo_open_dataset.wdl_limited.sim_agents_metrics import metric_features

    challenge = submission_specs.ChallengeType.SCENARIO_GEN
    for joint_scene in rollouts.joint_scenes:
        submission_specs.validate_joint_scene(joint_scene, scenario, challenge)
    log, sim = metric_features.compute_scenario_rollouts_features(scenario, rollouts, challenge)
    if features_file is not None:
        np.savez_compressed(
            features_file,
            **{
                f"{kind}.{field.name}": getattr(features, field.name).numpy()
                for kind, features in (("log", log), ("sim", sim))
                for field in dataclasses.fields(features)
            },
        )
    return metrics.compute_scenario_metrics_for_features_bundle(
        config, scenario.scenario_id, log, sim
    )


def main(year: str, root: Path = HERE) -> None:
    config = text_format.Parse(
        (Path(metrics.__file__).parent / CONFIG[year]).read_text(),
        sim_agents_metrics_pb2.SimAgentMetricsConfig(),
    )
    folder = root / "scenario_gen" if year == SCENARIO_GEN else root
    # In the folder of `wosac doctor` all bundles are of one scene.
    has_own = (folder / "scenes.tfrecord.gz").exists()
    scenarios = read_scenarios(folder if has_own else root)
    for path in sorted(folder.glob("*.npz")):
        if path.name.endswith(".features.npz"):
            continue
        bundle = np.load(path)
        scenario_id = str(bundle["scenario_id"])
        result = score(
            year, config, scenarios[scenario_id], to_proto(bundle),
            path.with_suffix(".features.npz") if root == HERE else None,
        )  # fmt: skip
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
    main(sys.argv[1], *(Path(folder).resolve() for folder in sys.argv[2:3]))
