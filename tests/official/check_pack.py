"""Parse and validate a packed submission with the official package.

Runs in the oracle's environment, not in ours. Prints what was found, with the SHA-256 of each
shard, as `packed.json` records it for the scenes of this folder; ends with 1 where there are
faults.

    python check_pack.py submission.tar.gz scenes.tfrecord [more.tfrecord ...]
    python check_pack.py --challenge scenario_gen submission.tar.gz scenes.tfrecord ...
"""

import argparse
import gzip
import hashlib
import importlib.metadata
import json
import re
import struct
import sys
import tarfile
from pathlib import Path

from waymo_open_dataset.protos import scenario_pb2, sim_agents_submission_pb2
from waymo_open_dataset.utils.sim_agents import submission_specs

PACKAGE = "waymo-open-dataset-tf-2-12-0"


def read_scenarios(path: str) -> dict:
    """Scenario id -> proto, of all records of a file."""
    data, scenarios, position = Path(path).read_bytes(), {}, 0
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        scenario = scenario_pb2.Scenario.FromString(data[position + 12 : position + 12 + length])
        scenarios[scenario.scenario_id] = scenario
        position += length + 16
    return scenarios


def size_faults(rollouts, n_steps: int):
    """What the official validation of scenario generation leaves to its scorer, which crashes."""
    for joint_scene in rollouts.joint_scenes:
        for trajectory in joint_scene.simulated_trajectories:
            for field in ("width", "length", "height"):
                if len(getattr(trajectory, field)) != n_steps:
                    yield f"object {trajectory.object_id}: {field} is not of {n_steps} steps"


def faults_of(name: str, submission, challenge, scenarios: dict, seen: set) -> list:
    faults = []
    if not re.fullmatch(r".*\.binproto(-\d{5}-of-\d{5})?", name):
        faults.append(f"{name}: not the name of a shard")
    for field in submission.DESCRIPTOR.fields:
        # proto2: what the rules require is optional in the message.
        optional = field.name == "public_model_names"
        value = getattr(submission, field.name)
        repeated = field.label == field.LABEL_REPEATED
        if not optional and not (len(value) if repeated else submission.HasField(field.name)):
            faults.append(f"{name}: {field.name} is not set")
    if submission.submission_type != submission.SIM_AGENTS_SUBMISSION:
        faults.append(f"{name}: not a submission to Sim Agents")
    for rollouts in submission.scenario_rollouts:
        try:
            submission_specs.validate_scenario_rollouts(
                rollouts, scenarios[rollouts.scenario_id], challenge
            )
        except (KeyError, ValueError) as error:
            faults.append(f"{name}: {rollouts.scenario_id}: {error}")
        if challenge == submission_specs.ChallengeType.SCENARIO_GEN:
            n_steps = submission_specs.get_submission_config(challenge).n_simulation_steps
            for fault in size_faults(rollouts, n_steps):
                faults.append(f"{name}: {rollouts.scenario_id}: {fault}")
        if rollouts.scenario_id in seen:
            faults.append(f"{name}: {rollouts.scenario_id}: twice")
        seen.add(rollouts.scenario_id)
    return faults


def main(challenge_name: str, archive: str, files: list) -> int:
    challenge = submission_specs.ChallengeType(challenge_name)
    scenarios = {}
    for file in files:
        scenarios.update(read_scenarios(file))
    shards, faults, seen = {}, [], set()
    # Stream mode, which stops where a gzip stream ends.
    with tarfile.open(archive, "r|gz") as members:
        for member in members:
            data = members.extractfile(member).read()
            submission = sim_agents_submission_pb2.SimAgentsChallengeSubmission.FromString(data)
            # Ours are the bytes that the official package writes.
            if submission.SerializeToString(deterministic=True) != data:
                faults.append(f"{member.name}: the official package writes other bytes")
            faults += faults_of(member.name, submission, challenge, scenarios, seen)
            shards[member.name] = hashlib.sha256(data).hexdigest()
    faults += [f"{scenario_id} is missing" for scenario_id in scenarios if scenario_id not in seen]
    result = {
        "package": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
        "challenge": challenge.value,
        "n_scenarios": len(seen),
        "faults": faults,
        "shards": shards,
    }
    print(json.dumps(result, indent=2))
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    names = [challenge.value for challenge in submission_specs.ChallengeType]
    parser.add_argument("--challenge", choices=names, default="sim_agents")
    parser.add_argument("archive")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    sys.exit(main(arguments.challenge, arguments.archive, arguments.files))
