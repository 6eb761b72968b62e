"""Prepared scenes: the folder they are kept in, and the batches they come in."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from click.testing import CliRunner  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from smart_r1 import cache  # noqa: E402
from smart_r1.batching import (  # noqa: E402
    SceneBatch,
    collate,
    plan_batches,
    scene_costs,
    trained_agents,
)
from smart_r1.cache import SceneCache, prepare_dataset, split  # noqa: E402
from smart_r1.cli import main  # noqa: E402
from smart_r1.scene_tensors import SceneTensors, scene_tensors  # noqa: E402
from smart_r1.shard import write_shard  # noqa: E402
from wosac_toolkit.errors import FormatError, WosacError  # noqa: E402
from wosac_toolkit.io.scenarios import load_scenarios, write_scenarios  # noqa: E402
from wosac_toolkit.scenario import Scenario  # noqa: E402

MakeScenario = Callable[..., Scenario]

# Not sorted: a cache has the order of the scenario files.
NAMES = ["delta", "alpha", "echo", "bravo", "charlie", "foxtrot", "golf"]


def assert_equal(a: SceneTensors, b: SceneTensors) -> None:
    """Bit for bit."""
    for field in fields(SceneTensors):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if field.name in ("logged", "in_range"):
            pairs = [(getattr(one, n), getattr(other, n)) for n in ("position", "heading", "valid")]
        else:
            pairs = [(one, other)]
        for x, y in pairs:
            assert np.array_equal(x, y), field.name
            assert getattr(x, "dtype", None) == getattr(y, "dtype", None), field.name


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.fixture(scope="module")
def scenarios(
    tmp_path_factory: pytest.TempPathFactory, make_scenario: MakeScenario
) -> tuple[Path, list[Scenario]]:
    """Scenes of 1 to 40 agents, with maps of no pieces and more, in two files."""
    folder = tmp_path_factory.mktemp("scenarios")
    x = np.arange(0.0, 40.0, 0.7)
    scenes = [
        replace(
            make_scenario(
                scenario_id=name,
                n_tracks=n,
                origin=(1000.0 * i, -1000.0),
                tracks_to_predict=[n - 1],
                road_edges=[] if i == 2 else None,
                lanes={k: np.stack([x[: 20 * i] + 1000 * i, x[: 20 * i]], 1) for k in range(i)},
            ),
            sdc_track_index=n // 2,
        )
        for i, (name, n) in enumerate(zip(NAMES, [3, 1, 40, 7, 12, 2, 5], strict=True))
    ]
    write_scenarios(folder, scenes, 2)
    return folder, list(load_scenarios(folder))


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, scenarios: tuple[Path, list[Scenario]]
) -> Path:
    """The same, prepared, two a shard."""
    out = tmp_path_factory.mktemp("cache") / "cache"
    prepare_dataset(str(scenarios[0]), out, workers=1, scenes_per_shard=2)
    return out


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    """A cache to be damaged."""
    shutil.copytree(prepared, tmp_path / "copied")
    return tmp_path / "copied"


# --------------------------------------------------------------------------------------------------
# The cache


def test_a_cache_gives_back_the_tensors(
    prepared: Path, scenarios: tuple[Path, list[Scenario]]
) -> None:
    found = SceneCache(prepared)
    assert len(found) == 7
    assert found.scenario_ids == tuple(s.scenario_id for s in scenarios[1])
    for scene, scenario in zip(found, scenarios[1], strict=True):
        assert_equal(scene, scene_tensors(scenario))
    assert found.agent_counts.tolist() == [len(s.classes) for s in found]
    assert found.map_counts.tolist() == [len(s.map_type) for s in found]
    assert 0 in found.map_counts


def test_a_cache_is_a_sequence(prepared: Path) -> None:
    found = SceneCache(prepared)
    assert_equal(found[-1], found[6])
    assert [s.scenario_id for s in found[1:5:2]] == [found.scenario_ids[1], found.scenario_ids[3]]
    for index in (7, -8):
        with pytest.raises(IndexError):
            found[index]


def test_some_of_the_scenes(prepared: Path) -> None:
    whole = SceneCache(prepared)
    some = whole.select([5, 2]).select(np.array([1, 0]))
    assert some.scenario_ids == (whole.scenario_ids[2], whole.scenario_ids[5])
    assert some.agent_counts.tolist() == whole.agent_counts[[2, 5]].tolist()
    assert some.map_counts.tolist() == whole.map_counts[[2, 5]].tolist()
    assert_equal(some[1], whole[5])
    assert len(some) == 2
    assert len(whole) == 7


def test_a_cache_can_be_pickled_and_forked(prepared: Path) -> None:
    found = SceneCache(prepared)
    expected = found[3]
    assert_equal(pickle.loads(pickle.dumps(found))[3], expected)
    if (child := os.fork()) == 0:
        try:
            assert_equal(found[3], expected)
            assert_equal(found[6], SceneCache(prepared)[6])
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    prepared: Path, scenarios: tuple[Path, list[Scenario]], tmp_path: Path
) -> None:
    prepare_dataset(str(scenarios[0]), tmp_path / "two", workers=2, scenes_per_shard=2)
    assert content(tmp_path / "two") == content(prepared)


@pytest.mark.parametrize("scenes_per_shard", [1, 3, 256])
def test_the_scenes_do_not_depend_on_the_shards(
    prepared: Path, scenarios: tuple[Path, list[Scenario]], tmp_path: Path, scenes_per_shard: int
) -> None:
    folder = tmp_path / "cache"
    prepare_dataset(str(scenarios[0]), folder, workers=1, scenes_per_shard=scenes_per_shard)
    assert len(list(folder.glob("scenes-*"))) == math.ceil(7 / scenes_per_shard)
    for one, other in zip(SceneCache(folder), SceneCache(prepared), strict=True):
        assert_equal(one, other)


# --------------------------------------------------------------------------------------------------
# Preparing: interrupted, repeated, asked for something else


def test_an_interrupted_preparation_resumes(
    prepared: Path,
    scenarios: tuple[Path, list[Scenario]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed_at_the_third(path: Path, *args: Any) -> None:
        if path.name == "scenes-00002.safetensors":
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        write_shard(path, *args)

    out = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_shard", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            prepare_dataset(str(scenarios[0]), out, workers=1, scenes_per_shard=2)
    assert sorted(content(out)) == [
        "cache.json",
        "scenes-00000.safetensors",
        "scenes-00001.safetensors",
    ]
    with pytest.raises(WosacError, match="has not finished"):
        SceneCache(out)
    before = (out / "scenes-00000.safetensors").stat()

    done = prepare_dataset(str(scenarios[0]), out, workers=1, scenes_per_shard=2)
    assert (done.n_scenarios, done.n_kept, done.findings) == (7, 4, [])
    assert content(out) == content(prepared)
    after = (out / "scenes-00000.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_finished_preparation_has_nothing_left_to_do(
    prepared: Path, copied: Path, scenarios: tuple[Path, list[Scenario]]
) -> None:
    done = prepare_dataset(str(scenarios[0]), copied, workers=1, scenes_per_shard=2)
    assert (done.n_scenarios, done.n_kept) == (7, 7)
    assert content(copied) == content(prepared)


def test_another_request_into_the_same_folder(
    copied: Path,
    scenarios: tuple[Path, list[Scenario]],
    make_scenario: MakeScenario,
    tmp_path: Path,
) -> None:
    with pytest.raises(WosacError, match="differs in scenes_per_shard"):
        prepare_dataset(str(scenarios[0]), copied, workers=1, scenes_per_shard=3)
    write_scenarios(tmp_path / "others", [make_scenario()], 1)
    with pytest.raises(WosacError, match=r"differs in scenarios, .*scenario_ids, n_scenarios"):
        prepare_dataset(str(tmp_path / "others"), copied, workers=1, scenes_per_shard=2)


def test_a_folder_of_other_things(scenarios: tuple[Path, list[Scenario]], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(WosacError, match="did not write"):
        prepare_dataset(str(scenarios[0]), tmp_path, workers=1)


def test_no_scenes(tmp_path: Path) -> None:
    (tmp_path / "a.tfrecord").write_bytes(b"")
    with pytest.raises(WosacError, match="hold no scene"):
        prepare_dataset(str(tmp_path / "a.tfrecord"), tmp_path / "out")


@pytest.mark.parametrize("scenes_per_shard", [0, -1])
def test_shards_of_no_scenes(tmp_path: Path, scenes_per_shard: int) -> None:
    with pytest.raises(WosacError, match="scenes_per_shard must be at least 1"):
        prepare_dataset("anything", tmp_path, scenes_per_shard=scenes_per_shard)


# --------------------------------------------------------------------------------------------------
# Preparing: scenes that fail


def spoiled(scenario: Scenario) -> Scenario:
    position = scenario.tracks.position.copy()
    position[0, 20, 1] = np.nan
    return replace(scenario, tracks=replace(scenario.tracks, position=position))


def test_scenes_that_fail_are_named_and_left_out(
    make_scenario: MakeScenario, tmp_path: Path
) -> None:
    scenes = [make_scenario(scenario_id=name) for name in NAMES]
    write_scenarios(tmp_path / "bad", [*scenes[:3], spoiled(scenes[3]), *scenes[4:]], 1)
    (file,) = (tmp_path / "bad").iterdir()
    damaged = bytearray(file.read_bytes())
    damaged[-20] ^= 1  # the last record
    file.write_bytes(damaged)

    out = tmp_path / "cache"
    done = prepare_dataset(str(file), out, workers=1, scenes_per_shard=2)
    assert [(f.code, f.scenario_id) for f in done.findings] == [
        ("not_prepared", "bravo"),
        ("not_prepared", "golf"),
    ]
    assert str(done.findings[0]).startswith("scenario bravo: object 10: its y is nan at step 20")
    assert "checksum" in done.findings[1].what
    assert SceneCache(out).scenario_ids == ("delta", "alpha", "echo", "charlie", "foxtrot")
    assert SceneCache(out)[3].scenario_id == "charlie"

    # Asked again, it tells the same; once the file is mended, the rest is made.
    again = prepare_dataset(str(file), out, workers=1, scenes_per_shard=2)
    assert again.findings == done.findings
    assert again.n_kept == 4
    damaged[-20] ^= 1
    file.write_bytes(damaged)
    mended = prepare_dataset(str(file), out, workers=1, scenes_per_shard=2)
    assert [f.scenario_id for f in mended.findings] == ["bravo"]
    assert SceneCache(out)[-1].scenario_id == "golf"


def test_defects_of_ours_are_findings_too(
    make_scenario: MakeScenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(scenario: Scenario) -> SceneTensors:
        if scenario.scenario_id == "alpha":
            raise ZeroDivisionError("oh")
        return scene_tensors(scenario)

    monkeypatch.setattr("smart_r1.scene_tensors.scene_tensors", defective)
    write_scenarios(tmp_path / "s", [make_scenario(scenario_id=name) for name in NAMES[:3]], 1)
    done = prepare_dataset(str(tmp_path / "s"), tmp_path / "cache", workers=1)
    assert [(f.code, f.what) for f in done.findings] == [
        ("internal_error", "ZeroDivisionError: oh")
    ]
    assert SceneCache(tmp_path / "cache").scenario_ids == ("delta", "echo")


def test_a_cache_of_no_scenes(make_scenario: MakeScenario, tmp_path: Path) -> None:
    write_scenarios(tmp_path / "s", [spoiled(make_scenario())], 1)
    done = prepare_dataset(str(tmp_path / "s"), tmp_path / "cache")
    assert len(done.findings) == 1
    with pytest.raises(WosacError, match="no scene could be prepared"):
        SceneCache(tmp_path / "cache")


# --------------------------------------------------------------------------------------------------
# Reading what is not as it was written


def rewrite(path: Path, **changes: Any) -> None:
    """Write a shard or index anew with some tensors changed; None drops one."""
    tensors = {**load_file(path), **changes}
    tensors = {name: array for name, array in tensors.items() if array is not None}
    save_file(tensors, path, {"left_out": "[]"})


def test_a_folder_that_is_no_cache(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(WosacError, match="no prepared scenes are here"):
            SceneCache(folder)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("not JSON", "not a JSON file"),
        ("[]", "format version None"),
        ('{"format_version": 99}', "format version 99"),
        ('{"format_version": 1, "scenarios": 7}', "'scenarios' is 7"),
    ],
)
def test_a_damaged_request(copied: Path, text: str, what: str) -> None:
    (copied / "cache.json").write_text(text)
    with pytest.raises(FormatError, match=what):
        SceneCache(copied)


@pytest.mark.parametrize("n_bytes", [0, 7, 100])
@pytest.mark.parametrize("name", ["index.safetensors", "scenes-00001.safetensors"])
def test_a_truncated_file(copied: Path, name: str, n_bytes: int) -> None:
    (copied / name).write_bytes((copied / name).read_bytes()[:n_bytes])
    with pytest.raises(FormatError, match=name):
        SceneCache(copied)[2]


def test_a_header_that_claims_too_much(copied: Path) -> None:
    path = copied / "scenes-00000.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(FormatError, match="scenes-00000"):
        SceneCache(copied)[0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"agent_offsets": np.array([0, 5, 3])}, "'agent_offsets'"),
        ({"agent_offsets": np.array([1, 2, 3])}, "'agent_offsets'"),
        ({"agent_offsets": np.array([0, 1])}, "'agent_offsets'"),
        ({"agent_offsets": np.array([0, 1, 10**12])}, r"'object_ids' is int64 \[\d+\]"),
        ({"agent_offsets": np.array([0.0, 1.0, 2.0])}, "'agent_offsets' is float64"),
        ({"map_offsets": np.array([0, -1, 3])}, "'map_offsets'"),
        ({"map_points": np.zeros((4, 3, 2), np.float32)}, "'map_points'"),
        ({"classes": None}, "no tensor 'classes'"),
        ({"classes": np.zeros(43, np.int64)}, "'classes' is int64"),
        ({"origin": np.zeros((3, 2))}, "'origin'"),
        ({"origin": np.full((2, 2), np.nan)}, "'origin'"),
        ({"scenario_ids": np.array(7, np.uint8)}, "'scenario_ids'"),
        ({"scenario_ids": None}, "no tensor 'scenario_ids'"),
        ({"scenario_ids": np.full((2, 5), 0xFF, np.uint8)}, "not text"),
        ({"scenario_ids": np.full((2, 5), ord("x"), np.uint8)}, "is not where it was"),
    ],
)
def test_a_shard_that_was_tampered_with(copied: Path, changes: Any, what: str) -> None:
    rewrite(copied / "scenes-00000.safetensors", **changes)
    with pytest.raises(FormatError, match=what) as error:
        SceneCache(copied)[0]
    assert "scenes-00000.safetensors" in error.value.where
    assert error.value.mend


@pytest.mark.parametrize("header", ["{}", "[1]", '["ab"]', "no"])
def test_a_shard_with_another_header(copied: Path, header: str) -> None:
    path = copied / "scenes-00000.safetensors"
    save_file(load_file(path), path, {"left_out": header} if header != "{}" else {})
    with pytest.raises(FormatError, match="no list 'left_out'"):
        SceneCache(copied)[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", 3),
        ("classes", -1),
        ("map_type", 10),
        ("map_polygon", 4),
        ("map_light", 5),
        ("map_points", np.nan),
        ("logged.position", np.inf),
        ("in_range.heading", np.nan),
        ("size", np.nan),
    ],
)
def test_values_that_no_scene_has_are_found_where_they_are(
    copied: Path, name: str, value: float
) -> None:
    arrays = load_file(copied / "scenes-00001.safetensors")
    array, starts = arrays[name], arrays["map_offsets" if name[:3] == "map" else "agent_offsets"]
    assert 0 < starts[1] < starts[2]
    array[starts[1]] = value
    rewrite(copied / "scenes-00001.safetensors", **{name: array})
    found = SceneCache(copied)
    assert found[2].scenario_id == found.scenario_ids[2]
    with pytest.raises(FormatError, match=f"scenario {found.scenario_ids[3]}: .*{name!r}"):
        found[3]


@pytest.mark.parametrize(
    "changes",
    [
        {"agent_counts": np.ones(6, np.int64)},
        {"map_counts": np.ones((7, 1), np.int64)},
        {"shard_offsets": np.array([0, 2, 4, 6, 8])},
        {"shard_offsets": np.array([0, 4, 2, 6, 7])},
        {"shard_offsets": np.zeros(0, np.int64)},
        {"scenario_ids": None},
    ],
)
def test_an_index_that_was_tampered_with(copied: Path, changes: Any) -> None:
    rewrite(copied / "index.safetensors", **changes)
    with pytest.raises(FormatError, match=r"index\.safetensors"):
        SceneCache(copied)


def test_a_shard_of_another_cache(copied: Path) -> None:
    shutil.copy(copied / "scenes-00000.safetensors", copied / "scenes-00001.safetensors")
    with pytest.raises(FormatError, match="is not where it was"):
        SceneCache(copied)[2]


# --------------------------------------------------------------------------------------------------
# Training and validation


IDS = st.lists(st.text("0123456789abcdef", min_size=14, max_size=18), unique=True, max_size=40)


@given(IDS, st.floats(0, 1), st.floats(0, 1))
def test_a_split_by_hash(ids: list[str], fraction: float, larger: float) -> None:
    training, validation = split(ids, fraction)
    assert sorted([*training, *validation]) == list(range(len(ids)))
    assert sorted(training) == list(training)
    held_out = {ids[i] for i in validation}
    # Whatever the others are, and the more the larger the fraction.
    assert {i for i in ids[::2] if split([i], fraction)[1].size} == held_out & set(ids[::2])
    grown = {ids[i] for i in split(ids, max(fraction, larger))[1]}
    assert held_out <= grown


@given(st.lists(st.text("0123456789abcdef", min_size=16, max_size=16), min_size=1, max_size=9))
def test_windows_of_a_scene_are_on_one_side(scenes: list[str]) -> None:
    for window in ("00", "01", "13"):
        windows = [scene + window for scene in scenes]
        assert split(windows, 0.5)[0].tolist() == split(scenes, 0.5)[0].tolist()


def test_a_split_has_about_the_fraction() -> None:
    ids = [f"{i:016x}" for i in range(4000)]
    assert len(split(ids, 0.1)[1]) == pytest.approx(400, abs=60)
    assert len(split(ids, 0.0)[1]) == 0
    assert len(split(ids, 1.0)[0]) == 0
    assert [a.dtype for a in split([], 0.5)] == [np.int64, np.int64]


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_a_fraction_that_is_none(fraction: float) -> None:
    with pytest.raises(WosacError, match="from 0 to 1"):
        split(["a"], fraction)


# --------------------------------------------------------------------------------------------------
# Batches: joining scenes


def test_scenes_follow_each_other(prepared: Path) -> None:
    scenes = list(SceneCache(prepared))
    batch = collate(scenes, view="logged")
    assert batch.scenario_ids == tuple(s.scenario_id for s in scenes)
    assert len(batch) == 7
    assert batch.agent_counts == tuple(len(s.classes) for s in scenes)
    assert batch.map_counts == tuple(len(s.map_type) for s in scenes)
    agents = np.cumsum([0, *batch.agent_counts])
    pieces = np.cumsum([0, *batch.map_counts])
    for i, scene in enumerate(scenes):
        mine, its = slice(*agents[i : i + 2]), slice(*pieces[i : i + 2])
        assert np.array_equal(batch.origin[i], scene.origin)
        for name in ("object_ids", "classes", "size", "z", "roles"):
            assert np.array_equal(getattr(batch, name)[mine], getattr(scene, name)), name
        for name in ("position", "heading", "valid"):
            assert np.array_equal(getattr(batch, name)[mine], getattr(scene.logged, name)), name
        for name in ("map_points", "map_heading", "map_type", "map_polygon", "map_light"):
            assert np.array_equal(getattr(batch, name)[its], getattr(scene, name)), name
    for name in ("object_ids", "classes", "map_type", "map_polygon", "map_light"):
        assert getattr(batch, name).dtype == torch.int64
    assert batch.origin.dtype == torch.float64
    assert batch.position.dtype == batch.map_points.dtype == torch.float32
    assert batch.train_mask.all()


def test_the_view_is_chosen(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(n_tracks=60)  # 236 m wide
    scene = scene_tensors(scenario)
    logged, near = collate([scene], view="logged"), collate([scene], view="in_range")
    assert logged.valid.all()
    assert near.valid.any(dim=1).sum() == 38
    assert np.array_equal(near.position, scene.in_range.position)


def test_a_batch_moves_to_a_device(prepared: Path) -> None:
    batch = collate(SceneCache(prepared)[:2], view="logged")
    moved = batch.to("meta")
    assert moved.scenario_ids == batch.scenario_ids
    assert moved.agent_counts == batch.agent_counts
    tensors = [f.name for f in fields(SceneBatch) if torch.is_tensor(getattr(batch, f.name))]
    assert len(tensors) == 15
    for name in tensors:
        assert getattr(moved, name).is_meta
        assert getattr(moved, name).dtype == getattr(batch, name).dtype


def crowd(make_scenario: MakeScenario, n: int, roles: int) -> SceneTensors:
    """`n` agents that may be learned: the first is the SDC, the last `roles` - 1 are to predict."""
    scene = scene_tensors(make_scenario(n_tracks=n, tracks_to_predict=range(n - roles + 1, n)))
    return replace(scene, trainable=np.ones(n, bool))


@pytest.mark.parametrize("roles", [1, 5, 20])
def test_of_many_agents_32_are_learned(make_scenario: MakeScenario, roles: int) -> None:
    scene = crowd(make_scenario, 60, roles)
    scene = replace(scene, trainable=np.arange(60) != 7)
    drawn = np.array([trained_agents(scene, np.random.default_rng(i)) for i in range(200)])
    assert (drawn.sum(axis=1) == 32).all()
    assert drawn[:, scene.roles.any(axis=1)].all()
    assert not drawn[:, 7].any()
    others = np.delete(drawn, [7, *np.flatnonzero(scene.roles.any(axis=1))], axis=1)
    # Each of the others as often as any other.
    share = (32 - roles) / others.shape[1]
    assert np.abs(others.mean(axis=0) - share).max() < 0.16


def test_few_agents_are_all_learned(make_scenario: MakeScenario) -> None:
    scene = replace(crowd(make_scenario, 20, 3), trainable=np.arange(20) != 7)
    mask = trained_agents(scene, np.random.default_rng(0))
    assert np.array_equal(mask, scene.trainable)


def test_more_roles_than_32_are_all_learned(make_scenario: MakeScenario) -> None:
    scene = crowd(make_scenario, 60, 40)
    mask = trained_agents(scene, np.random.default_rng(0))
    assert np.array_equal(mask, scene.roles.any(axis=1))
    assert mask.sum() == 40


def test_each_scene_draws_with_its_own_random_numbers(make_scenario: MakeScenario) -> None:
    scenes = [crowd(make_scenario, 60, 3)] * 2
    mask = collate(
        scenes, view="in_range", rngs=[np.random.default_rng(i) for i in (5, 6)]
    ).train_mask
    for i, drawn in zip((5, 6), mask.split(60), strict=True):
        assert np.array_equal(drawn, trained_agents(scenes[0], np.random.default_rng(i)))
    assert not np.array_equal(mask[:60], mask[60:])


# --------------------------------------------------------------------------------------------------
# Batches: packing


@given(costs=st.lists(st.integers(0, 100), max_size=60), budget=st.integers(1, 300))
@settings(deadline=None, max_examples=60)
def test_packing(costs: list[int], budget: int) -> None:
    array = np.array(costs, np.int64)
    plan = plan_batches(array, budget)
    # Every scene once, in order, within the budget.
    assert [i for batch in plan for i in batch] == list(range(len(costs)))
    for batch in plan:
        assert len(batch) >= 1
        assert array[list(batch)].sum() <= budget or len(batch) == 1
    # No batch is closed before it is full.
    for one, following in pairwise(plan):
        assert array[[*one, following[0]]].sum() > budget


def test_a_batch_may_cost_the_whole_budget() -> None:
    costs = np.array([2, 2, 2, 2, 9, 1], np.int64)
    plan = plan_batches(costs, 4)
    assert [list(batch) for batch in plan] == [[0, 1], [2, 3], [4], [5]]


def test_a_budget_that_no_scene_fits() -> None:
    with pytest.raises(WosacError, match="no scene fits"):
        plan_batches(np.ones(2, np.int64), 0)


def test_what_a_scene_costs(prepared: Path) -> None:
    found = SceneCache(prepared)
    expected = [2600 * len(s.classes) + 28 * len(s.map_type) for s in found]
    assert scene_costs(found).tolist() == expected


# --------------------------------------------------------------------------------------------------
# The command


def test_the_command_prepares(scenarios: tuple[Path, list[Scenario]], tmp_path: Path) -> None:
    arguments = ["prepare", "--scenarios", str(scenarios[0]), "--out", str(tmp_path / "cache")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"7 scenes prepared: {tmp_path / 'cache'}\n"
    assert len(SceneCache(tmp_path / "cache")) == 7
    again = CliRunner().invoke(main, arguments)
    assert "resumed: 7 of 7 scenes were prepared before" in again.stderr
    assert again.stdout == result.stdout


def test_the_command_names_what_fails(make_scenario: MakeScenario, tmp_path: Path) -> None:
    scenes = [spoiled(make_scenario(scenario_id="bad")), make_scenario(scenario_id="good")]
    write_scenarios(tmp_path / "s", scenes, 1)
    arguments = ["prepare", "--scenarios", str(tmp_path / "s"), "--out", str(tmp_path / "cache")]
    result = CliRunner().invoke(main, [*arguments, "--scenes-per-shard", "1"])
    assert result.exit_code == 1
    assert result.stdout == f"1 scene prepared, 1 left out: {tmp_path / 'cache'}\n"
    assert "scenario bad: object 10: its y is nan at step 20" in result.stderr
    assert SceneCache(tmp_path / "cache").scenario_ids == ("good",)


def test_wrong_usage_of_the_command(tmp_path: Path) -> None:
    arguments = ["prepare", "--scenarios", str(tmp_path / "none"), "--out", str(tmp_path / "c")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("smart-r1: error: ")
    assert not (tmp_path / "c").exists()


def test_the_request_is_kept(prepared: Path, scenarios: tuple[Path, list[Scenario]]) -> None:
    request = json.loads((prepared / "cache.json").read_text())
    assert request["scenarios"] == str(scenarios[0])
    assert request["n_scenarios"] == 7
    assert request["scenes_per_shard"] == 2
    assert request["format_version"] == 1
