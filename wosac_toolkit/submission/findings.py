"""Which findings about a submission are errors, and which only warnings.

An error is what the evaluation server refuses, or what makes a scene's score worthless. A warning
is what the server takes, but the submitter hardly meant.
"""

from __future__ import annotations

from typing import Literal

from wosac_toolkit.validation import Finding

Severity = Literal["error", "warning"]

WARNINGS = {
    "archive_size": "an archive larger than usual",
    "gzip_members": "several gzip streams one after another",
    "height": "an object that rises or falls far",
    "height_jump": "a step with a large change of height",
    "heading_range": "headings that look like degrees",
    "identical_rollouts": "rollouts that are copies of another",
    "jump": "a step too long for any road user",
    "metadata_advice": "metadata that the rules advise against",
    "nested_member": "members in folders",
    "partial_scenes": "scenario files that are not a whole split",
    "shard_numbers": "shards that are numbered with gaps or otherwise oddly",
}
"""Codes of warnings, and what they are about."""

ERRORS = {
    "archive_name": "an archive that is no .tar.gz",
    "bad_size": "sizes that are negative or not finite",
    "bare_message": "a ScenarioRollouts where a SimAgentsChallengeSubmission is expected",
    "damaged": "bytes that cannot be read",
    "duplicate_member": "two members of one name",
    "duplicate_object": "an object more than once",
    "duplicate_rollouts": "a scenario more than once",
    "far_away": "an object too far away from where it was",
    "internal_error": "a defect of this toolkit",
    "message_too_large": "rollouts of one scenario of an impossible size",
    "metadata_differs": "shards that do not agree on the metadata",
    "metadata_invalid": "metadata against the rules",
    "metadata_missing": "metadata that the rules require",
    "missing_object": "an object without trajectory",
    "no_rollouts": "a scenario without rollouts",
    "no_scenario": "rollouts of an unknown scenario",
    "no_scenario_id": "rollouts that do not say of which scenario",
    "no_shards": "a submission without shards",
    "no_sizes": "rollouts of scenario generation without the sizes of boxes",
    "non_finite": "values that are NaN or infinite",
    "not_a_file": "members that are links, devices or sparse",
    "rollout_count": "another number of rollouts",
    "shard_too_large": "a shard above the 2 GB of a protobuf message",
    "step_count": "another number of steps",
    "stray_member": "members that are no shards by their names",
    "unknown_object": "an object that must not be simulated",
    "unsafe_member": "members that would be extracted outside the folder",
    "wrong_scenario": "a file of another scenario than its name says",
}
"""Codes of errors, and what they are about."""


def severity(finding: Finding) -> Severity:
    """Whether a finding is an error; codes that are not known are."""
    return "warning" if finding.code in WARNINGS else "error"
