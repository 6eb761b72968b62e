"""`wosac validate`: every fault of a submission is told, and sound ones are left in peace."""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import json
import re
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from rollouts_examples import same
from submission_examples import METADATA, replaced, some_scenes, straight_on, write_scenes

from wosac_toolkit.challenge import CHALLENGES, SCENARIO_GEN, Challenge
from wosac_toolkit.cli.group import LazyGroup
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io import submission
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.submission import (
    Misfit,
    SubmissionMetadata,
    decode_scenario_rollouts,
    encode_metadata,
    encode_scenario_rollouts,
    salvage_scenario_rollouts,
)
from wosac_toolkit.io.wire import encode_block
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Scenario
from wosac_toolkit.submission import archive, check
from wosac_toolkit.submission.check import Checked, check_submission
from wosac_toolkit.submission.findings import ERRORS, WARNINGS, severity
from wosac_toolkit.submission.metadata import check_metadata
from wosac_toolkit.submission.scene import check_scene
from wosac_toolkit.validation import Finding

NAMES = [f"submission.binproto-{i:05d}-of-00002" for i in range(2)]


@pytest.fixture(scope="module")
def scenes(make_scenario: Callable[..., Scenario]) -> list[Scenario]:
    return some_scenes(make_scenario)


@pytest.fixture(scope="module")
def scenes_dir(scenes: list[Scenario], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), scenes)


@pytest.fixture(scope="module")
def good(scenes: list[Scenario]) -> list[Rollouts]:
    return [straight_on(scenario) for scenario in scenes]


def shard(*rollouts: Rollouts | bytes, metadata: SubmissionMetadata | None = METADATA) -> bytes:
    """A serialized submission of rollouts or of messages."""
    messages = [
        one if isinstance(one, bytes) else encode_scenario_rollouts(one) for one in rollouts
    ]
    tail = b"" if metadata is None else encode_metadata(metadata)
    return b"".join(encode_block(1, message) for message in messages) + tail


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


