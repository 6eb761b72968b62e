"""Vocabularies, and what is matched to them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.numpy")

from smart_r1.cli import main  # noqa: E402
from smart_r1.map_pieces import split_polylines  # noqa: E402
from smart_r1.tokens import build as build_module  # noqa: E402
from smart_r1.tokens.build import (  # noqa: E402
    Examples,
    Sample,
    build_vocabulary,
    choose_curves,
    choose_motion,
    draw_scenes,
    examples_of,
    moving,
)
from smart_r1.tokens.k_disks import k_disks, nearest_centres  # noqa: E402
from smart_r1.tokens.map_tokens import match_curves  # noqa: E402
from smart_r1.tokens.motion import (  # noqa: E402
    TokenNoise,
    class_boxes,
    nearest_tokens,
    play_out,
    to_poses,
    tokenize,
)
from smart_r1.tokens.reconstruction import reconstruct  # noqa: E402
from smart_r1.tokens.rules import (  # noqa: E402
    RULES,
    Wheels,
    led_astray,
    piece_points,
    rule_curves,
    rule_segments,
)
from smart_r1.tokens.samples import curve_pieces, motion_segments  # noqa: E402
from smart_r1.tokens.vocabulary import (  # noqa: E402
    CLASS_SIZE,
    CLASSES,
    Vocabulary,
    corners_of_poses,
    default_vocabulary,
    load_vocabulary,
    save_poses,
    save_vocabulary,
)
from smart_r1.tracks import Motion, clean  # noqa: E402
from wosac_toolkit.errors import FormatError, WosacError  # noqa: E402
from wosac_toolkit.io.scenarios import write_scenarios  # noqa: E402
from wosac_toolkit.scenario import Scenario  # noqa: E402
from wosac_toolkit.synthetic import generate_scenarios  # noqa: E402

Array = npt.NDArray[Any]
MakeScenario = Callable[..., Scenario]

DEFAULT_FINGERPRINT = "75973a7e630e8f30"


# A small vocabulary, and oracles in plain NumPy


def small_vocabulary(n: int = 40, seed: int = 0) -> Vocabulary:
    """Tokens made from rules; the first stands still."""
    rng = np.random.default_rng(seed)
    segments = np.stack([rule_segments(rules, n, rng) for rules in RULES]).astype(np.float64)
    segments[:, 0] = 0.0
    heading = segments[..., 2:]
    poses = np.concatenate([segments[..., :2], np.cos(heading), np.sin(heading)], axis=-1)
    return Vocabulary(corners_of_poses(poses.astype(np.float32)), rule_curves(n, rng))


@pytest.fixture(scope="module")
def small() -> Vocabulary:
    return small_vocabulary()


@pytest.fixture(scope="module")
def default() -> Vocabulary:
    return default_vocabulary()


def box(x: float, y: float, heading: float, length: float, width: float) -> Array:
    """Corners [4, 2] of a box, one by one."""
    forward = np.array([np.cos(heading), np.sin(heading)])
    left = np.array([-np.sin(heading), np.cos(heading)])
    corners = [
        forward * length / 2 + left * width / 2,
        forward * length / 2 - left * width / 2,
        -forward * length / 2 - left * width / 2,
        -forward * length / 2 + left * width / 2,
    ]
    return np.array([x, y]) + np.array(corners)


def placed(corners: Array, x: float, y: float, heading: float) -> Array:
    """Boxes [..., 4, 2] out of the frame of a pose, in float64."""
    cos, sin = np.cos(heading), np.sin(heading)
    turned: Array = corners.astype(np.float64) @ np.array([[cos, sin], [-sin, cos]])
    return turned + np.array([x, y])


def turns_apart(a: float, b: float) -> float:
    """The angle between two headings."""
    return float(abs(np.angle(np.exp(1j * (float(a) - float(b))))))


def random_tracks(n: int, seed: int) -> tuple[Array, Array, Array, Array]:
    """Positions [n, 19, 2], headings, validity and classes of tracks that wander, with gaps."""
    rng = np.random.default_rng(seed)
    heading = rng.uniform(-4, 4, (n, 1)) + np.cumsum(rng.normal(0, 0.2, (n, 19)), axis=1)
    way = rng.uniform(0, 12, (n, 1)) * 0.5 + rng.normal(0, 0.2, (n, 19))
    steps = way[..., None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    position = rng.uniform(-80, 80, (n, 1, 2)) + np.cumsum(steps, axis=1)
    valid = rng.random((n, 19)) < 0.85
    position[~valid], heading[~valid] = 0.0, 0.0
    return (
        position.astype(np.float32),
        heading.astype(np.float32),
        valid,
        rng.integers(0, 3, n),
    )


def tensors(*arrays: Array) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def played(index: Array, start: Array, heading: Array, classes: Array, motion: Array) -> Any:
    """Positions [A, 19, 2] and headings [A, 19] of agents that follow tokens [A, 18]."""
    at, facing, group, tokens, table = tensors(start, heading, classes, index, motion)
    positions, headings = [at], [facing]
    for k in range(18):
        way, ways = play_out(tokens[:, k], positions[-1], headings[-1], group, table)
        positions.append(way[:, -1])
        headings.append(ways[:, -1])
    return torch.stack(positions, dim=1), torch.stack(headings, dim=1)


# Files of vocabularies


def test_the_default_vocabulary_is_the_one_that_was_made(default: Vocabulary) -> None:
    assert default.motion.shape == (3, 2048, 6, 4, 2)
    assert default.curves.shape == (1024, 11, 2)
    assert default.fingerprint() == DEFAULT_FINGERPRINT


def test_the_first_default_token_of_each_class_stands_still(default: Vocabulary) -> None:
    assert (default.motion[:, 0] == default.motion[:, 0, :1]).all()


def test_default_tokens_are_rigid_boxes_of_the_size_of_their_class(default: Vocabulary) -> None:
    left_front, right_front, right_back, left_back = np.moveaxis(default.motion, -2, 0)
    for length in (left_front - left_back, right_front - right_back):
        expected = np.broadcast_to(CLASS_SIZE[:, 0, None, None], (3, 2048, 6))
        np.testing.assert_allclose(np.linalg.norm(length, axis=-1), expected, atol=1e-5)
    for width in (left_front - right_front, left_back - right_back):
        expected = np.broadcast_to(CLASS_SIZE[:, 1, None, None], (3, 2048, 6))
        np.testing.assert_allclose(np.linalg.norm(width, axis=-1), expected, atol=1e-5)


def test_default_tokens_and_curves_are_all_different(default: Vocabulary) -> None:
    for tokens in default.motion:
        assert len(np.unique(tokens.reshape(2048, -1), axis=0)) == 2048
    assert len(np.unique(default.curves.reshape(1024, -1), axis=0)) == 1024


def test_default_curves_begin_at_the_origin_along_x(default: Vocabulary) -> None:
    assert (default.curves[:, 0] == 0).all()
    np.testing.assert_allclose(default.curves[:, 1, 1], 0, atol=1e-6)
    assert (default.curves[:, 1, 0] > 0).all()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("speed", [-1.0, 0.0, 0.7, 1.4, 4.0, 9.0, 14.0])
def test_the_default_vocabulary_follows_steady_motion(
    default: Vocabulary, name: str, speed: float
) -> None:
    if name == "pedestrian" and speed > 5:
        speed = 3.0
    position = np.zeros((1, 19, 2), np.float32)
    position[0, :, 0] = 0.5 * speed * np.arange(19)
    heading, valid = np.zeros((1, 19), np.float32), np.ones((1, 19), bool)
    classes = np.array([CLASSES.index(name)])
    tokens = tokenize(*tensors(position, heading, valid, classes, default.motion))
    assert (tokens.position - torch.from_numpy(position[:, 1:])).norm(dim=-1).max() < 0.15


@pytest.mark.parametrize("speed", [20.0, 30.0, 38.0])
def test_the_default_vocabulary_follows_fast_vehicles(default: Vocabulary, speed: float) -> None:
    position = np.zeros((1, 19, 2), np.float32)
    position[0, :, 0] = 0.5 * speed * np.arange(19)
    heading, valid = np.zeros((1, 19), np.float32), np.ones((1, 19), bool)
    tokens = tokenize(*tensors(position, heading, valid, np.zeros(1, np.int64), default.motion))
    assert (tokens.position - torch.from_numpy(position[:, 1:])).norm(dim=-1).max() < 0.4


def test_pedestrians_can_turn_on_the_spot_and_walk_sideways(default: Vocabulary) -> None:
    position = np.zeros((2, 19, 2), np.float32)
    position[1, :, 1] = 0.5 * np.arange(19)
    heading = np.zeros((2, 19), np.float32)
    heading[0] = 0.6 * np.arange(19)
    valid, classes = np.ones((2, 19), bool), np.ones(2, np.int64)
    tokens = tokenize(*tensors(position, heading, valid, classes, default.motion))
    assert (tokens.position - torch.from_numpy(position[:, 1:])).norm(dim=-1).max() < 0.25
    turned = tokens.heading[0] - torch.from_numpy(heading[0, 1:])
    assert torch.atan2(turned.sin(), turned.cos()).abs().max() < 0.3


def test_a_saved_vocabulary_loads_to_the_same_bits(small: Vocabulary, tmp_path: Path) -> None:
    save_vocabulary(tmp_path / "v.safetensors", small)
    loaded = load_vocabulary(tmp_path / "v.safetensors")
    np.testing.assert_array_equal(loaded.motion, small.motion)
    np.testing.assert_array_equal(loaded.curves, small.curves)
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]


def test_the_fingerprint_tells_vocabularies_apart(small: Vocabulary) -> None:
    assert small.fingerprint() == small_vocabulary().fingerprint()
    assert len(small.fingerprint()) == 16
    curves = small.curves.copy()
    curves[3, 7, 1] += 0.001
    others = [
        Vocabulary(small.motion, curves),
        Vocabulary(small.motion[:, ::-1].copy(), small.curves),
        small_vocabulary(seed=1),
    ]
    assert len({v.fingerprint() for v in (small, *others)}) == 4


def test_a_vocabulary_saved_as_poses_loads_as_the_boxes_at_them(tmp_path: Path) -> None:
    angle = 0.3
    poses = np.zeros((3, 1, 5, 4), np.float32)
    poses[..., 2] = 1.0
    poses[:, 0, 4] = [1.0, 0.5, np.cos(angle), np.sin(angle)]
    save_poses(tmp_path / "v.safetensors", poses, rule_curves(2, np.random.default_rng(0)))
    motion = load_vocabulary(tmp_path / "v.safetensors").motion
    for index, (length, width) in enumerate(CLASS_SIZE):
        np.testing.assert_allclose(motion[index, 0, 0], box(0, 0, 0, length, width), atol=1e-6)
        np.testing.assert_allclose(
            motion[index, 0, 5], box(1, 0.5, angle, length, width), atol=1e-6
        )


def write_pickles(folder: Path, vocabulary: Vocabulary) -> tuple[Path, Path]:
    """The vocabulary as CAT-K keeps it."""
    vehicle, pedestrian, cyclist = vocabulary.motion
    classes = {"veh": vehicle, "ped": pedestrian, "cyc": cyclist}
    motion, curves = folder / "agents.pkl", folder / "map.pkl"
    motion.write_bytes(pickle.dumps({"token_all": classes}, protocol=4))
    content = {"traj_src": vocabulary.curves.astype(np.float64), "sample_pt": np.zeros((1, 3, 2))}
    curves.write_bytes(pickle.dumps(content, protocol=4))
    return motion, curves


def test_pickles_of_catk_load(small: Vocabulary, tmp_path: Path) -> None:
    loaded = load_vocabulary(*write_pickles(tmp_path, small))
    assert loaded.fingerprint() == small.fingerprint()


def test_tokens_and_curves_may_come_from_different_kinds_of_files(
    small: Vocabulary, tmp_path: Path
) -> None:
    motion, _ = write_pickles(tmp_path, small)
    other = small_vocabulary(seed=1)
    save_vocabulary(tmp_path / "v.safetensors", other)
    mixed = load_vocabulary(motion, tmp_path / "v.safetensors")
    np.testing.assert_array_equal(mixed.curves, other.curves)
    np.testing.assert_array_equal(mixed.motion, small.motion)


def test_a_pickle_of_motion_alone_is_not_enough(small: Vocabulary, tmp_path: Path) -> None:
    motion, curves = write_pickles(tmp_path, small)
    with pytest.raises(FormatError, match=r"agents\.pkl: holds no array traj_src.*name both"):
        load_vocabulary(motion)
    with pytest.raises(FormatError, match=r"map\.pkl: holds no array token_all/veh"):
        load_vocabulary(curves, motion)


class _Command:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"token_all": _Command()}))
    with pytest.raises(FormatError, match=r"evil\.pkl: asks for posix\.system"):
        load_vocabulary(path, path)


def test_a_dict_that_holds_itself_is_no_vocabulary(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["token_all"] = content
    path = tmp_path / "loop.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(FormatError, match="holds no array token_all/veh"):
        load_vocabulary(path, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "curves": a["curves"].astype(np.float64)}, "curves is F64"),
        (lambda a: {**a, "motion": a["motion"][:2]}, r"motion is float32 \[2, 40, 6, 4, 2\]"),
        (lambda a: {**a, "motion": a["motion"][:, :0]}, r"motion is float32 \[3, 0, 6, 4, 2\]"),
        (lambda a: {**a, "motion": a["motion"][0, 0, 0, 0, 0]}, r"motion is float32 \[1\]"),
        (lambda a: {**a, "curves": a["curves"][:, :10]}, r"expected float32 \[n, 11, 2\]"),
        (lambda a: {**a, "curves": a["curves"] * np.nan}, "curves has numbers that are not finite"),
        (lambda a: {**a, "motion": a["motion"] * np.inf}, "motion has numbers that are not finite"),
        (lambda a: {**a, "motion": a["motion"][::-1]}, "class vehicle do not begin with its box"),
        (lambda a: {"curves": a["curves"]}, "holds no motion tokens"),
        (lambda a: {"motion": a["motion"]}, "holds no map curves"),
        (
            lambda a: {"poses": np.zeros((3, 4, 5, 3), np.float32), "curves": a["curves"]},
            r"poses is float32 \[3, 4, 5, 3\], expected float32 \[3, n, 5, 4\]",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_no_vocabulary_is_named_with_its_file(
    small: Vocabulary, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    path = tmp_path / "bad.safetensors"
    arrays = change({"motion": small.motion, "curves": small.curves})
    path.write_bytes(safetensors.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    with pytest.raises(FormatError, match=message) as caught:
        load_vocabulary(path)
    assert str(caught.value).startswith(str(path))


def test_pickled_classes_of_different_sizes_are_refused(small: Vocabulary, tmp_path: Path) -> None:
    motion, curves = write_pickles(tmp_path, small)
    classes = dict(zip(("veh", "ped", "cyc"), small.motion, strict=True))
    classes["ped"] = classes["ped"][:-1]
    motion.write_bytes(pickle.dumps({"token_all": classes}, protocol=4))
    with pytest.raises(FormatError, match="tokens differ in shape"):
        load_vocabulary(motion, curves)


def test_pickled_integers_are_refused(small: Vocabulary, tmp_path: Path) -> None:
    motion, curves = write_pickles(tmp_path, small)
    curves.write_bytes(pickle.dumps({"traj_src": np.zeros((2, 11, 2), np.int64)}, protocol=4))
    with pytest.raises(FormatError, match="traj_src is an array of int64"):
        load_vocabulary(motion, curves)


def test_pickled_numbers_beyond_float32_are_refused(small: Vocabulary, tmp_path: Path) -> None:
    motion, curves = write_pickles(tmp_path, small)
    curves.write_bytes(pickle.dumps({"traj_src": np.full((2, 11, 2), 1e300)}, protocol=4))
    with pytest.raises(FormatError, match="curves has numbers that are not finite"):
        load_vocabulary(motion, curves)


@pytest.mark.parametrize("cut", [0, 4, 60, 500])
def test_a_truncated_file_is_named(small: Vocabulary, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.safetensors"
    save_vocabulary(path, small)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FormatError, match=r"cut\.safetensors: not sound safetensors"):
        load_vocabulary(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("none.safetensors", "none.pkl"):
        with pytest.raises(FormatError, match=f"{name}: cannot be read: No such file"):
            load_vocabulary(tmp_path / name)


def test_a_vocabulary_that_cannot_be_written_leaves_the_old_one(
    small: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_vocabulary(path, small)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# Boxes and poses


def test_corners_are_left_front_right_front_right_back_left_back() -> None:
    zero = torch.zeros(2)
    boxes = class_boxes(torch.tensor([10.0, 20.0]), zero[0], torch.tensor([4.0, 2.0]))
    assert boxes.tolist() == [[12, 21], [12, 19], [8, 19], [8, 21]]
    turned = class_boxes(zero, torch.tensor(np.pi / 2), torch.tensor([4.0, 2.0]))
    expected = torch.tensor([[-1.0, 2.0], [1.0, 2.0], [1.0, -2.0], [-1.0, -2.0]])
    torch.testing.assert_close(turned, expected)


@given(
    x=st.floats(-100, 100), y=st.floats(-100, 100), heading=st.floats(-3.14, 3.14),
    index=st.integers(0, 2),
)  # fmt: skip
def test_poses_of_boxes_are_the_poses_they_were_made_of(
    x: float, y: float, heading: float, index: int
) -> None:
    size = torch.from_numpy(CLASS_SIZE[index])
    boxes = class_boxes(torch.tensor([x, y]), torch.tensor(heading), size)
    np.testing.assert_allclose(boxes, box(x, y, heading, *CLASS_SIZE[index]), atol=1e-4)
    position, angle = to_poses(boxes)
    np.testing.assert_allclose(position, [x, y], atol=1e-4)
    np.testing.assert_allclose(angle, heading, atol=1e-4)


# Matching


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_matching_rolls_as_specified(seed: int) -> None:
    """Section by section in float64, from the states that were reached."""
    vocabulary = small_vocabulary()
    position, heading, valid, classes = random_tracks(6, seed)
    tokens = tokenize(*tensors(position, heading, valid, classes, vocabulary.motion))
    for agent, index in enumerate(classes):
        ends = vocabulary.motion[index, :, -1]
        state = (*position[agent, 0], heading[agent, 0])
        for k in range(18):
            goal = (*position[agent, k + 1], heading[agent, k + 1])
            chosen = int(tokens.index[agent, k])
            reached = (*tokens.position[agent, k].tolist(), float(tokens.heading[agent, k]))
            assert bool(tokens.valid[agent, k]) == (valid[agent, k] and valid[agent, k + 1])
            if not tokens.valid[agent, k]:
                assert (chosen, *reached) == (0, 0, 0, 0)
                state = goal
                continue
            boxes = placed(ends, *state)
            apart = np.linalg.norm(boxes - box(*goal, *CLASS_SIZE[index]), axis=-1).sum(axis=-1)
            assert apart[chosen] <= apart.min() + 1e-3
            front = boxes[chosen, 0] - boxes[chosen, 3]
            np.testing.assert_allclose(reached[:2], boxes[chosen].mean(axis=0), atol=1e-4)
            assert turns_apart(reached[2], np.arctan2(front[1], front[0])) < 1e-4
            state = reached


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    turn=st.floats(-3, 3),
    shift=st.tuples(st.floats(-100, 100), st.floats(-100, 100)),
)
def test_what_tokens_play_out_is_matched_to_these_tokens_anywhere(
    seed: int, turn: float, shift: tuple[float, float]
) -> None:
    small = small_vocabulary()
    rng = np.random.default_rng(seed)
    index, classes = rng.integers(0, 40, (8, 18)), rng.integers(0, 3, 8)
    start = np.tile(np.float32(shift), (8, 1))
    heading = np.full(8, turn, np.float32)
    position, headings = played(index, start, heading, classes, small.motion)
    valid, group, motion = tensors(np.ones((8, 19), bool), classes, small.motion)
    tokens = tokenize(position, headings, valid, group, motion)
    np.testing.assert_array_equal(tokens.index, index)
    torch.testing.assert_close(tokens.position, position[:, 1:], rtol=0, atol=1e-3)


def test_headings_may_be_any_number_of_turns_away(small: Vocabulary) -> None:
    position, heading, valid, classes = random_tracks(20, seed=5)
    turns = 2 * np.pi * np.random.default_rng(0).integers(-2, 3, heading.shape)
    expected = tokenize(*tensors(position, heading, valid, classes, small.motion))
    turned = (heading + turns).astype(np.float32)
    tokens = tokenize(*tensors(position, turned, valid, classes, small.motion))
    torch.testing.assert_close(tokens.position, expected.position, rtol=0, atol=1e-3)
    assert tokens.heading.abs().max() <= np.pi + 1e-6


def test_a_track_that_comes_back_begins_exactly_where_it_is(small: Vocabulary) -> None:
    position, heading, valid, classes = random_tracks(1, seed=3)
    valid[:] = True
    valid[0, 6:9] = False
    tokens = tokenize(*tensors(position, heading, valid, classes, small.motion))
    assert tokens.valid[0].tolist() == [*[True] * 5, *[False] * 4, *[True] * 9]
    fresh = tokenize(*tensors(position[:, 9:], heading[:, 9:], valid[:, 9:], classes, small.motion))
    torch.testing.assert_close(fresh.position, tokens.position[:, 9:])
    torch.testing.assert_close(fresh.index, tokens.index[:, 9:])


def test_agents_are_matched_one_by_one(default: Vocabulary) -> None:
    """However many there are, in whatever order: more than are held at a time."""
    position, heading, valid, classes = random_tracks(120, seed=8)
    together = tokenize(*tensors(position, heading, valid, classes, default.motion))
    order = np.random.default_rng(0).permutation(120)
    other = tokenize(
        *tensors(position[order], heading[order], valid[order], classes[order], default.motion)
    )
    torch.testing.assert_close(other.index, together.index[order], rtol=0, atol=0)
    torch.testing.assert_close(other.position, together.position[order], rtol=0, atol=0)


def test_no_agents_have_no_tokens(small: Vocabulary) -> None:
    position, heading, valid, classes = random_tracks(0, seed=0)
    tokens = tokenize(*tensors(position, heading, valid, classes, small.motion))
    assert tokens.index.shape == (0, 18)
    assert tokens.position.shape == (0, 18, 2)
    none = nearest_tokens(*tensors(position[:, 0], heading[:, 0], classes, small.motion))
    assert none.shape == (0,)


def test_the_nearest_token_has_the_least_sum_of_corner_distances(default: Vocabulary) -> None:
    rng = np.random.default_rng(1)
    n = 150  # more than are held at a time
    position = rng.normal(0, 4, (n, 2)).astype(np.float32)
    heading, classes = rng.normal(0, 1, n).astype(np.float32), rng.integers(0, 3, n)
    chosen = nearest_tokens(*tensors(position, heading, classes, default.motion)).numpy()
    for row in range(n):
        goal = box(*position[row], heading[row], *CLASS_SIZE[classes[row]])
        ends = default.motion[classes[row], :, -1].astype(np.float64)
        apart = np.linalg.norm(ends - goal, axis=-1).sum(axis=-1)
        assert apart[chosen[row]] <= apart.min() + 1e-5


def test_of_equal_tokens_the_first_is_taken(small: Vocabulary) -> None:
    motion = np.concatenate([small.motion, small.motion], axis=1)
    position, heading, valid, classes = random_tracks(10, seed=2)
    tokens = tokenize(*tensors(position, heading, valid, classes, motion))
    assert tokens.index.max() < 40


def test_playing_out_passes_through_the_poses_of_the_token(small: Vocabulary) -> None:
    rng = np.random.default_rng(4)
    index, classes = rng.integers(0, 40, 30), rng.integers(0, 3, 30)
    start, heading = rng.uniform(-50, 50, (30, 2)), rng.uniform(-3, 3, 30)
    way, ways = play_out(
        *tensors(index, np.float32(start), np.float32(heading), classes, small.motion)
    )
    assert way.shape == (30, 5, 2)
    assert ways.shape == (30, 5)
    for row in range(30):
        boxes = placed(small.motion[classes[row], index[row]], *start[row], heading[row])
        for step in range(5):
            corners = boxes[step + 1]
            front = corners[0] - corners[3]
            np.testing.assert_allclose(way[row, step], corners.mean(axis=0), atol=1e-4)
            assert turns_apart(ways[row, step], np.arctan2(front[1], front[0])) < 1e-4


# Noise


def noisy(
    tracks: tuple[Array, Array, Array, Array], vocabulary: Vocabulary, noise: TokenNoise, seed: int
) -> Any:
    generator = torch.Generator().manual_seed(seed)
    arrays = tensors(*tracks, vocabulary.motion)
    return tokenize(*arrays, noise=noise, generator=generator)


def test_noise_among_one_token_is_none(small: Vocabulary) -> None:
    tracks = random_tracks(20, seed=6)
    exact = tokenize(*tensors(*tracks, small.motion))
    noise = noisy(tracks, small, TokenNoise(1), seed=0)
    torch.testing.assert_close(noise.index, exact.index)
    torch.testing.assert_close(noise.position, exact.position, rtol=0, atol=0)


def test_noise_at_low_temperature_takes_the_nearest(small: Vocabulary) -> None:
    tracks = random_tracks(20, seed=6)
    exact = tokenize(*tensors(*tracks, small.motion))
    cold = noisy(tracks, small, TokenNoise(5, temperature=1e-6), seed=0)
    torch.testing.assert_close(cold.index, exact.index)


def test_noise_is_that_of_its_seed(small: Vocabulary) -> None:
    tracks = random_tracks(20, seed=6)
    first = noisy(tracks, small, TokenNoise(5), seed=1)
    torch.manual_seed(99)
    again = noisy(tracks, small, TokenNoise(5), seed=1)
    other = noisy(tracks, small, TokenNoise(5), seed=2)
    torch.testing.assert_close(first.index, again.index, rtol=0, atol=0)
    assert (first.index != other.index).any()
    torch.testing.assert_close(first.valid, other.valid)


def test_noise_takes_one_of_the_nearest_and_goes_on_from_there(small: Vocabulary) -> None:
    position, heading, valid, classes = random_tracks(12, seed=7)
    valid[:] = True
    tokens = noisy((position, heading, valid, classes), small, TokenNoise(4), seed=3)
    ranks = []
    for agent in range(12):
        state = (*position[agent, 0], heading[agent, 0])
        ends, size = small.motion[classes[agent], :, -1], CLASS_SIZE[classes[agent]]
        for k in range(18):
            boxes = placed(ends, *state)
            goal = box(*position[agent, k + 1], heading[agent, k + 1], *size)
            apart = np.linalg.norm(boxes - goal, axis=-1).mean(axis=-1)
            chosen = int(tokens.index[agent, k])
            ranks.append(int((apart < apart[chosen] - 1e-4).sum()))
            state = (*tokens.position[agent, k].tolist(), float(tokens.heading[agent, k]))
            np.testing.assert_allclose(state[:2], boxes[chosen].mean(axis=0), atol=1e-3)
    assert max(ranks) == 3
    assert min(ranks) == 0


def test_noise_weighs_tokens_by_their_mean_corner_distance(small: Vocabulary) -> None:
    n = 4000
    position = np.zeros((n, 2, 2), np.float32)
    position[:, 1, 0] = 1.3
    heading, valid = np.zeros((n, 2), np.float32), np.ones((n, 2), bool)
    tokens = noisy(
        (position, heading, valid, np.zeros(n, np.int64)), small, TokenNoise(4, 0.3), seed=0
    )
    goal = box(1.3, 0, 0, *CLASS_SIZE[0])
    apart = np.linalg.norm(small.motion[0, :, -1] - goal, axis=-1).mean(axis=-1)
    nearest = np.argsort(apart)[:4]
    weights = np.exp(-apart[nearest] / 0.3)
    expected = n * weights / weights.sum()
    seen = np.bincount(tokens.index[:, 0].numpy(), minlength=40)
    assert seen[nearest].sum() == n
    assert (np.abs(seen[nearest] - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize(("num_k", "temperature"), [(0, 1.0), (5, 0.0), (5, float("nan"))])
def test_noise_that_cannot_be_is_refused(num_k: int, temperature: float) -> None:
    with pytest.raises(WosacError, match="num_k >= 1, temperature > 0"):
        TokenNoise(num_k, temperature)


def test_noise_among_more_tokens_than_there_are_is_refused(small: Vocabulary) -> None:
    with pytest.raises(WosacError, match="does not fit a vocabulary of 40 tokens"):
        noisy(random_tracks(2, seed=0), small, TokenNoise(41), seed=0)


# Map curves


def placed_curves(curves: Array, at: Array, heading: Array) -> Array:
    cos, sin = np.cos(heading)[:, None], np.sin(heading)[:, None]
    x, y = np.moveaxis(curves, -1, 0)
    return np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1) + at[:, None]


@pytest.mark.parametrize("seed", range(5))
def test_a_curve_of_the_vocabulary_is_matched_to_itself_anywhere(
    default: Vocabulary, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    index = rng.integers(0, 1024, 100)  # more than are held at a time
    heading = rng.uniform(-3, 3, 100)
    points = placed_curves(default.curves[index], rng.uniform(-99, 99, (100, 2)), heading)[:, ::5]
    chosen = match_curves(*tensors(np.float32(points), np.float32(heading), default.curves))
    np.testing.assert_allclose(
        default.curves[chosen][:, ::5], default.curves[index][:, ::5], atol=0.01
    )


def test_the_matched_curve_has_the_least_sum_of_squared_distances(small: Vocabulary) -> None:
    rng = np.random.default_rng(0)
    points, heading = rng.normal(0, 3, (50, 3, 2)), rng.uniform(-3, 3, 50)
    chosen = match_curves(*tensors(np.float32(points), np.float32(heading), small.curves))
    for row in range(50):
        start = np.repeat(points[None, row, 0], 40, axis=0)
        placed = placed_curves(small.curves, start, np.full(40, heading[row]))[:, ::5]
        apart = np.square(placed - points[row]).sum(axis=(1, 2))
        assert apart[chosen[row]] <= apart.min() + 1e-4


def test_no_pieces_have_no_curves(small: Vocabulary) -> None:
    nothing = match_curves(torch.zeros(0, 3, 2), torch.zeros(0), torch.from_numpy(small.curves))
    assert nothing.shape == (0,)
    assert nothing.dtype == torch.int64


# k-disks


def mean_distance(shapes: Array, centre: Array) -> Array:
    return np.linalg.norm(shapes - centre, axis=-1).mean(axis=-1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), tolerance=st.floats(0.05, 2.0))
def test_disks_are_around_shapes_that_no_earlier_disk_covers(
    seed: int, n: int, tolerance: float
) -> None:
    shapes = np.random.default_rng(seed).normal(size=(100, 4, 2)).astype(np.float32)
    disks = k_disks(shapes, n, tolerance, np.random.default_rng(seed))
    left = np.ones(100, bool)
    for disk in disks:
        assert left[disk].all()
        around = [
            np.flatnonzero(left & (mean_distance(shapes, shapes[c]) <= tolerance)) for c in disk
        ]
        assert any(np.array_equal(rows, np.sort(disk)) for rows in around)
        left[disk] = False
    assert len(disks) == n or not left.any()


def test_disks_are_those_of_their_seed() -> None:
    shapes = np.random.default_rng(0).normal(size=(300, 4, 2)).astype(np.float32)
    first, again, other = (
        [disk.tolist() for disk in k_disks(shapes, 20, 0.8, np.random.default_rng(seed))]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_no_shapes_need_no_disks() -> None:
    assert k_disks(np.zeros((0, 4, 2), np.float32), 5, 0.1, np.random.default_rng(0)) == []


def test_the_nearest_centre_is_found() -> None:
    rng = np.random.default_rng(0)
    shapes, centres = (rng.normal(size=(n, 3, 2)).astype(np.float32) for n in (50, 8))
    nearest, distance = nearest_centres(shapes, centres)
    expected = np.stack([mean_distance(shapes, centre) for centre in centres])
    np.testing.assert_array_equal(nearest, expected.argmin(axis=0))
    np.testing.assert_allclose(distance, expected.min(axis=0), atol=1e-5)
    assert np.isinf(nearest_centres(shapes, centres[:0])[1]).all()


# Rules


@pytest.mark.parametrize("rules", [rules for rules in RULES if isinstance(rules, Wheels)])
def test_wheels_do_not_slip_and_keep_to_their_limits(rules: Wheels) -> None:
    without_spread = Wheels(**{**_fields(rules), "spread": (0.0, 0.0, 0.0)})
    poses = rule_segments(without_spread, 500, np.random.default_rng(0)).astype(np.float64)
    poses = np.concatenate([np.zeros((500, 1, 3)), poses], axis=1)
    forward = np.stack([np.cos(poses[..., 2]), np.sin(poses[..., 2])], axis=-1)
    axle = poses[..., :2] - rules.rear_axle * forward
    step, turn = np.diff(axle, axis=1), np.diff(poses[..., 2], axis=1)
    middle = poses[:, :-1, 2] + turn / 2
    slip = step[..., 1] * np.cos(middle) - step[..., 0] * np.sin(middle)
    assert np.abs(slip).max() < 0.02
    speed = np.linalg.norm(step, axis=-1) / 0.1
    fastest = max(high for _, _, high in rules.speeds) + 0.5 * rules.hardest[1]
    assert speed.max() < fastest
    acceleration = np.diff(speed, axis=1) / 0.1
    assert acceleration.max() < rules.hardest[1] + 0.1
    assert acceleration.min() > rules.hardest[0] - 0.1
    assert np.abs(turn).max() <= 1.01 * (speed * 0.1 / rules.radius).max()


def _fields(rules: Wheels) -> dict[str, Any]:
    return {name: getattr(rules, name) for name in Wheels.__slots__}


@pytest.mark.parametrize("index", range(3))
def test_rules_reach_what_road_users_do(index: int) -> None:
    end = rule_segments(RULES[index], 20_000, np.random.default_rng(0))[:, -1]
    farthest, reverse, turn = [(18, -1, 0.5), (2.5, -0.5, 2.0), (6, -0.2, 0.6)][index]
    assert end[:, 0].max() > farthest
    assert end[:, 0].min() < reverse
    assert end[:, 2].max() > turn
    assert end[:, 2].min() < -turn
    # Neither side is preferred.
    assert abs(np.mean(end[:, 1] > 0) - 0.5) < 0.02
    assert abs(np.mean(end[:, 2] > 0) - 0.5) < 0.02


def test_rules_follow_their_generator() -> None:
    for rules in RULES:
        first, again = (rule_segments(rules, 20, np.random.default_rng(3)) for _ in range(2))
        np.testing.assert_array_equal(first, again)


def test_who_is_led_astray_begins_on_the_way() -> None:
    straight = np.zeros((4000, 5, 3), np.float32)
    off = np.abs(led_astray(straight, (0.1, 0.2, 0.3), np.random.default_rng(0)))
    typical = np.median(off, axis=0)
    assert (np.diff(typical, axis=0) > 0).all()
    np.testing.assert_allclose(typical[-1], 0.765 * np.array([0.1, 0.2, 0.3]), rtol=0.1)


def test_rule_curves_are_pieces_of_at_most_5_m() -> None:
    curves = rule_curves(3000, np.random.default_rng(0))
    length = np.linalg.norm(np.diff(curves, axis=1), axis=-1).sum(axis=1)
    assert curves.shape == (3000, 11, 2)
    assert length.min() > 0.5
    assert length.max() < 5.001
    assert 0.6 < (length > 4.999).mean() < 0.9
    np.testing.assert_allclose(curves[:, :2, 1], 0, atol=1e-6)
    heading = np.arctan2(*np.moveaxis(np.diff(curves, axis=1), -1, 0)[::-1])
    assert heading.max() > 2
    assert heading.min() < -2


def test_the_points_of_a_piece_have_the_middle_of_map_pieces() -> None:
    at = piece_points(np.array([5.0, 3.7, 1.0]))
    np.testing.assert_allclose(at[0], 0.5 * np.arange(11))
    np.testing.assert_allclose(at[:, 5], [2.5, 2.0, 0.5])
    np.testing.assert_allclose(at[:, 10], [5.0, 3.7, 1.0])
    assert (np.diff(at, axis=1) > 0).all()


# What scenes offer


def test_segments_are_seen_from_their_first_pose(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(n_tracks=2, speed=8.0, object_types=(1, 3))
    vehicles, pedestrians, cyclists = motion_segments(scenario)
    assert vehicles.shape == cyclists.shape == (86, 5, 3)
    assert pedestrians.shape == (0, 5, 3)
    expected = np.stack([0.8 * np.arange(1, 6), np.zeros(5), np.zeros(5)], axis=-1)
    np.testing.assert_allclose(vehicles, np.tile(expected, (86, 1, 1)), atol=1e-5)


def test_segments_do_not_depend_on_where_and_which_way(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(n_tracks=1)
    tracks = scenario.tracks
    time = 0.1 * np.arange(91)
    tracks.heading[0] = (0.3 * time + 3.0 + np.pi) % (2 * np.pi) - np.pi  # leaps by a whole turn
    way = np.stack([np.cos(3.0 + 0.3 * time), np.sin(3.0 + 0.3 * time)], axis=-1)
    tracks.position[0, :, :2] = 20 / 0.3 * np.stack([way[:, 1], -way[:, 0]], axis=-1) + 8000
    (segments, _, _) = motion_segments(scenario)
    np.testing.assert_allclose(segments, np.tile(segments[:1], (86, 1, 1)), atol=1e-4)
    np.testing.assert_allclose(segments[0, -1], [9.96, 0.75, 0.15], atol=0.02)


def test_short_tracks_gaps_leaps_and_bad_numbers_are_left_out(
    make_scenario: MakeScenario,
) -> None:
    tracks = make_scenario(n_tracks=5, speed=3.0).tracks
    tracks.valid[0, 29:] = False  # 29 steps
    tracks.valid[1, 40] = False  # a gap of one step
    tracks.position[2, 40:, 0] += 50.0  # a leap between two steps
    tracks.position[3, 40, 1] = np.nan
    tracks.heading[4, 40] = np.inf
    for row, n in enumerate((0, 80, 81, 80, 80)):
        scenario = make_scenario(n_tracks=5, speed=3.0)
        for name in ("valid", "position", "heading"):
            getattr(scenario.tracks, name)[row] = getattr(tracks, name)[row]
        assert len(motion_segments(scenario)[0]) == 4 * 86 + n


def test_a_heading_that_leaps_is_held(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(n_tracks=1)
    scenario.tracks.heading[0, 30:60] = np.pi
    (segments, _, _) = motion_segments(scenario)
    np.testing.assert_allclose(segments[..., 2], 0, atol=1e-6)
    assert (segments[..., 0] > 0).all()


@pytest.mark.parametrize("n_steps", [1, 5, 11])
def test_records_of_a_few_steps_have_no_segments(make_scenario: MakeScenario, n_steps: int) -> None:
    segments = motion_segments(make_scenario(n_steps=n_steps))
    assert [len(of_class) for of_class in segments] == [0, 0, 0]


def test_curve_pieces_are_those_that_the_map_is_cut_into(make_scenario: MakeScenario) -> None:
    rng = np.random.default_rng(0)
    turn = np.cumsum(rng.normal(0, 0.1, 80))
    line = np.cumsum(0.7 * np.stack([np.cos(turn), np.sin(turn)], axis=-1), axis=0)
    line[50:] += 10.0  # more than 3 m: it is cut
    scenario = make_scenario(
        road_edges=[line, line[:1], line[:0], 0.6 * line[:3]], lanes={7: line[::2]}
    )
    points, heading = [], []
    for polyline in (line, 0.6 * line[:3], line[::2]):
        pieces, angle, _ = split_polylines(polyline, np.array([len(polyline)]))
        points.append(pieces)
        heading.append(angle)
    cos, sin = np.cos(np.concatenate(heading))[:, None], np.sin(np.concatenate(heading))[:, None]
    x, y = np.moveaxis(np.concatenate(points) - np.concatenate(points)[:, :1], -1, 0)
    expected = np.stack([x * cos + y * sin, y * cos - x * sin], axis=-1)
    found = curve_pieces(scenario)
    assert len(found) == len(expected) > 15
    np.testing.assert_allclose(found[:, ::5], expected, atol=0.05)


def test_a_broken_polyline_is_left_out(make_scenario: MakeScenario) -> None:
    good, bad = [(0, 0), (2, 0), (4, 0), (6, 0)], [(0, 0), (np.nan, 0), (4, 0), (6, 0)]
    alone, both = make_scenario(road_edges=[good]), make_scenario(road_edges=[bad, good])
    np.testing.assert_array_equal(curve_pieces(alone), curve_pieces(both))


def test_a_scene_without_a_map_has_no_curves(make_scenario: MakeScenario) -> None:
    assert curve_pieces(make_scenario(road_edges=[])).shape == (0, 11, 2)


def test_who_stands_still_is_no_example(make_scenario: MakeScenario) -> None:
    assert len(examples_of(make_scenario(speed=0.0)).segments[0]) == 0
    assert len(examples_of(make_scenario(speed=0.1)).segments[0]) == 3 * 86
    turning = np.zeros((1, 5, 3), np.float32)
    turning[..., 2] = 0.1
    assert moving(turning, 1).all()


# Sampling


def examples(n: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    segments = [rule_segments(rules, n, rng) for rules in RULES]
    return Examples(segments, rule_curves(n, rng))


def sampled(order: Array, seed: int, capacity: int) -> Examples:
    sample = Sample(seed, capacity)
    for scene in order:
        sample.add(f"scene {scene}", examples(40, int(scene)))
    return sample.examples()


def test_a_sample_does_not_depend_on_the_order_of_the_scenes() -> None:
    forwards, backwards = (sampled(order, 0, 25) for order in (np.arange(9), np.arange(9)[::-1]))
    for first, second in zip(forwards.segments, backwards.segments, strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(forwards.curves, backwards.curves)


def test_a_sample_keeps_as_many_as_it_can_hold() -> None:
    few, all_of_them = sampled(np.arange(5), 0, 70), sampled(np.arange(5), 0, 10_000)
    assert [len(s) for s in (*few.segments, few.curves)] == [70] * 4
    assert [len(s) for s in (*all_of_them.segments, all_of_them.curves)] == [200] * 4


def test_a_sample_takes_from_all_scenes_alike() -> None:
    sample = Sample(seed=0, capacity=500)
    for scene in range(10):
        segments = [np.full((1000, 5, 3), scene, np.float32) for _ in RULES]
        sample.add(f"{scene}", Examples(segments, np.zeros((1000, 11, 2), np.float32)))
    scenes = sample.examples().segments[0][:, 0, 0].astype(int)
    counts = np.bincount(scenes, minlength=10)
    assert (np.abs(counts - 50) < 5 * np.sqrt(50)).all()
    other = Sample(seed=1, capacity=500)
    for scene in range(10):
        segments = [np.full((1000, 5, 3), scene, np.float32) for _ in RULES]
        other.add(f"{scene}", Examples(segments, np.zeros((1000, 11, 2), np.float32)))
    assert (other.examples().segments[0][:, 0, 0] != scenes).any()


# Choosing


@pytest.fixture
def few_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "_N_FROM_RULES", 1500)


@pytest.mark.usefixtures("few_rules")
def test_chosen_tokens_cover_their_examples() -> None:
    offered = examples(400, seed=1)
    poses = choose_motion(offered.segments, 300, (0.3, 0.3, 0.3), seed=0)
    assert poses.shape == (3, 300, 5, 4)
    assert poses.dtype == np.float32
    np.testing.assert_array_equal(poses[:, 0], np.broadcast_to([0, 0, 1, 0], (3, 5, 4)))
    motion = corners_of_poses(poses)
    np.testing.assert_allclose(np.hypot(poses[..., 2], poses[..., 3]), 1, atol=1e-6)
    for index, segments in enumerate(offered.segments):
        ends = np.stack([box(*end, *CLASS_SIZE[index]) for end in segments[:, -1]])
        apart = np.stack([mean_distance(ends, token) for token in motion[index, :, -1]])
        assert np.quantile(apart.min(axis=0), 0.8) < 0.3


@pytest.mark.usefixtures("few_rules")
def test_choosing_follows_its_seed() -> None:
    offered = examples(200, seed=1)
    first, again, other = (
        choose_motion(offered.segments, 50, (0.1,) * 3, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.usefixtures("few_rules")
def test_rules_fill_up_what_the_examples_lack() -> None:
    nothing = [np.zeros((0, 5, 3), np.float32) for _ in CLASSES]
    poses = choose_motion(nothing, 200, (0.05,) * 3, seed=0)
    assert len(np.unique(poses[0].reshape(200, -1), axis=0)) == 200
    curves = choose_curves(np.zeros((0, 11, 2), np.float32), 60, 0.05, seed=0)
    assert curves.shape == (60, 11, 2)
    assert len(np.unique(curves.reshape(60, -1), axis=0)) == 60
    # Ten ways of going straight on are ten tokens; the others come from rules.
    straight = np.zeros((10, 5, 3), np.float32)
    straight[..., 0] = np.arange(10, 20)[:, None] * np.arange(1, 6) / 5
    poses = choose_motion([straight] * 3, 200, (0.05,) * 3, seed=0)
    for way in straight:
        apart = np.abs(poses[0, :, :, :2] - way[:, :2]).max(axis=(1, 2))
        assert apart.min() < 1e-5


def test_more_tokens_than_can_be_told_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "_N_FROM_RULES", 50)
    nothing = np.zeros((0, 11, 2), np.float32)
    with pytest.raises(WosacError, match=r"\d+ different tokens, not 500 \(ask for fewer\)"):
        choose_curves(nothing, 500, 0.1, seed=0)


def test_rules_fill_up_with_what_no_disk_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    example, other = rule_curves(2, np.random.default_rng(0))
    spare = np.stack([*[example + 0.01] * 500, other])
    monkeypatch.setattr(build_module, "rule_curves", lambda *_: spare)
    chosen = choose_curves(example[None], 2, 0.05, seed=0)
    np.testing.assert_allclose(chosen, [example, other], atol=1e-5)


@pytest.mark.usefixtures("few_rules")
def test_headings_are_averaged_as_directions() -> None:
    """Half a turn to the left and half a turn to the right are the same."""
    turned = np.zeros((2, 5, 3), np.float32)
    turned[0, :, 2], turned[1, :, 2] = np.pi - 0.01, -np.pi + 0.01
    nothing = turned[:0]
    poses = choose_motion([nothing, turned, nothing], 30, (0.1,) * 3, seed=0)
    np.testing.assert_allclose(poses[1, :, -1, 2:].min(axis=0)[0], -1, atol=1e-3)
    backwards = poses[1, poses[1, :, -1, 2].argmin(), -1]
    np.testing.assert_allclose(backwards, [0, 0, -1, 0], atol=1e-3)


# Whole vocabularies from scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenarios(folder, generate_scenarios(4, seed=1), n_shards=2)
    return folder


BUILD = {"n_motion": 60, "n_curves": 30, "progress": False}


@pytest.mark.usefixtures("few_rules")
def test_a_vocabulary_is_the_same_for_any_number_of_workers(scenes: Path) -> None:
    one, two = (
        build_vocabulary(str(scenes), workers=n, **BUILD)  # type: ignore[arg-type]
        for n in (1, 2)
    )
    assert one.fingerprint() == two.fingerprint()
    assert one.motion.shape == (3, 60, 6, 4, 2)
    assert one.curves.shape == (30, 11, 2)


def test_some_of_the_scenes_are_drawn_by_seed(scenes: Path) -> None:
    all_of_them = draw_scenes(str(scenes), None, seed=0, progress=False)
    draws = {
        tuple(map(str, draw_scenes(str(scenes), 2, seed=seed, progress=False)))
        for seed in range(12)
    }
    assert len(all_of_them) == len(draw_scenes(str(scenes), 9, seed=0, progress=False)) == 4
    assert len(draws) > 2
    for draw in draws:
        assert len(draw) == 2
        assert set(draw) <= set(map(str, all_of_them))


def test_scenes_without_futures_make_no_vocabulary(
    make_scenario: MakeScenario, tmp_path: Path
) -> None:
    write_scenarios(tmp_path, [make_scenario(n_steps=11)], n_shards=1)
    with pytest.raises(WosacError, match=r"nobody moves for half a second.*test split"):
        build_vocabulary(str(tmp_path), **BUILD)  # type: ignore[arg-type]


def test_no_scenes_make_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "empty.tfrecord-00000-of-00001").write_bytes(b"")
    with pytest.raises(WosacError, match="there are no scenes in it"):
        build_vocabulary(str(tmp_path), **BUILD)  # type: ignore[arg-type]


# Reconstruction


def test_scenes_told_in_tokens_are_reconstructed_without_error(
    make_scenario: MakeScenario, small: Vocabulary
) -> None:
    rng = np.random.default_rng(0)
    scenario = make_scenario(n_tracks=4, object_types=(1, 2, 3, 1))
    tracks, classes = scenario.tracks, np.array([0, 1, 2, 0])
    index = rng.integers(0, 40, (4, 18))
    at, heading = rng.uniform(-9, 9, (4, 2)).astype(np.float32), np.zeros(4, np.float32)
    tracks.position[:, 0, :2], tracks.heading[:, 0] = at, heading
    table, group = torch.from_numpy(small.motion), torch.from_numpy(classes)
    state = (torch.from_numpy(at), torch.from_numpy(heading))
    for k in range(18):
        way, ways = play_out(torch.from_numpy(index[:, k]), *state, group, table)
        tracks.position[:, 5 * k + 1 : 5 * k + 6, :2] = way.numpy()
        tracks.heading[:, 5 * k + 1 : 5 * k + 6] = ways.numpy()
        state = way[:, -1], ways[:, -1]
    tracks.valid[3, 62] = False  # between the ends of tokens: what is not logged is not compared
    uses = reconstruct([scenario], small)
    assert [uses[name].matched for name in CLASSES] == [36, 18, 18]
    assert uses["vehicle"].errors["position_10hz"].n == 179
    assert uses["pedestrian"].used == len(np.unique(index[1])) / 40
    for name in CLASSES:
        for what, errors in uses[name].errors.items():
            if what != "moving_position":
                assert errors.max is not None
                assert errors.max < (1e-3 if "position" in what else 1.6)


def test_errors_are_those_of_the_nearest_tokens(make_scenario: MakeScenario) -> None:
    """One token, a metre ahead in half a second, for a vehicle that drives 1.2 m."""
    motion = np.zeros((3, 1, 6, 4, 2), np.float32)
    for index, (length, width) in enumerate(CLASS_SIZE):
        for step in range(6):
            motion[index, 0, step] = box(0.2 * step, 0, 0, length, width)
    vocabulary = Vocabulary(motion, rule_curves(3, np.random.default_rng(0)))
    uses = reconstruct([make_scenario(n_tracks=2, speed=2.4)], vocabulary)
    errors = uses["vehicle"].errors
    expected = 0.2 * np.arange(1, 19)
    for what in ("position", "moving_position"):
        assert errors[what].n == 36
        assert errors[what].mean == pytest.approx(expected.mean(), abs=1e-4)
        assert errors[what].max == pytest.approx(3.6, abs=1e-4)
        assert errors[what].p95 == pytest.approx(
            np.quantile(np.repeat(expected, 2), 0.95), abs=1e-4
        )
    steps = 0.04 * np.arange(1, 91)
    assert errors["position_10hz"].mean == pytest.approx(steps.mean(), abs=1e-4)
    assert errors["heading_10hz"].max == pytest.approx(0, abs=1e-6)
    assert uses["vehicle"].used == 1
    assert uses["cyclist"].matched == 0
    assert uses["cyclist"].errors["position"].mean is None


def test_each_token_starts_from_the_state_that_the_last_one_led_to(
    make_scenario: MakeScenario,
) -> None:
    """One token, a turn of 0.1 rad on the spot, for pedestrians who stand still."""
    motion = np.zeros((3, 1, 6, 4, 2), np.float32)
    for index, (length, width) in enumerate(CLASS_SIZE):
        for step in range(6):
            motion[index, 0, step] = box(0, 0, 0.02 * step, length, width)
    vocabulary = Vocabulary(motion, rule_curves(3, np.random.default_rng(0)))
    scenario = make_scenario(n_tracks=1, speed=0.0, object_types=(2,), tracks_to_predict=())
    errors = reconstruct([scenario], vocabulary)["pedestrian"].errors
    assert errors["heading"].mean == pytest.approx(0.1 * 9.5, abs=1e-4)
    assert errors["heading_10hz"].mean == pytest.approx(0.02 * 45.5, abs=1e-4)
    assert errors["position"].n == 18
    assert errors["moving_position"].n == 0


def test_errors_of_the_map_are_those_of_middles_and_ends(make_scenario: MakeScenario) -> None:
    straight = np.stack([0.5 * np.arange(11), np.zeros(11)], axis=-1)
    shorter = 0.8 * straight
    vocabulary = Vocabulary(small_vocabulary().motion, np.float32([shorter]))
    points = [(0.0, 0.5 * i) for i in range(42)]
    use = reconstruct([make_scenario(road_edges=[points])], vocabulary)["map curve"]
    assert (use.matched, use.used) == (4, 1.0)
    assert use.errors["position"].mean == pytest.approx((0.5 + 1.0) / 2, abs=1e-4)


def test_scenes_of_the_test_split_are_reconstructed(
    make_scenario: MakeScenario, small: Vocabulary
) -> None:
    use = reconstruct([make_scenario(n_steps=11)], small)["vehicle"]
    assert use.matched == 6
    assert use.errors["position_10hz"].n == 30


def test_the_default_vocabulary_tells_synthetic_scenes_well(default: Vocabulary) -> None:
    uses = reconstruct(generate_scenarios(2, seed=77), default)
    for name in CLASSES:
        if uses[name].matched:
            mean = uses[name].errors["position"].mean
            assert mean is not None
            assert mean < 0.04
    assert uses["vehicle"].matched > 100
    curve = uses["map curve"].errors["position"].mean
    assert curve is not None
    assert curve < 0.05


def test_there_must_be_scenes_to_check_with(small: Vocabulary) -> None:
    with pytest.raises(WosacError, match="no scenes"):
        reconstruct([], small)


# The command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["tokens", *map(str, arguments)])


@pytest.mark.usefixtures("few_rules")
def test_build_and_check(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "v.safetensors"
    few = ("--n-motion", 60, "--n-map", 30, "--workers", 1)
    built = run("build", "--data", scenes, "--out", out, *few)
    assert built.exit_code == 0, built.output
    fingerprint = load_vocabulary(out).fingerprint()
    assert fingerprint in built.stdout
    assert str(out) in built.stdout

    checked = run("check", "--vocabulary", out, "--data", scenes, "--format", "json")
    assert checked.exit_code == 0, checked.output
    content = json.loads(checked.stdout)
    assert content["vocabulary"] == fingerprint
    assert content["n_scenes"] == 4
    assert set(content["matched"]) == {*CLASSES, "map curve"}
    vehicle = content["matched"]["vehicle"]
    assert 0 < vehicle["used"] <= 1
    assert vehicle["matched"] == vehicle["errors"]["position"]["n"] > 0
    assert 0 <= vehicle["errors"]["position"]["p50"] <= vehicle["errors"]["position"]["max"]


def test_check_prints_a_table_of_the_default_vocabulary(scenes: Path) -> None:
    checked = run("check", "--data", scenes, "--scenes", 1)
    assert checked.exit_code == 0, checked.output
    lines = checked.stdout.splitlines()
    assert lines[0].split() == ["error", "n", "mean", "50", "%", "95", "%", "99", "%", "max"]
    assert any(line.startswith("pedestrian heading, 10 Hz (rad)") for line in lines)
    assert any(line.startswith("map curve position (m)") for line in lines)
    assert f"vocabulary {DEFAULT_FINGERPRINT}, 1 scene" in checked.stdout
    assert "share of the vocabulary in use: vehicle" in checked.stdout


def test_wrong_usage_and_input_are_told_in_one_line(scenes: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("build", "--data", scenes, "--out", tmp_path / "v.pkl"), "end it .safetensors"),
        (("build", "--data", tmp_path / "none", "--out", tmp_path / "v.safetensors"), "none"),
        (("build", "--data", scenes, "--out", tmp_path / "v", "--tolerance", 0, 1, 1), "x>0"),
        (("check", "--data", scenes, "--vocabulary", tmp_path / "no.pkl"), "cannot be read"),
        (("check", "--data", scenes, "--map", tmp_path / "no.pkl"), "--map goes with"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, smart_r1.cli.tokens; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Parity with the public code


def load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    content: dict[str, torch.Tensor] = load_file(path)
    return content


def cleaned(raw: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cleaned tracks in the global frame."""
    motion = Motion(
        raw["agent/position"].double().numpy(),
        raw["agent/heading"].double().numpy(),
        raw["agent/velocity"].double().numpy(),
        raw["agent/valid_mask"].numpy(),
    )
    states = clean(motion)
    position, heading, valid = tensors(states.position, states.heading, states.valid)
    return position, heading, valid


