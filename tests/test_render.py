"""Pictures of scenes."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
from PIL import Image  # noqa: E402

from wosac_toolkit import Rollouts, Scenario, WosacError, simulate_baseline  # noqa: E402
from wosac_toolkit.explain import Event, explain_scenario  # noqa: E402
from wosac_toolkit.render import draw_scene, render_scene  # noqa: E402
from wosac_toolkit.scenario import MapFeatureKind, SignalState  # noqa: E402

SIMULATED, COLLISION, OFFROAD, RED_LIGHT = "#0072b2", "#d55e00", "#cc79a7", "#e69f00"
STOP, CAUTION, GO = "#d55e00", "#f0e442", "#009e73"
COLLIDES = Event("collision", 1, 10, 29, 40, partner_id=11, distance=-1.0)
LEAVES = Event("offroad", None, 11, 9, 12, feature_id=1000, distance=0.5)

MakeScenario = Callable[..., Scenario]


@pytest.fixture(scope="module")
def scene(make_scenario: MakeScenario) -> Scenario:
    """Three vehicles, a signal that turns from stop to go after 4 s."""
    x, y = 1e4, -2e4
    lanes = {i: np.array([[x + d, y + 4 * i] for d in np.arange(-20, 80, 0.5)]) for i in range(3)}
    stop, go = SignalState.STOP, SignalState.GO
    signals = [[(1, stop if step < 50 else go, (x + 30, y + 4))] for step in range(91)]
    return make_scenario(n_tracks=3, lanes=lanes, signals=signals, origin=(x, y))


@pytest.fixture(scope="module")
def rollouts(scene: Scenario) -> Rollouts:
    return simulate_baseline(scene, "constant_velocity", 4)


def pixels(png: bytes) -> Any:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def count(png: bytes, colour: str, tolerance: int = 2) -> int:
    """How many pixels of a picture have a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    near = np.abs(pixels(png).astype(int) - wanted).max(axis=2) <= tolerance
    return int(near.sum())


def plain(scene: Scenario, rollouts: Rollouts | None = None, **options: Any) -> bytes:
    """A picture without the legend, whose colours are those of what is drawn."""
    return draw_scene(scene, rollouts, **{"legend": False, **options})


# --------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (960, 720)),
        ({"width": 481, "height": 333, "legend": False}, (481, 333)),
        ({"width": 480, "height": 360, "scale": 2}, (960, 720)),
    ],
)
def test_a_picture_has_the_size_asked_for(
    scene: Scenario, rollouts: Rollouts, options: dict[str, Any], size: tuple[int, int]
) -> None:
    height, width, _ = pixels(draw_scene(scene, rollouts, **options)).shape
    assert (width, height) == size


def test_the_background_is_light(scene: Scenario, rollouts: Rollouts) -> None:
    assert np.median(pixels(draw_scene(scene, rollouts))) > 225


def test_the_same_input_gives_the_same_bytes(scene: Scenario, rollouts: Rollouts) -> None:
    events = [COLLIDES, LEAVES]
    pictures = {draw_scene(scene, rollouts, events=events, rollout=1) for _ in range(2)}
    assert len(pictures) == 1


def test_settings_of_the_user_neither_show_nor_change(scene: Scenario, rollouts: Rollouts) -> None:
    before = draw_scene(scene, rollouts, events=[COLLIDES], rollout=1)
    mine: dict[str, Any] = {
        "font.size": 30, "font.family": "serif", "figure.facecolor": "black", "text.color": "red",
        "axes.facecolor": "black", "lines.linewidth": 9, "lines.markersize": 20,
        "patch.linewidth": 5, "legend.fontsize": 30, "legend.frameon": True, "savefig.dpi": 30,
        "figure.dpi": 30, "figure.autolayout": True, "axes.grid": True, "legend.numpoints": 3,
        "figure.frameon": False, "lines.antialiased": False, "patch.antialiased": False,
        "text.antialiased": False, "text.usetex": True, "lines.solid_capstyle": "round",
        "font.style": "italic", "markers.fillstyle": "none", "lines.marker": "x",
    }  # fmt: skip
    with matplotlib.rc_context(mine):
        settings = dict(matplotlib.rcParams)
        assert draw_scene(scene, rollouts, events=[COLLIDES], rollout=1) == before
        assert dict(matplotlib.rcParams) == settings