def tar(*members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as out:
        for name, data in members:
            info = member(name) if isinstance(name, str) else name
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def whole(good: list[Rollouts]) -> bytes:
    return tar((NAMES[0], shard(*good[:2])), (NAMES[1], shard(good[2])))


def checked(path: Path, scenes: Path | None, **options: Any) -> tuple[list[Finding], Checked]:
    found: list[Finding] = []
    outcome = check_submission(path, scenes, found.append, workers=1, **options)
    return found, outcome


@pytest.fixture
def findings(tmp_path: Path, scenes_dir: Path) -> Callable[[bytes], list[Finding]]:
    """The findings about a tar archive of these bytes."""

    def of(data: bytes, name: str = "submission.tar.gz") -> list[Finding]:
        path = tmp_path / name
        path.write_bytes(gzip.compress(data, 1))
        return checked(path, scenes_dir)[0]

    return of


def of_size(n_rollouts: int, n_steps: int) -> Challenge:
    """A challenge that wants little."""
    return dataclasses.replace(CHALLENGES["2025"], n_rollouts=n_rollouts, n_steps=n_steps)


def codes(found: list[Finding]) -> list[str]:
    return [finding.code for finding in found]


# --------------------------------------------------------------------------------------------------
# Sound submissions


def test_a_sound_submission_has_no_findings(
    tmp_path: Path, scenes_dir: Path, good: list[Rollouts]
) -> None:
    path = tmp_path / "submission.tar.gz"
    path.write_bytes(gzip.compress(whole(good)))
    found, outcome = checked(path, scenes_dir, split="val")
    assert found == []
    assert (outcome.n_expected, outcome.n_scenarios, outcome.n_shards) == (3, 3, 2)
    assert outcome.metadata == METADATA
    assert outcome.n_bytes == path.stat().st_size


def test_scenes_of_the_test_split_have_no_future(
    tmp_path: Path, make_scenario: Callable[..., Scenario], good: list[Rollouts], scenes_dir: Path
) -> None:
    testing = write_scenes(tmp_path / "testing", some_scenes(make_scenario, n_steps=11))
    (tmp_path / "validation").symlink_to(scenes_dir)
    path = tmp_path / "submission.tar.gz"
    path.write_bytes(gzip.compress(whole(good)))
    assert checked(path, testing, split="test")[0] == []
    # The folder that holds both is enough, and the wrong one is noticed.
    assert checked(path, tmp_path, split="test")[0] == []
    for split, folder in (("val", testing), ("test", scenes_dir)):
        with pytest.raises(WosacError, match=f"not the scenes of --split {split}: scenario a0"):
            checked(path, folder, split=split)


def test_folders_shards_and_other_formats(
    tmp_path: Path, scenes_dir: Path, good: list[Rollouts]
) -> None:
    shards, singles = tmp_path / "shards", tmp_path / "singles"
    shards.mkdir()
    singles.mkdir()
    for name, rollouts in zip(NAMES, (good[:2], good[2:]), strict=True):
        (shards / name).write_bytes(shard(*rollouts))
    for one in good:
        write_npz(singles, one)
    for path in (shards, singles, f"{singles}/*.npz"):
        found, outcome = checked(Path(path), scenes_dir)
        assert found == []
        assert outcome.n_scenarios == 3
    assert codes(checked(shards / NAMES[1], scenes_dir)[0]) == [
        "shard_numbers",
        "no_rollouts",
        "no_rollouts",
    ]


def test_without_scenes_all_but_objects_and_coverage_is_checked(
    tmp_path: Path, good: list[Rollouts]
) -> None:
    states = good[0].states.copy()
    states[3, 1, 7, 2] = np.nan
    other = dataclasses.replace(good[1], scenario_id="of another split")
    path = tmp_path / "submission.tar.gz"
    short = replaced(good[2], good[2].states[:31, :, :79])
    path.write_bytes(
        gzip.compress(
            tar((NAMES[0], shard(replaced(good[0], states), other)), (NAMES[1], shard(short)))
        )
    )
    found, outcome = checked(path, None)
    assert codes(found) == ["non_finite", "rollout_count", "step_count"]
    assert (found[0].rollout, found[0].object_id) == (3, 11)
    assert outcome.n_expected is None


def test_findings_are_the_same_for_any_number_of_workers(
    tmp_path: Path, scenes_dir: Path, good: list[Rollouts]
) -> None:
    path = tmp_path / "submission.tar.gz"
    bad = [replaced(one, one.states[:, :, :79] * np.float32(np.nan)) for one in good]
    path.write_bytes(gzip.compress(whole(bad)))
    found: list[Finding] = []
    outcome = check_submission(path, scenes_dir, found.append, workers=2)
    assert (found, outcome) == checked(path, scenes_dir)
    assert len({finding.scenario_id for finding in found}) == 3


# --------------------------------------------------------------------------------------------------
# Rollouts of one scene


def spoilt(rollouts: Rollouts, change: Callable[[np.ndarray], object]) -> Rollouts:
    states = rollouts.states.copy()
    change(states)
    return replaced(rollouts, states)


def put(index: Any, value: float) -> Callable[[np.ndarray], object]:
    return lambda states: states.__setitem__(index, value)


def add(index: Any, value: float) -> Callable[[np.ndarray], object]:
    return lambda states: states.__setitem__(index, states[index] + np.float32(value))


@pytest.mark.parametrize(
    ("change", "code", "rollout", "object_id", "said"),
    [
        (put((4, 1, 9, 0), np.nan), "non_finite", 4, 11, "x is nan at step 9"),
        (add((5, 2, slice(40, None), 0), 21), "jump", 5, 12, r"steps 39 and 40"),
        (add((5, 2, slice(None), 1), 21), "jump", 5, 12, "the current state and step 0"),
        (add((31, 0, slice(60, None), 2), 3), "height_jump", 31, 10, "3 m in 0.1 s, .*59 and 60"),
        (add((0, 0, slice(None), 0), 1e5), "far_away", 0, 10, r"1e\+05 m away"),
        (add((slice(2, 5), 1, slice(None), 1), -2e3), "far_away", 2, 11, r"\(3 of 32 rollouts\)"),
        (put((1, 2, 3, 0), 3e38), "far_away", 1, 12, "away"),
        (put((7, 1, slice(None), 3), -90), "heading_range", 7, 11, "degrees"),
        (lambda s: s.__setitem__(8, s[3]), "identical_rollouts", 8, None, "1 of 32 .* rollout 3"),
        (lambda s: s.__setitem__(slice(None), s[0]), "identical_rollouts", 1, None, "31 of 32"),
    ],
)
def test_values_that_nobody_meant(
    scenes: list[Scenario],
    good: list[Rollouts],
    change: Callable[[np.ndarray], object],
    code: str,
    rollout: int,
    object_id: int | None,
    said: str,
) -> None:
    (finding,) = check_scene(spoilt(good[1], change), scenes[1], file="f")
    assert (finding.code, finding.rollout, finding.object_id) == (code, rollout, object_id)
    assert (finding.scenario_id, finding.file) == ("b1", "f")
    assert re.search(said, finding.what)


def test_a_slow_climb_is_told_by_its_height(scenes: list[Scenario], good: list[Rollouts]) -> None:
    states = good[1].states.copy()
    states[2, 1, :, 2] += np.linspace(0, 30, 80, dtype=np.float32)
    (finding,) = check_scene(replaced(good[1], states), scenes[1])
    assert (finding.code, finding.rollout, finding.object_id) == ("height", 2, 11)


def test_what_road_users_do_is_not_told(scenes: list[Scenario], good: list[Rollouts]) -> None:
    states = good[1].states.copy()
    states[0, 0, :, 0] += 8 * np.arange(80)  # 288 km/h more
    states[1, 0, 40:, 1] += 19  # out of sight for a while
    states[2, 0, :, 2] += np.linspace(0, 24, 80)
    states[3, 0, :, 3] = np.linspace(0, 24, 80)
    assert check_scene(replaced(good[1], states), scenes[1]) == []


def brute_force(rollouts: Rollouts, scenario: Scenario) -> set[tuple[str, int, int]]:
    """Code, first rollout and object of each finding about values, step by step."""
    now = scenario.current_time_index
    found: dict[tuple[str, int], int] = {}
    for r in reversed(range(rollouts.n_rollouts)):
        for i, object_id in enumerate(rollouts.object_ids.tolist()):
            row = scenario.tracks.object_ids.tolist().index(object_id)
            start = scenario.tracks.position[row, now]
            path = [start, *rollouts.states[r, i, :, :3].astype(float)]
            kinds = set()
            if max(np.hypot(*(p - start)[:2]) for p in path) > 1000:
                kinds = {"far_away"}
            else:
                for before, after in itertools.pairwise(path):
                    kinds |= {"jump"} if np.hypot(*(after - before)[:2]) > 20 else set()
                    kinds |= {"height_jump"} if abs(after[2] - before[2]) > 2 else set()
                kinds |= {"height"} if max(abs(p[2] - start[2]) for p in path) > 25 else set()
            kinds |= {"heading_range"} if np.abs(rollouts.states[r, i, :, 3]).max() > 25 else set()
            found.update({(kind, object_id): r for kind in kinds})
    return {(kind, r, object_id) for (kind, object_id), r in found.items()}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1.0, 10.0, 30.0, 900.0, 3000.0]))