def scenes_of(raw: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    numbers = sorted({key.split("/")[0] for key in raw})
    return [
        {key[2:]: value for key, value in raw.items() if key.startswith(f"{number}/")}
        for number in numbers
    ]


@pytest.fixture(scope="module")
def small_tables(smart_fixtures_dir: Path) -> Vocabulary:
    folder = smart_fixtures_dir / "synthetic_small"
    return load_vocabulary(folder / "agent_vocab_synth.pkl", folder / "map_vocab_synth.pkl")


@pytest.fixture(scope="module")
def catk_tables(smart_fixtures_dir: Path) -> Vocabulary:
    folder = smart_fixtures_dir / "vocabulary"
    return load_vocabulary(folder / "agent_vocab_555_s2.pkl", folder / "map_traj_token5.pkl")


@pytest.fixture(scope="module")
def nano(smart_fixtures_dir: Path) -> dict[str, torch.Tensor]:
    folder = smart_fixtures_dir / "smart_nano_1M"
    return {
        **load(smart_fixtures_dir / "raw_scenario_tensors.safetensors"),
        **{
            f"tokens/{key}": value
            for key, value in load(folder / "tokens_eval.safetensors").items()
        },
        **{
            f"open/{key}": value
            for key, value in load(folder / "open_loop_eval.safetensors").items()
        },
    }


@pytest.mark.womd
def test_vocabularies_of_catk_are_read_to_the_bit(
    smart_fixtures_dir: Path,
    small_tables: Vocabulary,
    catk_tables: Vocabulary,
    nano: dict[str, Any],
) -> None:
    tables = load(smart_fixtures_dir / "synthetic_small/vocab.safetensors")
    for index, name in enumerate(("veh", "ped", "cyc")):
        expected = tables[f"token_all/{name}"].numpy()
        np.testing.assert_array_equal(small_tables.motion[index], expected)
        expected = nano[f"tokens/agent/trajectory_token_{name}"].numpy()
        np.testing.assert_array_equal(catk_tables.motion[index, :, -1].reshape(2048, 8), expected)
    np.testing.assert_array_equal(small_tables.curves, tables["map/traj_src"].numpy())
    curves = nano["tokens/map/token_traj_src"].numpy()
    np.testing.assert_array_equal(catk_tables.curves.reshape(1024, 22), curves)


@pytest.mark.womd
@pytest.mark.parametrize("name", ["sparse", "dense_cap"])
def test_made_up_scenes_have_exactly_their_tokens(
    smart_fixtures_dir: Path, small_tables: Vocabulary, name: str
) -> None:
    folder = smart_fixtures_dir / "synthetic_small"
    theirs = load(folder / f"{name}_eval_indexorder.safetensors")
    raw = scenes_of(load(folder / f"{name}_raw.safetensors"))
    position, heading, valid = (torch.cat(parts) for parts in zip(*map(cleaned, raw), strict=True))
    classes = torch.cat([scene["agent/type"] for scene in raw]).long()
    ours = tokenize(position, heading, valid, classes, torch.from_numpy(small_tables.motion))
    assert torch.equal(ours.valid, theirs["agent/valid_mask"])
    assert torch.equal(ours.index, theirs["agent/gt_idx"].where(ours.valid, 0))
    torch.testing.assert_close(ours.position, theirs["agent/gt_pos"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(ours.heading, theirs["agent/gt_heading"], rtol=0, atol=1e-5)

    points = torch.cat([scene["map_save/traj_pos"] for scene in raw])
    angles = torch.cat([scene["map_save/traj_theta"] for scene in raw])
    matched = match_curves(points, angles, torch.from_numpy(small_tables.curves))
    assert torch.equal(matched, theirs["map/token_idx"])


@pytest.mark.womd
def test_a_real_scene_has_their_map_tokens(catk_tables: Vocabulary, nano: dict[str, Any]) -> None:
    points, heading = nano["map_save/traj_pos"], nano["map_save/traj_theta"]
    matched = match_curves(points, heading, torch.from_numpy(catk_tables.curves))
    assert torch.equal(matched, nano["tokens/map/token_idx"])


@pytest.mark.womd
def test_a_real_scene_has_their_tokens_but_for_ties(
    catk_tables: Vocabulary, nano: dict[str, Any]
) -> None:
    """From the same states. They match in the global frame, where one float32 step is 0.5 mm."""
    position, heading, valid = cleaned(nano)
    theirs, motion = nano["tokens/agent/gt_idx"], torch.from_numpy(catk_tables.motion)
    agent, k = torch.nonzero(valid[:, 1:] & valid[:, :-1], as_tuple=True)
    rolls = (k > 0) & (valid[:, :-1].roll(1, dims=1) & valid[:, :-1])[agent, k]
    start = nano["tokens/agent/gt_pos"][agent, k - 1].where(rolls[:, None], position[agent, k])
    facing = nano["tokens/agent/gt_heading"][agent, k - 1].where(rolls, heading[agent, k])
    way, turn = (position[agent, k + 1] - start).double(), heading[agent, k + 1] - facing
    cos, sin = facing.double().cos(), facing.double().sin()
    local = torch.stack([way[:, 0] * cos + way[:, 1] * sin, way[:, 1] * cos - way[:, 0] * sin], -1)
    classes = nano["agent/type"].long()[agent]
    ours = nearest_tokens(local.float(), turn, classes, motion)
    differ = torch.nonzero(ours != theirs[agent, k])[:, 0]
    assert len(differ) <= 3
    for row in differ.tolist():
        goal = box(*local[row].tolist(), float(turn[row]), *CLASS_SIZE[classes[row]])
        ends = catk_tables.motion[classes[row], :, -1]
        apart = np.linalg.norm(ends - goal, axis=-1).sum(axis=-1)
        assert apart[theirs[agent[row], k[row]]] - apart[ours[row]] < 4 * 0.001


@pytest.mark.womd
def test_a_real_scene_is_tokenized_as_well_in_its_local_frame(
    catk_tables: Vocabulary, nano: dict[str, Any]
) -> None:
    position, heading, valid = cleaned(nano)
    sdc = int(nano["agent/role"][:, 0].long().argmax())
    position = (position - position[sdc, 2]) * valid[..., None]
    tokens = tokenize(
        position, heading, valid, nano["agent/type"].long(), torch.from_numpy(catk_tables.motion)
    )
    assert torch.equal(tokens.valid, nano["tokens/agent/valid_mask"])
    off = (tokens.position - position[:, 1:]).norm(dim=-1)[tokens.valid]
    theirs = (nano["tokens/agent/gt_pos"] - nano["tokens/agent/gt_pos_raw"]).norm(dim=-1)
    theirs = theirs[tokens.valid]
    assert abs(float(off.mean() - theirs.mean())) < 0.001
    assert abs(float(off.max() - theirs.max())) < 0.01


@pytest.mark.womd
def test_targets_are_theirs(catk_tables: Vocabulary, nano: dict[str, Any]) -> None:
    goal = nano["open/target_xyyaw"].flatten(0, 1)
    classes = nano["agent/type"].long().repeat_interleave(16)
    motion = torch.from_numpy(catk_tables.motion)
    ours = nearest_tokens(goal[:, :2], goal[:, 2], classes, motion)
    assert torch.equal(ours.view(50, 16), nano["open/target_idx"])


@pytest.mark.womd
@pytest.mark.parametrize("name", ["rollout_greedy", "rollout_catk32_eval"])
def test_tokens_play_out_as_theirs(
    smart_fixtures_dir: Path, catk_tables: Vocabulary, nano: dict[str, Any], name: str
) -> None:
    rollout = load(smart_fixtures_dir / f"smart_nano_1M/{name}.safetensors")
    classes, motion = nano["agent/type"].long(), torch.from_numpy(catk_tables.motion)
    for k in range(1, 17):
        way, ways = play_out(
            rollout["pred_idx"][:, k + 1],
            rollout["pred_pos"][:, k],
            rollout["pred_head"][:, k],
            classes,
            motion,
        )
        steps = slice(5 * (k - 1), 5 * k)
        torch.testing.assert_close(way, rollout["pred_traj_10hz"][:, steps], rtol=0, atol=2e-3)
        off = ways - rollout["pred_head_10hz"][:, steps]
        assert torch.atan2(off.sin(), off.cos()).abs().max() < 1e-3