def test_neither_pyplot_nor_a_display_is_used() -> None:
    code = (
        "import sys\n"
        "from wosac_toolkit import generate_scenarios, simulate_baseline\n"
        "from wosac_toolkit.render import draw_scene\n"
        "assert 'matplotlib' not in sys.modules\n"
        "[scene] = generate_scenarios(1, seed=0)\n"
        "draw_scene(scene, simulate_baseline(scene, 'constant_velocity', 2))\n"
        "assert 'matplotlib' in sys.modules\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_simulated_boxes_are_filled_and_logged_ones_are_not(
    scene: Scenario, rollouts: Rollouts
) -> None:
    assert count(plain(scene), SIMULATED, 40) == 0
    assert count(plain(scene, rollouts, rollout=0), SIMULATED, 40) > 100


@pytest.mark.parametrize(("shift", "left", "right"), [(-40.0, 0.15, 0.35), (40.0, 0.65, 0.85)])
def test_a_box_has_the_place_and_shape_of_its_object(
    make_scenario: MakeScenario, shift: float, left: float, right: float
) -> None:
    """One that stands still in the log, and 40 m to one side of it in the simulation."""
    scenario = make_scenario(n_tracks=1, tracks_to_predict=(), speed=0.0)
    log = simulate_baseline(scenario, "log", 1)
    apart = replace(log, states=log.states + np.float32([shift, 0, 0, 0]))
    # At the current step a simulation stands where the log does.
    red, green, blue = np.moveaxis(pixels(plain(scenario, apart)).astype(int), 2, 0)
    rows, columns = np.nonzero((blue - red > 90) & (green < 160))
    # The path from there has the same colour, but is thin.
    of_box = np.flatnonzero(np.bincount(columns, minlength=960) > 8)
    assert left * 960 < of_box.mean() < right * 960
    in_box = np.isin(columns, of_box)
    assert np.ptp(of_box) / np.ptp(rows[in_box]) == pytest.approx(4.5 / 2.0, rel=0.1)
    assert abs(rows[in_box].mean() - 370) < 10


def test_signals_have_the_colour_and_shape_of_their_step(scene: Scenario) -> None:
    before, after = plain(scene, at=3.9), plain(scene, at=4.0)
    assert count(before, STOP) > 20
    assert count(before, GO) == 0
    assert count(after, GO) > 20
    assert count(after, STOP) == 0


def test_every_state_of_a_signal_can_be_drawn(make_scenario: MakeScenario) -> None:
    lanes = {i: [(0.0, i), (50.0, i)] for i in range(9)}
    states = [[(i, i, (10.0 + 3 * i, 4.0)) for i in range(9)]] * 91
    picture = plain(make_scenario(lanes=lanes, signals=states), width=1200, height=900)
    assert min(count(picture, colour) for colour in (STOP, CAUTION, GO)) > 20


def test_an_event_is_marked_once_it_has_begun(scene: Scenario, rollouts: Rollouts) -> None:
    def marked(at: float, rollout: int | None) -> int:
        dark = replace(scene, traffic_lights=replace(scene.traffic_lights, step_offsets=[0]))
        return count(plain(dark, rollouts, events=[COLLIDES], rollout=rollout, at=at), COLLISION)

    # Step 29 is 3 s after the current step.
    assert marked(2.9, 1) == 0
    assert marked(3.0, 1) > marked(5.0, 1) > 20
    assert marked(3.0, None) > 10
    assert marked(3.0, 0) == 0


def test_kinds_of_events_differ(scene: Scenario, rollouts: Rollouts) -> None:
    red = Event("red_light", 1, 12, 5, 5, feature_id=1)
    events = [LEAVES, replace(LEAVES, rollout=1), red]
    picture = plain(scene, rollouts, events=events, rollout=1)
    assert count(picture, OFFROAD) > 20
    assert count(picture, RED_LIGHT) > 10