def test_against_a_plain_loop(
    make_scenario: Callable[..., Scenario], seed: int, scale: float
) -> None:
    scenario = make_scenario(n_tracks=4)
    rng = np.random.default_rng(seed)
    states = straight_on(scenario).states[:3, :, :6].copy()
    chosen = rng.random((3, 4, 1, 4)) < 0.2
    states += np.where(chosen, rng.normal(0, scale, states.shape) * [1, 1, 0.1, 0.1], 0)
    rollouts = Rollouts("scene", scenario.tracks.object_ids, states.astype(np.float32))
    found = check_scene(rollouts, scenario, of_size(3, 6))
    assert {(f.code, f.rollout, f.object_id) for f in found} == brute_force(rollouts, scenario)


# Scenario generation


def generated(scenario: Scenario) -> Rollouts:
    """32 rollouts of the whole record, 200 m beside the log, with sizes and types."""
    rollouts = straight_on(scenario)
    shape = 32, len(rollouts.object_ids), 91
    states = np.pad(rollouts.states, ((0, 0), (0, 0), (0, 11), (0, 0)), mode="edge")
    states[..., 1] += 200
    return Rollouts(
        scenario.scenario_id, rollouts.object_ids, states,
        sizes=np.full((*shape, 3), 2, np.float32), object_types=np.ones(shape[:2], np.int8),
    )  # fmt: skip


def test_a_generated_scene_begins_where_its_simulator_wants(scenes: list[Scenario]) -> None:
    assert check_scene(generated(scenes[1]), scenes[1], SCENARIO_GEN) == []
    assert check_scene(generated(scenes[1]), None, SCENARIO_GEN) == []


