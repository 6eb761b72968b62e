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


def oracle_tokens(
    position: Array, heading: Array, valid: Array, index: int, motion: Array
) -> list[tuple[int, float, float, float] | None]:
    """The tokens of one track as the specification says it, in float64: index, state; None."""
    ends = motion[index, :, -1].astype(np.float64)
    length, width = CLASS_SIZE[index]
    state = (*position[0], heading[0])
    tokens: list[tuple[int, float, float, float] | None] = []
    for k in range(18):
        goal = (*position[k + 1], heading[k + 1])
        if not (valid[k] and valid[k + 1]):
            tokens.append(None)
            state = goal
            continue
        cos, sin = np.cos(state[2]), np.sin(state[2])
        placed = ends @ np.array([[cos, sin], [-sin, cos]]) + state[:2]
        apart = np.linalg.norm(placed - box(*goal, length, width), axis=-1).sum(axis=-1)
        chosen = int(np.argmin(apart))
        front = placed[chosen, 0] - placed[chosen, 3]
        state = (*placed[chosen].mean(axis=0), np.arctan2(front[1], front[0]))
        tokens.append((chosen, *state))
    return tokens


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
    motion, curves = write_pickles(tmp_path, small)
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
        (lambda a: {**a, "motion": a["motion"][0, 0, 0, 0, 0]}, r"motion is float32 \[\]"),
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


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_matching_rolls_as_specified(small: Vocabulary, seed: int) -> None:
    position, heading, valid, classes = random_tracks(6, seed)
    tokens = tokenize(*tensors(position, heading, valid, classes, small.motion))
    for agent in range(6):
        expected = oracle_tokens(
            position[agent].astype(np.float64),
            heading[agent].astype(np.float64),
            valid[agent],
            int(classes[agent]),
            small.motion,
        )
        for k, token in enumerate(expected):
            index, state = tokens.index[agent, k], tokens.position[agent, k]
            assert bool(tokens.valid[agent, k]) == (token is not None)
            if token is None:
                assert (index, *state, tokens.heading[agent, k]) == (0, 0, 0, 0)
                continue
            assert int(index) == token[0]
            np.testing.assert_allclose(state, token[1:3], atol=1e-4)
            off = float(tokens.heading[agent, k]) - token[3]
            assert abs(np.angle(np.exp(1j * off))) < 1e-5


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    turn=st.floats(-3, 3),
    shift=st.tuples(st.floats(-100, 100), st.floats(-100, 100)),
)
def test_what_tokens_play_out_is_matched_to_these_tokens_anywhere(
    small: Vocabulary, seed: int, turn: float, shift: tuple[float, float]
) -> None:
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
        cos, sin = np.cos(heading[row]), np.sin(heading[row])
        for step in range(5):
            corners = small.motion[classes[row], index[row], step + 1].astype(np.float64)
            placed = corners @ np.array([[cos, sin], [-sin, cos]]) + start[row]
            np.testing.assert_allclose(way[row, step], placed.mean(axis=0), atol=1e-4)
            front = placed[0] - placed[3]
            off = float(ways[row, step]) - np.arctan2(front[1], front[0])
            assert abs(np.angle(np.exp(1j * off))) < 1e-5


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
        ends = small.motion[classes[agent], :, -1].astype(np.float64)
        for k in range(18):
            cos, sin = np.cos(state[2]), np.sin(state[2])
            placed = ends @ np.array([[cos, sin], [-sin, cos]]) + np.array(state[:2])
            goal = box(
                *position[agent, k + 1], heading[agent, k + 1], *CLASS_SIZE[classes[agent]]
            )
            apart = np.linalg.norm(placed - goal, axis=-1).mean(axis=-1)
            chosen = int(tokens.index[agent, k])
            ranks.append(int((apart < apart[chosen] - 1e-4).sum()))
            state = (*tokens.position[agent, k].tolist(), float(tokens.heading[agent, k]))
            np.testing.assert_allclose(state[:2], placed[chosen].mean(axis=0), atol=1e-3)
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


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_curve_of_the_vocabulary_is_matched_to_itself_anywhere(
    default: Vocabulary, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    index = rng.integers(0, 1024, 100)  # more than are held at a time
    heading = rng.uniform(-3, 3, 100)
    points = placed_curves(default.curves[index], rng.uniform(-99, 99, (100, 2)), heading)[:, ::5]
    chosen = match_curves(*tensors(np.float32(points), np.float32(heading), default.curves))
    np.testing.assert_allclose(default.curves[chosen][:, ::5], default.curves[index][:, ::5], atol=0.01)


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
