from __future__ import annotations

import csv
import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from wosac_toolkit import __version__, scoring
from wosac_toolkit.attributes import SceneAttributes
from wosac_toolkit.challenge import CHALLENGES
from wosac_toolkit.cli import _COMMANDS, main
from wosac_toolkit.cli.tables import FORMATS, Table, render, summary_text
from wosac_toolkit.io.npz import read_npz
from wosac_toolkit.io.rollouts import load_rollouts
from wosac_toolkit.manifest import Manifest, read_manifest, write_manifest
from wosac_toolkit.results import SCORE_FIELDS, Request, SceneResult, read_run, summarise

ROOT = Path(__file__).parents[1]


def wosac(*args: object, **env: str) -> Result:
    names = {"WOSAC_SCENARIOS": None, **env}
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="wosac", env=names)


def in_a_process(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wosac_toolkit.cli", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    result = wosac("synth", "--n", 4, "--seed", 3, "--out", folder, "--shards", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"4 scenes generated: {folder}\n"
    return folder


@pytest.fixture(scope="module")
def rollouts(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollouts")
    result = wosac(
        "simulate", "--policy", "constant_velocity", "--scenarios", scenes, "--out", folder
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"4 scenes simulated: {folder}\n"
    return folder


@pytest.fixture
def own_rollouts(rollouts: Path, tmp_path: Path) -> Path:
    """A copy of the rollouts that a test may spoil."""
    folder = tmp_path / "rollouts"
    folder.mkdir()
    for path in rollouts.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


# --------------------------------------------------------------------------------------------------
# Help


def test_help_lists_the_commands_without_importing_anything_heavy() -> None:
    code = (
        "import sys\n"
        "from wosac_toolkit.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print([m for m in ('numba', 'numpy', 'pandas', 'pyarrow') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for name in _COMMANDS:
        assert re.search(rf"^  {name}  ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_line_of_a_command_in_the_list_is_that_of_its_own_help(name: str) -> None:
    context = click.Context(main)
    command = main.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(200) == _COMMANDS[name][1]


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_help_for_each_option_and_an_example(name: str) -> None:
    result = wosac(name, "--help")
    assert result.exit_code == 0
    assert f"  wosac {name} " in result.output.split("Examples:")[1] + " "
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None)


def test_version() -> None:
    assert wosac("--version").output == f"wosac {__version__}\n"


# --------------------------------------------------------------------------------------------------
# score


def test_score_finds_the_scenes_by_the_manifest_and_prints_a_table(rollouts: Path) -> None:
    result = wosac("score", rollouts)
    assert result.exit_code == 0, result.output
    assert str(rollouts) not in result.stdout
    rows = dict(re.findall(r"^ *(\w+) +([\d.]+)$", result.stdout, re.MULTILINE))
    assert len(rows) == 19
    for name in ("realism_meta_metric", "kinematic_metrics", "interactive_metrics"):
        assert re.fullmatch(r"0\.\d{4}", rows[name])
    assert "4 scenes, 32 rollouts each" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(
        rf"signature: wosac\|metric:2025\|rollouts:32\|scenes:4\|list:[0-9a-f]{{8}}"
        rf"\|version:{re.escape(__version__)}",
        last,
    )
    # Progress with rate goes to stderr.
    assert "4/4" in result.stderr
    assert "scenes/s" in result.stderr
    assert "\x1b" not in result.stdout


def test_score_finds_the_scenes_by_the_environment(own_rollouts: Path, scenes: Path) -> None:
    (own_rollouts / "manifest.json").unlink()
    result = wosac("score", own_rollouts, WOSAC_SCENARIOS=str(scenes))
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(f"scenes: {scenes}\n")


def test_score_says_in_one_line_what_is_missing(own_rollouts: Path) -> None:
    (own_rollouts / "manifest.json").unlink()
    result = wosac("score", own_rollouts)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"wosac: error: {own_rollouts}: no --scenarios PATH")
    assert "WOSAC_SCENARIOS" in result.stderr


def test_the_formats_agree(rollouts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    printed = {
        name: wosac("score", rollouts, "--out", run, "--format", name).stdout for name in FORMATS
    }
    assert printed["json"] == (run / "summary.json").read_text()
    summary = json.loads(printed["json"])
    rows = list(csv.DictReader(printed["csv"].splitlines()))
    assert [row["metric"] for row in rows][:2] == ["realism_meta_metric", "kinematic_metrics"]
    means = {**summary["metrics"], **summary["buckets"]}
    for row in rows:
        assert float(row["value"]) == means[row["metric"]]
        assert row["scenes"] == "4"
        assert row["signature"] == summary["signature"]
        shown = f"{means[row['metric']]:.4f}"
        assert re.search(rf"^ *{row['metric']} +{shown}$", printed["table"], re.MULTILINE)
        assert re.search(rf"{row['metric']} \| {shown} \|", printed["markdown"])
        latex = row["metric"].replace("_", r"\_")
        assert f"{latex} & {shown} \\\\" in printed["latex"]
    assert summary["signature"] in printed["markdown"]
    assert f"% signature: {summary['signature']}" in printed["latex"]


def test_a_finished_run_says_so(rollouts: Path, tmp_path: Path) -> None:
    first = wosac("score", rollouts, "--out", tmp_path / "run")
    second = wosac("score", rollouts, "--out", tmp_path / "run")
    assert second.exit_code == 0
    assert "nothing was scored again" in second.stderr
    assert second.stdout == first.stdout
    third = wosac("score", rollouts, "--out", tmp_path / "run", "--challenge", "2024")
    assert third.exit_code == 2
    assert "finished run that differs in challenge" in third.stderr
    fourth = wosac(
        *("score", rollouts, "--out", tmp_path / "run", "--challenge", "2024", "--overwrite")
    )
    assert fourth.exit_code == 0
    assert "metric:2024" in fourth.stdout
    assert "traffic_light_violation_likelihood" not in fourth.stdout


def test_rows_of_agents_are_written_where_they_are_asked_for(
    rollouts: Path, tmp_path: Path
) -> None:
    result = wosac("score", rollouts, "--out", tmp_path / "run", "--per-agent", "--workers", 1)
    assert result.exit_code == 0
    run = read_run(tmp_path / "run")
    agents = run.agents()
    counts = agents.groupby("scenario_id", sort=False).size()
    assert counts.tolist() == run.scores["n_evaluated_agents"].tolist()
    assert set(agents["object_type"]) <= {1, 2, 3}
    # The likelihood of a scene is that of its agents, weighted by their valid steps.
    name = "linear_speed"
    scene = agents[agents["scenario_id"] == run.scores["scenario_id"][0]]
    mean = np.average(
        scene[f"{name}_log_likelihood"], weights=scene[f"{name}_n_valid_steps"].to_numpy(float)
    )
    assert np.exp(mean) == pytest.approx(run.scores[f"{name}_likelihood"][0])


def test_scenario_ids_are_read_from_a_file(rollouts: Path, tmp_path: Path) -> None:
    names = sorted(path.stem for path in rollouts.glob("*.npz"))
    (tmp_path / "ids.txt").write_text(f"# two scenes\n{names[0]}\n\n  {names[2]}  # a comment\n")
    result = wosac("score", rollouts, "--scenario-ids", tmp_path / "ids.txt", "--format", "json")
    assert json.loads(result.stdout)["n_scenarios"] == 2


def test_limit(rollouts: Path) -> None:
    result = wosac("score", rollouts, "--limit", 1, "--format", "json")
    assert json.loads(result.stdout)["n_scenarios"] == 1


def test_findings_are_lines_on_stderr_and_the_exit_code_is_2(own_rollouts: Path) -> None:
    first, second, *_ = sorted(own_rollouts.glob("*.npz"))
    good = read_npz(first)
    good.states[3, 1, 5, 0] = np.nan
    np.savez(first, object_ids=good.object_ids, states=good.states)
    good = read_npz(second)
    np.savez(second, object_ids=good.object_ids[1:], states=good.states[:, 1:])
    result = wosac("score", own_rollouts)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()[-3:]
    place = f"  {first}: scenario {first.stem}: rollout 3: object {read_npz(first).object_ids[1]}: "
    assert lines[0].startswith(place)
    missing = f"  {second}: scenario {second.stem}: object {good.object_ids[0]}: has no trajectory"
    assert lines[1].startswith(missing)
    assert lines[2].startswith("wosac: error: 2 scenarios that cannot be scored (")
    assert "Traceback" not in result.stderr


def test_missing_rollouts_are_an_error_or_counted(own_rollouts: Path) -> None:
    path = next(own_rollouts.glob("*.npz"))
    path.unlink()
    refused = wosac("score", own_rollouts)
    assert refused.exit_code == 2
    assert f"1 scenario without rollouts ({path.stem})" in refused.stderr
    assert "--missing intersect" in refused.stderr
    passed = wosac("score", own_rollouts, "--missing", "intersect")
    assert passed.exit_code == 0
    assert "passed over: scenarios without rollouts 1, rollouts without scenario 0" in passed.stdout


def test_another_number_of_rollouts_must_be_asked_for(scenes: Path, tmp_path: Path) -> None:
    simulated = wosac(
        *("simulate", "--policy", "constant_turn_rate", "--scenarios", scenes),
        *("--out", tmp_path, "--n", 2),
    )
    assert simulated.exit_code == 0
    refused = wosac("score", tmp_path)
    assert refused.exit_code == 2
    assert "2 rollouts where 32 are expected" in refused.stderr
    scored = wosac("score", tmp_path, "--rollouts", "any")
    assert scored.exit_code == 0
    assert "|rollouts:2|" in scored.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["score"], "Missing argument 'ROLLOUTS'"),
        (["score", "x", "--challenge", "2022"], "'2022' is not one of"),
        (["score", "x", "--workers", "0"], "0 is not in the range"),
        (["score", "x", "--rollouts", "16"], "'16' is not one of '32', 'any'"),
        (["score", "x", "--scenario-ids", "/no/such/file"], "does not exist"),
        (["simulate", "--out", "x"], "Missing option '--policy'"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_usage_has_exit_code_2(args: list[str], message: str) -> None:
    result = wosac(*args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_path_that_does_not_exist_is_one_line(scenes: Path) -> None:
    result = wosac("score", "/no/such/rollouts", "--scenarios", scenes)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("wosac: error: /no/such/rollouts: ")
    assert result.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_to_is_one_line(rollouts: Path) -> None:
    result = wosac("score", rollouts, "--out", "/proc/no/run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("wosac: error: /proc/no")
    assert "Traceback" not in result.stderr


def test_an_interruption_says_that_the_run_resumes(
    rollouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "score_dataset", interrupted)
    result = wosac("score", rollouts, "--out", tmp_path)
    assert result.exit_code == 130
    line = result.stderr.splitlines()[-1]
    assert line == (
        f"wosac: interrupted: what is scored is kept in {tmp_path}, and the same command resumes"
    )
    without_out = wosac("score", rollouts)
    assert without_out.exit_code == 130
    assert "nothing was kept" in without_out.stderr


def test_scenes_that_a_mean_leaves_out_are_told_with_the_reason() -> None:
    nan = {"time_to_collision_likelihood", "metametric", "interactive_metrics"}
    bad = tuple(math.nan if name in nan else 0.25 for name in SCORE_FIELDS)
    reason = {"time_to_collision_likelihood": "no vehicle"}
    attributes = SceneAttributes(2, 0, 0, True, True, 5.0, "straight")
    scenes = [
        SceneResult("good", (0.25,) * len(SCORE_FIELDS), 32, 9, 2, attributes),
        SceneResult("bad", bad, 32, 9, 2, attributes, reason),
    ]
    request = Request("2025", "", "0.1.0", "r", "", "s", "", 32, False, None, None, "error")
    text = summary_text(summarise(scenes, request, CHALLENGES["2025"]), "table")
    assert text.splitlines()[0].split() == ["metric", "value", "scenes"]
    assert re.search(r"^realism_meta_metric +0.2500 +1$", text, re.MULTILINE)
    assert re.search(r"^min_ade +0.2500 +2$", text, re.MULTILINE)
    assert (
        "left out of time_to_collision_likelihood, interactive_metrics, realism_meta_metric: "
        "1 of 2 scenes, no vehicle (bad)"
    ) in text
    assert "|scenes:2|left_out:1|" in text


def test_nothing_is_left_out_of_a_table_in_silence() -> None:
    table = Table(("metric", "value"), [(0, ("a_b", 0.5)), (1, ("c", None))], ["a note"])
    assert render(table, "table").splitlines() == [
        "metric   value",
        "--------------",
        "a_b     0.5000",
        "  c        n/a",
        "",
        "a note",
    ]
    assert render(table, "csv") == "metric,value\na_b,0.5\nc,"
    assert "| a_b | 0.5000 |" in render(table, "markdown")
    assert r"\quad c & n/a \\" in render(table, "latex")
    assert r"a\_b & 0.5000 \\" in render(table, "latex")


# --------------------------------------------------------------------------------------------------
# True processes


def test_a_reader_that_goes_away_is_no_error_of_ours(rollouts: Path, tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m wosac_toolkit.cli score '{rollouts}' --format json | true"
    script = f"set -o pipefail\n{command}\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_two_workers_print_what_one_prints(rollouts: Path) -> None:
    one, two = (in_a_process("score", rollouts, "--workers", n) for n in (1, 2))
    assert one.returncode == two.returncode == 0, two.stderr
    assert one.stdout == two.stdout


def test_the_parent_of_workers_needs_neither_kernels_nor_pandas(
    rollouts: Path, tmp_path: Path
) -> None:
    arguments = ["score", rollouts, "--workers", 2, "--out", tmp_path / "run", "--per-agent"]
    code = (
        "import sys\n"
        "from wosac_toolkit.cli import main\n"
        f"main({list(map(str, arguments))}, standalone_mode=False)\n"
        "print([m for m in ('numba', 'pandas') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_ctrl_c_in_a_true_process_and_the_same_command_resumes(
    rollouts: Path, tmp_path: Path
) -> None:
    args = ["score", str(rollouts), "--out", str(tmp_path / "run"), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wosac_toolkit.cli", *args],
        cwd=ROOT,
        # A shell that runs tests in the background lets them ignore Ctrl-C, and so their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = tmp_path / "run" / ".partial" / "journal.jsonl"
    while not journal.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].endswith("and the same command resumes")
    assert in_a_process(*args).returncode == 0
    assert len(read_run(tmp_path / "run").scores) == 4


# --------------------------------------------------------------------------------------------------
# simulate


def test_the_manifest_tells_how_the_rollouts_were_made(rollouts: Path, scenes: Path) -> None:
    assert read_manifest(rollouts) == Manifest(
        scenarios=str(scenes),
        policy="constant_velocity",
        seed=0,
        n_rollouts=32,
        n_scenarios=4,
        format="npz",
        toolkit_version=__version__,
    )
    # And beside a file as well.
    assert read_manifest(next(rollouts.glob("*.npz"))) == read_manifest(rollouts)


def simulate(scenes: Path, out: Path, *args: object) -> Result:
    return wosac(
        *("simulate", "--policy", "constant_velocity", "--scenarios", scenes, "--out", out), *args
    )


def test_a_simulation_goes_on_where_it_stopped(own_rollouts: Path, scenes: Path) -> None:
    kept, lost, *_ = sorted(own_rollouts.glob("*.npz"))
    before, data = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    result = simulate(scenes, own_rollouts)
    assert result.stdout == f"1 scene simulated, 3 were there already: {own_rollouts}\n"
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == data


def test_rollouts_of_another_simulation_are_not_mixed_in(own_rollouts: Path, scenes: Path) -> None:
    result = simulate(scenes, own_rollouts, "--seed", 1)
    assert result.exit_code == 2
    assert "rollouts that differ in seed" in result.stderr
    (own_rollouts / "manifest.json").unlink()
    result = simulate(scenes, own_rollouts)
    assert result.exit_code == 2
    assert "wosac simulate did not write" in result.stderr


def test_shards_hold_the_same_rollouts_as_files(
    rollouts: Path, scenes: Path, tmp_path: Path
) -> None:
    result = simulate(scenes, tmp_path, "--format", "submission", "--workers", 2)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        "rollouts.binproto-00000-of-00001",
    ]
    for one in load_rollouts(tmp_path):
        other = read_npz(rollouts / f"{one.scenario_id}.npz")
        np.testing.assert_array_equal(one.object_ids, other.object_ids)
        np.testing.assert_array_equal(one.states, other.states)


def test_scenes_that_cannot_be_simulated_are_named(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wosac_toolkit import baselines
    from wosac_toolkit.errors import ScenarioError

    def refuse(scenario: Any, *_: object) -> None:
        raise ScenarioError("no future", where=f"scenario {scenario.scenario_id}")

    monkeypatch.setattr(baselines, "simulate_baseline", refuse)
    result = simulate(scenes, tmp_path, "--workers", 1)
    assert result.exit_code == 2
    assert result.stderr.count(": no future") == 4
    assert result.stderr.splitlines()[-1] == "wosac: error: 4 of 4 scenes could not be simulated"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"schema_version": 7}', "schema version 7 is unknown"),
        ('{"schema_version": 1}', "'scenarios' must be text, not None"),
    ],
)
def test_a_damaged_manifest_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    result = wosac("score", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert f"wosac: error: {tmp_path}/manifest.json: {message}" in result.stderr


def test_a_manifest_is_read_back_as_written_and_true_is_no_number(tmp_path: Path) -> None:
    manifest = Manifest("/scenes", "log", 0, 32, 5, "npz", "0.1.0")
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"seed": 0', '"seed": true'))
    result = wosac("score", tmp_path)
    assert "'seed' must be a whole number, not True" in result.stderr


# --------------------------------------------------------------------------------------------------
# synth, warmup


def test_synth_gives_the_same_bytes_for_the_same_seed(scenes: Path, tmp_path: Path) -> None:
    args = ("synth", "--n", 4, "--seed", 3, "--shards", 2, "--out", tmp_path)
    assert wosac(*args).exit_code == 0
    assert wosac(*args).exit_code == 0
    for path in scenes.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_synth_does_not_mix_with_other_scenes(scenes: Path) -> None:
    result = wosac("synth", "--n", 4, "--out", scenes)
    assert result.exit_code == 2
    assert "the folder holds other scenes: synthetic.tfrecord-00000-of-00002" in result.stderr


def test_warmup_clears_the_cache_of_this_package_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wosac_toolkit import warmup

    mine = [tmp_path / "kernel.nbi", tmp_path / "kernel.1.nbc"]
    for path in mine:
        path.touch()
    called = []
    monkeypatch.setattr(warmup, "cache_files", lambda: [path for path in mine if path.exists()])
    monkeypatch.setattr(warmup, "warm_up", lambda: called.append(True))
    result = wosac("warmup")
    assert result.exit_code == 0, result.output
    assert all(path.exists() for path in mine)
    result = wosac("warmup", "--clear")
    assert "2 files of compiled kernels deleted" in result.stdout
    assert not any(path.exists() for path in mine)
    assert called == [True, True]


def test_the_cache_files_are_those_of_our_kernels(rollouts: Path) -> None:
    from wosac_toolkit.warmup import cache_files

    assert wosac("score", rollouts, "--limit", 1, "--workers", 1).exit_code == 0
    files = cache_files()
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    beside_the_sources = (ROOT / "wosac_toolkit").glob("**/__pycache__/*.nb[ic]")
    assert set(beside_the_sources) <= set(files)