@pytest.mark.parametrize(
    ("change", "code", "rollout", "object_id", "said"),
    [
        (lambda r: {"sizes": None}, "no_sizes", None, None, "length, width and height"),
        (
            lambda r: {"sizes": r.sizes - np.float32([0, 2.5, 0])},
            "bad_size", 0, 10, "width is -0.5 at step 0",
        ),
        (
            lambda r: {"states": r.states[:, :, :80], "sizes": r.sizes[:, :, :80]},
            "step_count", None, None, "its history too",
        ),
        (
            lambda r: {"states": r.states + np.float32([2000, 0, 0, 0])},
            "far_away", 0, 10, "place at the current step",
        ),
        (
            lambda r: {"states": r.states + np.float32([0, 0, 30, 0])},
            "height", 0, 10, "30 m above",
        ),
        (
            lambda r: {"states": r.states + np.float32(30) * (np.arange(91) > 3)[:, None]},
            "jump", 0, 10, "between steps 3 and 4",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_scene", [True, False])
def test_what_scenario_generation_wants(
    scenes: list[Scenario],
    change: Callable[[Rollouts], dict[str, np.ndarray | None]],
    code: str,
    rollout: int | None,
    object_id: int | None,
    said: str,
    with_scene: bool,
) -> None:
    rollouts = generated(scenes[1])
    spoilt = dataclasses.replace(rollouts, **change(rollouts))
    found = check_scene(spoilt, scenes[1] if with_scene else None, SCENARIO_GEN)
    if not with_scene and code in ("far_away", "height"):  # Nobody knows where the scene is.
        assert found == []
        return
    first = next(finding for finding in found if finding.code == code)
    assert (first.rollout, first.object_id) == (rollout, object_id)
    assert said in first.what


def test_a_submission_of_scenario_generation(
    tmp_path: Path, scenes: list[Scenario], scenes_dir: Path
) -> None:
    path = tmp_path / "submission.tar.gz"
    path.write_bytes(gzip.compress(whole([generated(scenario) for scenario in scenes]), 1))
    assert checked(path, scenes_dir, challenge="scenario_gen_2025")[0] == []
    (first, *_) = checked(path, scenes_dir)[0]
    assert first.code == "step_count"
    assert "scenario_gen_2025" in first.what


def test_sizes_are_salvaged_too(scenes: list[Scenario]) -> None:
    """An object that is not in a joint scene does not hide that the others have sizes."""
    rollouts = generated(scenes[2])
    assert rollouts.sizes is not None
    rollouts = dataclasses.replace(
        rollouts,
        sizes=rollouts.sizes * np.arange(1, 5, dtype=np.float32)[:, None, None],
        object_types=np.tile(np.arange(1, 5, dtype=np.int8), (32, 1)),
    )
    head = encode_block(1, rollouts.scenario_id.encode())
    pieces = [head]
    for r in range(32):
        one = rollouts.between(r, r + 1)
        kept = without_first(one) if r == 4 else one
        pieces.append(encode_scenario_rollouts(kept).removeprefix(head))
    salvaged, misfits = salvage_scenario_rollouts(b"".join(pieces), where="f")
    assert misfits == [Misfit(10, "absent", (4,))]
    assert same(salvaged, without_first(rollouts))
    (finding,) = check_scene(salvaged, scenes[2], SCENARIO_GEN, misfits=misfits)
    assert (finding.code, finding.rollout, finding.object_id) == ("missing_object", 4, 10)


def test_objects_without_sizes_are_named_if_others_have_theirs(
    scenes: list[Scenario], scenes_dir: Path, tmp_path: Path
) -> None:
    """Object 10 has none anywhere, 12 a width alone in rollout 5; one of 13 is spoilt."""
    rollouts = generated(scenes[2])
    assert rollouts.sizes is not None
    rollouts.sizes[7, 3, 20, 2] = -1.0
    plain = dataclasses.replace(rollouts, sizes=None, object_types=None)
    bare = joint_scenes(plain)
    boxed = [
        [
            one
            + b"".join(encode_block(n, size[:, k].tobytes()) for n, k in ((8, 0), (7, 1), (9, 2)))
            for one, size in zip(bare[r], rollouts.sizes[r], strict=True)
        ]
        for r in range(32)
    ]
    read = decode_scenario_rollouts(message(boxed, "c2"), where="f")
    assert same(read, dataclasses.replace(rollouts, object_types=None))
    for r in range(32):
        boxed[r][0] = bare[r][0]
    boxed[5][2] = bare[5][2] + encode_block(7, rollouts.sizes[5, 2, :, 1].tobytes())
    data = message(boxed, "c2")
    assert decode_scenario_rollouts(data, where="f").sizes is None
    _, misfits = salvage_scenario_rollouts(data, where="f")
    assert misfits == []  # Sim Agents has no use for sizes.
    salvaged, misfits = salvage_scenario_rollouts(data, where="f", with_sizes=True)
    assert misfits == [Misfit(10, "unsized", tuple(range(32))), Misfit(12, "unsized", (5,))]
    assert salvaged.object_ids.tolist() == [11, 13]
    path = tmp_path / "submission.tar.gz"

    def found(of_c2: bytes) -> list[Finding]:
        shards = shard(*map(generated, scenes[:2])), shard(of_c2)
        path.write_bytes(gzip.compress(tar(*zip(NAMES, shards, strict=True)), 1))
        return checked(path, scenes_dir, challenge="scenario_gen_2025")[0]

    partly = found(data)
    assert [(f.code, f.rollout, f.object_id) for f in partly] == [
        ("bad_size", 7, 13),
        ("no_sizes", 0, 10),
        ("no_sizes", 5, 12),
    ]
    assert partly[2].what.endswith("1 of 32 rollouts (5)")
    (finding,) = found(message(bare, "c2"))
    assert (finding.code, finding.scenario_id, finding.object_id) == ("no_sizes", "c2", None)


def without_first(rollouts: Rollouts) -> Rollouts:
    """The same without its first object."""
    arrays = {name: getattr(rollouts, name)[:, 1:] for name in ("states", "sizes", "object_types")}
    return Rollouts(rollouts.scenario_id, rollouts.object_ids[1:], **arrays)


# Joint scenes that do not agree


def joint_scenes(rollouts: Rollouts) -> list[list[bytes]]:
    """The trajectories of each joint scene, serialized."""
    return [
        [
            b"".join(
                encode_block(number, one.states[0, i, :, number - 2].tobytes())
                for number in (2, 3, 4, 5)
            )
            + b"\x30"
            + bytes([int(object_id)])
            for i, object_id in enumerate(rollouts.object_ids)
        ]
        for one in (replaced(rollouts, states[None]) for states in rollouts.states)
    ]


def message(scenes: list[list[bytes]], scenario_id: str) -> bytes:
    return encode_block(1, scenario_id.encode()) + b"".join(
        encode_block(2, b"".join(encode_block(1, one) for one in scene)) for scene in scenes
    )


def test_what_is_salvaged_of_a_sound_message_is_all_of_it(good: list[Rollouts]) -> None:
    data = encode_scenario_rollouts(good[2])
    rollouts, misfits = salvage_scenario_rollouts(data, where="f")
    expected = decode_scenario_rollouts(data, where="f")
    assert misfits == []
    assert rollouts.object_ids.tolist() == expected.object_ids.tolist()
    assert np.array_equal(rollouts.states, expected.states)


def test_joint_scenes_that_do_not_agree_are_told_object_by_object(
    findings: Callable[[bytes], list[Finding]], good: list[Rollouts]
) -> None:
    rollouts = spoilt(good[2], put((30, 3, 5, 1), np.inf))
    scenes = joint_scenes(rollouts)
    ten, eleven, twelve, thirteen = scenes[0]
    for rollout in (4, 9):
        del scenes[rollout][0]
    scenes[6].append(scenes[6][1])
    scenes[8][2] = twelve.replace(encode_block(5, rollouts.states[0, 2, :, 3].tobytes()), b"")
    scenes[11].append(ten[:-1] + bytes([99]))
    broken = message(scenes, "c2")
    salvaged, misfits = salvage_scenario_rollouts(broken, where="f")
    assert misfits == [
        Misfit(10, "absent", (4, 9)),
        Misfit(11, "repeated", (6,)),
        Misfit(12, "ragged", (8,)),
        Misfit(99, "absent", tuple(r for r in range(32) if r != 11)),
    ]
    assert salvaged.object_ids.tolist() == [13]
    assert np.array_equal(salvaged.states[:, 0], rollouts.states[:, 3])
    found = findings(tar((NAMES[0], shard(*good[:2])), (NAMES[1], shard(broken))))
    assert [(f.code, f.rollout, f.object_id) for f in found] == [
        ("non_finite", 30, 13),
        ("missing_object", 4, 10),
        ("duplicate_object", 6, 11),
        ("step_count", 8, 12),
        ("unknown_object", None, 99),
    ]
    assert "in 2 of 32 rollouts (4, 9)" in found[1].what
    assert eleven != thirteen


def test_a_trajectory_of_another_length(
    findings: Callable[[bytes], list[Finding]], good: list[Rollouts]
) -> None:
    scenes = joint_scenes(good[1])
    scenes[3][1] = joint_scenes(replaced(good[1], good[1].states[:, :, :79]))[3][1]
    found = findings(
        tar((NAMES[0], shard(good[0], message(scenes, "b1"))), (NAMES[1], shard(good[2])))
    )
    assert [(f.code, f.rollout, f.object_id) for f in found] == [("step_count", 3, 11)]


# --------------------------------------------------------------------------------------------------
# Coverage


def test_coverage_and_duplicates(
    findings: Callable[[bytes], list[Finding]], good: list[Rollouts]
) -> None:
    stranger = dataclasses.replace(good[0], scenario_id="stranger")
    found = findings(tar((NAMES[0], shard(good[0], stranger)), (NAMES[1], shard(good[1], good[0]))))
    assert [(f.code, f.scenario_id) for f in found] == [
        ("no_scenario", "stranger"),
        ("duplicate_rollouts", "a0"),
        ("no_rollouts", "c2"),
    ]
    assert found[1].file.endswith(f"{NAMES[1]}, message at byte {_offset(good[1])}")
    assert f"member {NAMES[0]}, message at byte" in found[1].what


def _offset(before: Rollouts) -> int:
    data = shard(before, before, metadata=None)
    return [
        part.offset for part in submission.iter_parts(data, where="") if hasattr(part, "offset")
    ][1]


def test_objects_of_the_scene(
    findings: Callable[[bytes], list[Finding]], good: list[Rollouts]
) -> None:
    wrong = dataclasses.replace(good[0], object_ids=np.array([10, 77]))
    found = findings(tar((NAMES[0], shard(wrong, good[1])), (NAMES[1], shard(good[2]))))
    assert [(f.code, f.object_id) for f in found] == [
        ("unknown_object", 77),
        ("missing_object", 11),
    ]
    assert f"submission.tar.gz, member {NAMES[0]}, message at byte" in found[0].file


def test_scene_files_that_are_not_all_there(
    tmp_path: Path, scenes: list[Scenario], good: list[Rollouts], scenes_dir: Path
) -> None:
    (file,) = scenes_dir.iterdir()
    (tmp_path / "testing.tfrecord-00003-of-00150").write_bytes(file.read_bytes())
    path = tmp_path / "submission.tar.gz"
    path.write_bytes(gzip.compress(whole(good)))
    (finding,) = checked(path, tmp_path)[0]
    assert finding.code == "partial_scenes"
    assert "only 1 of 150 shards" in finding.what
    assert severity(finding) == "warning"


# --------------------------------------------------------------------------------------------------
# Metadata


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"submission_type": 0}, "metadata_missing", "submission_type"),
        ({"submission_type": 2}, "metadata_invalid", "submission_type is 2"),
        ({"account_name": ""}, "metadata_missing", "account_name"),
        ({"account_name": "me"}, "metadata_invalid", "'me' is no e-mail"),
        ({"account_name": "me@home"}, "metadata_invalid", "no e-mail"),
        ({"unique_method_name": " "}, "metadata_missing", "unique_method_name"),
        ({"unique_method_name": "a\nb"}, "metadata_invalid", "unique_method_name"),
        ({"unique_method_name": "x" * 41}, "metadata_advice", "41 characters"),
        ({"authors": ()}, "metadata_missing", "authors"),
        ({"authors": ("", " ")}, "metadata_missing", "authors"),
        ({"affiliation": ""}, "metadata_advice", "affiliation"),
        ({"description": ""}, "metadata_advice", "description"),
        ({"method_link": ""}, "metadata_advice", "method_link"),
        ({"uses_lidar_data": None}, "metadata_missing", "uses_lidar_data"),
        ({"uses_camera_data": None}, "metadata_missing", "uses_camera_data"),
        ({"uses_public_model_pretraining": None}, "metadata_missing", "uses_public_model"),
        ({"uses_public_model_pretraining": True}, "metadata_advice", "public_model_names is empty"),
        ({"public_model_names": ("llama",)}, "metadata_advice", "llama"),
        ({"num_model_parameters": ""}, "metadata_missing", "num_model_parameters"),
        ({"num_model_parameters": "24"}, "metadata_advice", "no suffix"),
        ({"num_model_parameters": "7m"}, "metadata_invalid", "'7m'"),
        ({"num_model_parameters": "7.2M"}, "metadata_invalid", "'7.2M'"),
        (
            {"num_model_parameters": "\N{FULLWIDTH DIGIT SEVEN}M"},
            "metadata_invalid",
            "whole number",
        ),
        (
            {"acknowledge_complies_with_closed_loop_requirement": None},
            "metadata_missing",
            "closed loop",
        ),
        (
            {"acknowledge_complies_with_closed_loop_requirement": False},
            "metadata_missing",
            "closed loop",
        ),
    ],
)
def test_metadata_against_the_rules(fields: dict[str, Any], code: str, said: str) -> None:
    (finding,) = check_metadata(dataclasses.replace(METADATA, **fields), "here")
    assert (finding.code, finding.file) == (code, "here")
    assert said in finding.what