def test_the_legend_tells_what_is_there_and_takes_room(scene: Scenario, rollouts: Rollouts) -> None:
    bare = draw_scene(scene, rollouts, legend=False)
    events = [COLLIDES]
    assert draw_scene(scene, rollouts) != bare
    dark = replace(scene, traffic_lights=replace(scene.traffic_lights, step_offsets=[0]))
    with_event = draw_scene(dark, rollouts, events=events, at=0)
    assert count(with_event, COLLISION) > 0  # in the legend alone: it has not begun


def test_paths_grow_with_time(scene: Scenario, rollouts: Rollouts) -> None:
    drawn = [
        (pixels(plain(scene, rollouts, rollout=0, at=at)) < 120).all(axis=2).sum() for at in (0, 8)
    ]
    assert drawn[0] < drawn[1]


def test_a_scene_without_a_future_or_a_map_can_be_drawn(make_scenario: MakeScenario) -> None:
    test_split = make_scenario(n_steps=11)
    rollouts = simulate_baseline(test_split, "constant_velocity", 3)
    assert count(plain(test_split, rollouts, rollout=0), SIMULATED, 40) > 100
    draw_scene(test_split)
    empty = make_scenario(road_edges=[])
    assert not len(empty.road_map.kinds)
    draw_scene(empty, simulate_baseline(empty, "log", 1))


def test_objects_that_the_log_loses_or_finds_can_be_drawn(scene: Scenario) -> None:
    valid = scene.tracks.valid.copy()
    valid[1, 30:] = False
    valid[2, :30] = False
    holes = replace(scene, tracks=replace(scene.tracks, valid=valid))
    rollouts = simulate_baseline(holes, "log", 2)
    assert rollouts.object_ids.tolist() == [10, 11]
    for at in (0, 4, 8):
        draw_scene(holes, rollouts, at=at)


@pytest.mark.parametrize("kind", [k for k in MapFeatureKind if k != MapFeatureKind.NONE])
def test_every_kind_of_map_feature_shows(make_scenario: MakeScenario, kind: MapFeatureKind) -> None:
    square = [(0.0, -12.0), (10.0, -12.0), (10.0, -20.0), (0.0, -20.0)]
    scenario = make_scenario(road_edges=[square])
    kinds = np.array([kind], np.int8)
    other = replace(scenario, road_map=replace(scenario.road_map, kinds=kinds))
    nothing = replace(scenario, road_map=replace(scenario.road_map, kinds=kinds * 0))
    assert draw_scene(other, legend=False) != draw_scene(nothing, legend=False)