def test_metadata_that_keep_the_rules() -> None:
    for number in ("200K", "7M", "1B", "2T"):
        assert check_metadata(dataclasses.replace(METADATA, num_model_parameters=number)) == []
    pretrained = dataclasses.replace(
        METADATA, uses_public_model_pretraining=True, public_model_names=("llama",)
    )
    assert check_metadata(pretrained) == []


def test_metadata_must_agree_between_shards(
    findings: Callable[[bytes], list[Finding]], good: list[Rollouts]
) -> None:
    other = dataclasses.replace(METADATA, affiliation="elsewhere", authors=("B",))
    found = findings(tar((NAMES[0], shard(*good[:2])), (NAMES[1], shard(good[2], metadata=other))))
    assert codes(found) == ["metadata_differs"]
    assert "affiliation, authors" in found[0].what


def test_a_shard_without_metadata(
    findings: Callable[[bytes], list[Finding]], good: list[Rollouts]
) -> None:
    found = findings(tar((NAMES[0], shard(*good, metadata=None)), (NAMES[1], shard())))
    assert set(codes(found)) == {"metadata_missing", "metadata_advice", "metadata_differs"}
    assert all(f.file.endswith(NAMES[0]) for f in found if f.code == "metadata_missing")


# --------------------------------------------------------------------------------------------------
# Layout


def linked(name: str, kind: bytes) -> tarfile.TarInfo:
    info = member(name, kind)
    info.linkname = "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        ((".DS_Store", b"?"), "stray_member", "no shard by its name"),
        ((f"._{NAMES[0]}", b"?"), "stray_member", "macOS"),
        (("README.md", b"?"), "stray_member", "README.md"),
        (("x.binproto-0-of-2", b"?"), "stray_member", "no shard by its name"),
        (("../x.binproto", b"?"), "unsafe_member", "out of the archive"),
        (("a/../../x.binproto", b"?"), "unsafe_member", "out of the archive"),
        (("/tmp/x.binproto", b"?"), "unsafe_member", "out of the archive"),
        ((linked("x.binproto", tarfile.SYMTYPE), b""), "not_a_file", "link"),
        ((linked("x.binproto", tarfile.LNKTYPE), b""), "not_a_file", "link"),
        ((member("x.binproto", tarfile.CHRTYPE), b""), "not_a_file", "device"),
        ((member("x.binproto", tarfile.FIFOTYPE), b""), "not_a_file", "device"),
        ((member("folder", tarfile.DIRTYPE), b""), "nested_member", "a folder"),
        (("y" * 300 + ".binproto", b"?"), "stray_member", "characters"),
    ],
)
def test_members_that_do_not_belong_there(
    findings: Callable[[bytes], list[Finding]],
    good: list[Rollouts],
    extra: tuple[str | tarfile.TarInfo, bytes],
    code: str,
    said: str,
) -> None:
    found = findings(tar((NAMES[0], shard(*good[:2])), extra, (NAMES[1], shard(good[2]))))
    assert codes(found) == [code]
    assert said in f"{found[0].file}: {found[0].what}"