def test_a_hundred_agents_in_32_rollouts(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(n_tracks=100, tracks_to_predict=list(range(1, 9)))
    rollouts = simulate_baseline(scenario, "constant_velocity", 32)
    explanation = explain_scenario(scenario, rollouts)
    png = draw_scene(scenario, rollouts, events=explanation.events + explanation.log_events)
    assert count(png, "#ffffff") > 10_000


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"at": -0.1}, "no moment -0.1 s"),
        ({"at": 8.1}, "no moment 8.1 s.*give one from 0 to 8"),
        ({"rollout": 4}, "no rollout 4.*the 4 rollouts count from 0"),
        ({"rollout": -1}, "no rollout -1"),
        ({"width": 99}, "99 x 720 pixels shows nothing .at least 100 each way"),
    ],
)
def test_what_is_not_there_cannot_be_drawn(
    scene: Scenario, rollouts: Rollouts, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(WosacError, match=told):
        draw_scene(scene, rollouts, **options)


def test_rollouts_of_another_scene_are_refused(scene: Scenario, rollouts: Rollouts) -> None:
    with pytest.raises(WosacError, match="rollouts of scenario other"):
        draw_scene(scene, replace(rollouts, scenario_id="other"))


# --------------------------------------------------------------------------------------------------
# Files


def test_a_png_has_a_panel_for_each_moment(
    scene: Scenario, rollouts: Rollouts, tmp_path: Path
) -> None:
    pictures = {}
    for at in ((), (8.0,), (0.0, 4.0, 8.0)):
        path = tmp_path / "scene.png"
        render_scene(path, scene, rollouts, at=at, width=600, height=450)
        pictures[at] = path.read_bytes()
        assert pixels(pictures[at]).shape == (450, 600, 3)
    assert pictures[()] == pictures[(8.0,)] != pictures[(0.0, 4.0, 8.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


def short(rollouts: Rollouts) -> Rollouts:
    """Two seconds of it: 21 frames."""
    return replace(rollouts, states=rollouts.states[:, :, :20])


def test_a_gif_plays_in_real_time(scene: Scenario, rollouts: Rollouts, tmp_path: Path) -> None:
    path = tmp_path / "scene.gif"
    render_scene(path, scene, short(rollouts), rollout=0, width=320, height=240)
    with Image.open(path) as film:
        assert film.format == "GIF"
        assert film.size == (320, 240)
        assert film.n_frames == 21
        assert film.info["loop"] == 0
        durations, frames = [], []
        for number in range(21):
            film.seek(number)
            durations.append(film.info["duration"])
            frames.append(np.asarray(film.convert("RGB")))
    assert set(durations) == {100}
    assert not np.array_equal(frames[0], frames[20])
    again = tmp_path / "again.gif"
    render_scene(again, scene, short(rollouts), rollout=0, width=320, height=240)
    assert again.read_bytes() == path.read_bytes()


def fake_ffmpeg(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_an_mp4_is_what_ffmpeg_makes_of_all_frames_of_even_size(
    scene: Scenario, rollouts: Rollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "frames = sys.stdin.buffer.read()\n"
        "open(sys.argv[-1], 'w').write(f'{len(frames)} {\" \".join(sys.argv[1:-1])}')"
    )
    fake_ffmpeg(tmp_path / "bin", script, monkeypatch)
    path = tmp_path / "scene.mp4"
    render_scene(path, scene, short(rollouts), rollout=0, width=161, height=121)
    n_bytes, *arguments = path.read_text().split()
    assert int(n_bytes) == 21 * 160 * 120 * 3
    assert arguments[arguments.index("-s") + 1] == "160x120"
    assert arguments[arguments.index("-r") + 1] == "10"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "scene.mp4"]


@pytest.mark.parametrize(
    "script",
    [
        "sys.exit('no encoder')",
        "sys.stdin.buffer.read()\nopen(sys.argv[-1], 'w').write('half')\nsys.exit('no encoder')",
    ],
)
def test_what_ffmpeg_says_is_told_and_nothing_is_left(
    scene: Scenario, rollouts: Rollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    script: str,
) -> None:  # fmt: skip
    fake_ffmpeg(tmp_path / "bin", script, monkeypatch)
    with pytest.raises(WosacError, match="ffmpeg failed with exit code 1: no encoder"):
        render_scene(tmp_path / "scene.mp4", scene, short(rollouts), width=160, height=120)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_without_ffmpeg_an_mp4_is_refused_with_a_mend(
    scene: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WosacError, match=r"takes ffmpeg, which is not installed \(.*\.gif\)"):
        render_scene(tmp_path / "scene.mp4", scene)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg")
def test_a_real_mp4(scene: Scenario, rollouts: Rollouts, tmp_path: Path) -> None:
    path = tmp_path / "scene.mp4"
    render_scene(path, scene, short(rollouts), rollout=0, width=320, height=240)
    assert path.read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("name", "at", "told"),
    [
        ("scene.jpeg", (), "cannot be drawn as .jpeg"),
        ("scene", (), "cannot be drawn as a file without suffix"),
        ("scene.gif", (1.0,), "a film shows all moments"),
        ("scene.png", (1.0, 9.0), "no moment 9 s"),
    ],
)
def test_what_cannot_be_drawn_is_told_and_leaves_nothing(
    scene: Scenario, tmp_path: Path, name: str, at: tuple[float, ...], told: str
) -> None:
    with pytest.raises(WosacError, match=told):
        render_scene(tmp_path / name, scene, at=at)
    assert not list(tmp_path.iterdir())