def test_members_in_a_folder_are_read_all_the_same(
    findings: Callable[[bytes], list[Finding]], good: list[Rollouts]
) -> None:
    found = findings(tar((f"x/{NAMES[0]}", shard(*good[:2])), (f"./{NAMES[1]}", shard(good[2]))))
    assert codes(found) == ["nested_member"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a.binproto-00000-of-00003", "a.binproto-00002-of-00003"), "a.binproto-00001-of-00003"),
        (("a.binproto-00001-of-00002", "a.binproto-00002-of-00002"), "shard 2 of 2"),
        (("a.binproto-00000-of-00001", "b.binproto-00000-of-00001"), "2 series"),
    ],
)
def test_shards_that_are_numbered_oddly(
    findings: Callable[[bytes], list[Finding]],
    good: list[Rollouts],
    names: tuple[str, str],
    said: str,
) -> None:
    found = findings(tar((names[0], shard(*good[:2])), (names[1], shard(good[2]))))
    assert set(codes(found)) == {"shard_numbers"}
    assert said in found[-1].what


def test_shards_need_no_numbers(
    findings: Callable[[bytes], list[Finding]], good: list[Rollouts]
) -> None:
    assert findings(tar(("all.binproto", shard(*good)))) == []


def test_a_member_twice(findings: Callable[[bytes], list[Finding]], good: list[Rollouts]) -> None:
    found = findings(
        tar((NAMES[0], shard(*good[:2])), (NAMES[1], shard()), (NAMES[1], shard(good[2])))
    )
    assert codes(found) == ["duplicate_member"]


def test_a_bare_message(findings: Callable[[bytes], list[Finding]], good: list[Rollouts]) -> None:
    bare = encode_scenario_rollouts(good[2])
    found = findings(tar((NAMES[0], shard(*good[:2])), (NAMES[1], bare)))
    assert codes(found) == ["bare_message"]


def test_a_message_without_scenario_id(
    findings: Callable[[bytes], list[Finding]], good: list[Rollouts]
) -> None:
    nameless = encode_block(2, b"")
    found = findings(tar((NAMES[0], shard(*good[:2], nameless)), (NAMES[1], shard(good[2]))))
    assert codes(found) == ["no_scenario_id"]


def test_a_damaged_shard_does_not_hide_the_next(
    findings: Callable[[bytes], list[Finding]], good: list[Rollouts]
) -> None:
    found = findings(tar((NAMES[0], shard(good[0])[:-5]), (NAMES[1], shard(*good[1:]))))
    assert codes(found) == ["damaged"]
    assert found[0].file.endswith(NAMES[0])
    # What is missing may be in what could not be read.
    assert "no_rollouts" not in codes(found)


def test_names_of_archives(tmp_path: Path, scenes_dir: Path, good: list[Rollouts]) -> None:
    data = whole(good)
    for name, content, said in (
        ("x.tar", data, "takes an archive named .tar.gz"),
        ("x.tgz", gzip.compress(data), "takes an archive named .tar.gz"),
        ("x.tar.gz", data, "is not gzipped"),
    ):
        (tmp_path / name).write_bytes(content)
        (finding,) = checked(tmp_path / name, scenes_dir)[0]
        assert finding.code == "archive_name"
        assert said in finding.what


def test_archives_that_cannot_be_read(
    tmp_path: Path, scenes_dir: Path, good: list[Rollouts]
) -> None:
    data = gzip.compress(whole(good))
    path = tmp_path / "submission.tar.gz"
    for content in (
        data[: len(data) // 2],
        data[:-9],
        data[:-8] + b"\0" * 8,  # checksum
        data + b"garbage",
        data[:1000] + b"\xff" * 50 + data[1050:],
        b"\x1f\x8b",
        b"",
        b"not an archive",
    ):
        path.write_bytes(content)
        found, _ = checked(path, scenes_dir)
        assert "damaged" in codes(found)
        assert "no_rollouts" not in codes(found)


def test_an_archive_without_shards(findings: Callable[[bytes], list[Finding]]) -> None:
    assert codes(findings(tar())) == ["no_shards"]


def test_gzip_streams_one_after_another(
    tmp_path: Path, scenes_dir: Path, good: list[Rollouts]
) -> None:
    data, path = whole(good), tmp_path / "submission.tar.gz"
    path.write_bytes(gzip.compress(data[:5000]) + gzip.compress(data[5000:]) + bytes(512))
    found, _ = checked(path, scenes_dir)
    assert codes(found) == ["gzip_members"]
    assert "2 gzip streams" in found[0].what


def test_a_gzip_bomb_takes_neither_memory_nor_time(
    tmp_path: Path, scenes_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_FREE_BYTES", 1 << 22)
    info = member(NAMES[0])
    info.size = 1 << 30
    claim = b"\x0a\xf0\xff\xff\xff\x03"  # a message of 1 GB
    path = tmp_path / "submission.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf() + claim + bytes(1 << 25), 9))
    tracemalloc.start()
    found, _ = checked(path, scenes_dir)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "damaged" in codes(found)
    assert any("expands more than" in f.what for f in found)
    assert peak < 50 << 20


def test_bounds(
    findings: Callable[[bytes], list[Finding]],
    good: list[Rollouts],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = whole(good)
    longest = max(len(encode_scenario_rollouts(one)) for one in good)
    with monkeypatch.context() as patched:
        patched.setattr(check, "MAX_MESSAGE_BYTES", longest - 1)
        assert codes(findings(data)) == ["message_too_large"]
    with monkeypatch.context() as patched:
        patched.setattr(archive, "MAX_MEMBERS", 1)
        assert codes(findings(data)) == ["damaged"]
    with monkeypatch.context() as patched:
        patched.setattr(submission, "MAX_MESSAGE_BYTES", longest - 1)
        assert set(codes(findings(data))) >= {"shard_too_large"}
    with monkeypatch.context() as patched:
        patched.setattr(check, "USUAL_ARCHIVE_BYTES", 100)
        assert codes(findings(data)) == ["archive_size"]
    with monkeypatch.context() as patched:
        patched.setattr(check, "MAX_SCENARIOS", 2)
        with pytest.raises(WosacError, match="more than 2 scenarios"):
            findings(data)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_does_more_than_findings(
    tmp_path_factory: pytest.TempPathFactory,
    scenes_dir: Path,
    make_scenario: Callable[..., Scenario],
    data: st.DataObject,
) -> None:
    small = [
        replaced(one, one.states[:2, :, :3]) for one in map(straight_on, some_scenes(make_scenario))
    ]
    content = bytearray(whole(small))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "submission.tar.gz"
    path.write_bytes(gzip.compress(bytes(content), 1))
    found, _ = checked(path, scenes_dir, challenge=of_size(2, 3))
    assert "internal_error" not in codes(found)


def test_every_code_is_known(findings: Callable[[bytes], list[Finding]]) -> None:
    """Each code that the modules of this package report has a description and a severity."""
    folder = Path(check.__file__).parent
    sources = "".join(path.read_text() for path in folder.glob("*.py"))
    used = set(
        re.findall(r'(?:report\(|Finding\(|yield |code, what = |_rows\(\s*)"(\w+)"', sources)
    )
    assert used - {"not_written"} <= ERRORS.keys() | WARNINGS.keys()
    assert len(used) > 20
    assert not ERRORS.keys() & WARNINGS.keys()


# --------------------------------------------------------------------------------------------------
# The command

GROUP = LazyGroup(
    "wosac", program="wosac", commands={"validate": ("wosac_toolkit.cli.validate", "")}
)


def wosac(*args: object) -> Result:
    return CliRunner().invoke(
        GROUP, [str(arg) for arg in args], prog_name="wosac", env={"WOSAC_SCENARIOS": None}
    )


@pytest.fixture
def broken(tmp_path: Path, good: list[Rollouts]) -> Path:
    """25 unknown objects, and a warning."""
    many = Rollouts(
        "a0", np.arange(10, 37), np.repeat(good[0].states[:, :1], 27, axis=1) + np.float32(0)
    )
    names = dataclasses.replace(METADATA, affiliation="")
    path = tmp_path / "submission.tar.gz"
    path.write_bytes(gzip.compress(tar(("x.binproto", shard(many, *good[1:], metadata=names)))))
    return path


def test_the_command_limits_what_it_shows(broken: Path, scenes_dir: Path) -> None:
    result = wosac("validate", broken, "--scenarios", scenes_dir)
    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    assert lines[0] == "error unknown_object: an object that must not be simulated (25)"
    assert lines[1].endswith("scenario a0: object 12: is not in the scene")
    assert lines[21] == "  ... and 5 more"
    assert lines[22].startswith("warning metadata_advice")
    assert "scenario" not in lines[23]
    assert lines[-1].startswith(f"invalid: {broken}: 25 errors, 1 warning; 3 scenes of 3, 1 shard")


def test_the_command_in_json_has_everything(broken: Path, scenes_dir: Path) -> None:
    result = wosac("validate", broken, "--scenarios", scenes_dir, "--format", "json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert len(content["findings"]) == 26
    assert content["findings"][0] == {
        "severity": "error",
        "code": "unknown_object",
        "what": "is not in the scene",
        "scenario_id": "a0",
        "rollout": None,
        "object_id": 12,
        "file": content["findings"][0]["file"],
    }
    assert content["summary"]["counts"] == {"unknown_object": 25, "metadata_advice": 1}
    assert content["valid"] is False


def test_exit_codes(tmp_path: Path, scenes_dir: Path, good: list[Rollouts]) -> None:
    path = tmp_path / "submission.tar.gz"
    path.write_bytes(gzip.compress(whole(good)))
    sound = wosac("validate", path, "--scenarios", scenes_dir, "--format", "json")
    assert sound.exit_code == 0
    assert json.loads(sound.stdout)["findings"] == []
    path.write_bytes(gzip.compress(tar((NAMES[0], shard(*good)))))
    assert wosac("validate", path, "--scenarios", scenes_dir).exit_code == 0
    assert wosac("validate", path, "--scenarios", scenes_dir, "--strict").exit_code == 1
    assert wosac("validate", path, "--no-scenarios").exit_code == 0
    for args in (
        ("validate", path),
        ("validate", path, "--no-scenarios", "--split", "val"),
        ("validate", tmp_path / "absent.tar.gz", "--no-scenarios"),
        ("validate", path, "--scenarios", tmp_path / "absent"),
        ("validate", path, "--scenarios", scenes_dir, "--split", "test"),
    ):
        result = wosac(*args)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
