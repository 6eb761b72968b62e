"""`wosac doctor`: it finds what is wrong, says how to mend it, and never breaks itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from wosac_toolkit import __version__, doctor
from wosac_toolkit.challenge import ALL_CHALLENGES
from wosac_toolkit.cli.doctor import command
from wosac_toolkit.doctor import (
    RECORDED,
    Check,
    check_compiled,
    check_disk,
    check_extras,
    check_kernel_cache,
    check_memory,
    check_packages,
    check_parity,
    check_scenarios,
    check_threads,
    requirements,
)
from wosac_toolkit.io.scenarios import write_scenarios
from wosac_toolkit.scenario import Scenario

ROOT = Path(__file__).parents[1]
Make = Callable[..., Scenario]


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def run(*args: object, **env: str | None) -> Result:
    return CliRunner().invoke(
        command, [str(arg) for arg in args], env={"WOSAC_SCENARIOS": None, **env}
    )


@pytest.fixture(autouse=True)
def _no_variables_and_no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SCAN_SECONDS", float("inf"))
    for name in list(os.environ):
        if name.endswith("_NUM_THREADS") or name.startswith("NUMBA_"):
            monkeypatch.delenv(name)


# Exactness


def test_the_recorded_scene_scores_as_the_official_packages() -> None:
    checks = by_name(check_parity())
    assert list(checks) == [f"parity {challenge}" for challenge in ALL_CHALLENGES]
    n_fields = {"2025": 21, "2024": 19, "2023": 17, "scenario_gen_2025": 21}
    for challenge, n in n_fields.items():
        check = checks[f"parity {challenge}"]
        assert check.status == "ok", check
        assert check.what.startswith(f"{n} official values")


@pytest.mark.parametrize(("challenge", "most"), [("2025", 0.99), ("scenario_gen_2025", 1.0)])
def test_the_recorded_scene_has_something_of_everything(challenge: str, most: float) -> None:
    (path,) = RECORDED.rglob(f"*.{challenge}.json")
    metrics = json.loads(path.read_text())["metrics"]
    for name in ("collision", "offroad", "traffic_light_violation"):
        assert metrics[f"simulated_{name}_rate"] > 0
    assert all(0.05 < value < most for name, value in metrics.items() if "likelihood" in name)


def test_what_ships_is_small() -> None:
    assert sum(path.stat().st_size for path in RECORDED.rglob("*.*")) < 80_000


@pytest.mark.parametrize("value", [1e-5, float("nan")])
def test_a_score_that_differs_is_a_problem(tmp_path: Path, value: float) -> None:
    folder = tmp_path / "recorded"
    shutil.copytree(RECORDED, folder)
    (path,) = folder.glob("*.2024.json")
    recorded = json.loads(path.read_text())
    recorded["metrics"]["angular_speed_likelihood"] += value
    path.write_text(json.dumps(recorded))
    checks = by_name(check_parity(folder))
    assert checks["parity 2024"].status == "problem"
    assert checks["parity 2024"].what.startswith("angular_speed_likelihood is 0.")
    assert "warmup --clear" in checks["parity 2024"].mend
    assert checks["parity 2025"].status == "ok"


# Packages


def test_the_packages_needed_are_those_of_the_project() -> None:
    needed = requirements()
    assert ("numba", "0.60") in needed[""]
    assert {"numpy", "numba", "pandas", "pyarrow"} <= {name for name, _ in needed[""]}
    assert "torch" in {name for name, _ in needed["train"]}


def test_the_packages_of_this_environment() -> None:
    checks = by_name(check_packages())
    assert checks["python"].what.startswith(".".join(map(str, sys.version_info[:3])))
    assert checks["wosac-toolkit"].what.startswith(__version__)
    assert checks["numpy"] == Check("numpy", "ok", np.__version__)


def test_packages_that_are_missing_old_or_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('built for another NumPy')")
    monkeypatch.syspath_prepend(tmp_path)
    needed = {"": [("no-such-package", "1.0"), ("numpy", "999.1"), ("broken", "1")]}
    monkeypatch.setattr(doctor, "requirements", lambda: needed)
    version = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: "1.5" if name == "broken" else version(name)
    )
    checks = by_name(check_packages())
    assert checks["no-such-package"] == Check(
        "no-such-package", "problem", "not installed", "pip install 'no-such-package>=1.0'"
    )
    assert checks["numpy"].status == "problem"
    assert checks["numpy"].what == f"{np.__version__}, older than 999.1"
    assert checks["broken"].status == "problem"
    assert "built for another NumPy" in checks["broken"].what


def test_versions_are_compared_by_number() -> None:
    assert doctor._numbers("2.10.0") > doctor._numbers("2.9")
    assert doctor._numbers("2.13.0+cpu") == (2, 13, 0)


def test_extras_that_are_missing_are_no_warning_but_say_what_they_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = {
        "": [],
        "train": [("torch", "2"), ("numpy", "1")],
        "report": [("numpy", "1")],
        "wandb": [],
    }
    monkeypatch.setattr(doctor, "requirements", lambda: needed)
    monkeypatch.setattr(doctor, "_version", lambda name: "2.1" if name == "numpy" else None)
    checks = by_name(check_extras())
    assert checks["[train]"].status == "ok"
    assert checks["[train]"].what.startswith("not installed: torch (smart-r1")
    assert checks["[train]"].mend == "pip install 'wosac-toolkit[train]'"
    assert checks["[report]"] == Check("[report]", "ok", "numpy 2.1")
    assert checks["[wandb]"].status == "warning"


# The machine


def test_an_environment_in_which_nothing_hurts() -> None:
    checks = by_name(check_threads())
    assert checks["environment"].status == "ok"


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("NUMBA_DISABLE_JIT", "1", "problem"),
        ("NUMBA_OPT", "0", "warning"),
        ("NUMBA_BOUNDSCHECK", "1", "warning"),
        ("OMP_NUM_THREADS", "100000", "warning"),
        ("OPENBLAS_NUM_THREADS", "many", "warning"),
    ],
)
def test_variables_that_hurt(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, status: str
) -> None:
    monkeypatch.setenv(name, value)
    checks = by_name(check_threads())
    assert checks[name].status == status
    assert value in checks[name].what
    assert checks[name].mend.startswith(f"unset {name}")
    assert "environment" not in checks


@pytest.mark.parametrize(
    ("name", "value"), [("NUMBA_DISABLE_JIT", "0"), ("NUMBA_OPT", "3"), ("OMP_NUM_THREADS", "1")]
)
def test_variables_that_do_not(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert by_name(check_threads())["environment"].status == "ok"


def test_a_container_with_less_time_than_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "n_cpus", lambda: 64)
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: 2.5)
    check = by_name(check_threads())["CPUs"]
    assert check.status == "warning"
    assert "--workers 2" in check.mend
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: 64.0)
    assert by_name(check_threads())["CPUs"].status == "ok"


def test_memory_for_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "n_cpus", lambda: 8)
    for free, status, mend in (
        (8e9, "ok", ""),
        (1e9, "warning", "give --workers 3"),
        (1e6, "warning", "give --workers 1"),
        (None, "ok", ""),
    ):
        monkeypatch.setattr(doctor, "_free_memory", lambda free=free: free)
        check = by_name(check_memory())["memory"]
        assert (check.status, check.mend) == (status, mend)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_name(check_disk()).keys() == {"disk here", "temporary files"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50 << 20))
    for check in check_disk():
        assert check.status == "warning"
        assert check.what.startswith("50 MB free, ")
        assert "make room" in check.mend


# Kernels


def fake_kernel(folder: Path, hits: int = 1, misses: int = 0, function: Any = None) -> Any:
    stats = SimpleNamespace(cache_path=str(folder), cache_hits=hits, cache_misses=misses)
    return SimpleNamespace(stats=stats, py_func=function or fake_kernel)


def test_the_kernels_of_this_package_are_found() -> None:
    names = {kernel.py_func.__name__ for kernel in doctor._kernels()}
    assert {"nearest_object_distances", "red_light_violations", "fill", "count"} <= names


def test_the_state_of_the_kernel_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setattr(doctor, "_kernels", lambda: [fake_kernel(folder)])
    (check,) = check_kernel_cache()
    assert check.status == "warning"
    assert check.what.endswith(f"empty, so the next check compiles: {folder}")
    folder.mkdir()
    (folder / "a.nbi").touch()
    assert list(check_kernel_cache()) == [Check("kernel cache", "ok", str(folder))]
    monkeypatch.setattr(doctor, "_is_writable", lambda _: False)
    (check,) = check_kernel_cache()
    assert (check.status, "NUMBA_CACHE_DIR" in check.mend) == ("warning", True)
    (folder / "a.nbi").unlink()
    (check,) = check_kernel_cache()
    assert (check.status, "NUMBA_CACHE_DIR" in check.mend) == ("problem", True)


def test_no_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernels() -> list[Any]:
        raise RuntimeError("cannot cache function 'f': no locator available for file 'x.py'")

    monkeypatch.setattr(doctor, "_kernels", kernels)
    (check,) = check_kernel_cache()
    assert check.status == "problem"
    assert "no locator available" in check.what
    assert "NUMBA_CACHE_DIR" in check.mend


def test_kernels_that_had_to_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [fake_kernel(tmp_path), fake_kernel(tmp_path, 0, 1), fake_kernel(tmp_path, 0, 0)]
    monkeypatch.setattr(doctor, "_kernels", lambda: kernels)
    (check,) = check_compiled()
    assert check.status == "warning"
    assert check.what.startswith("1 of 2 were missing")
    assert "wosac warmup" in check.mend
    monkeypatch.setattr(doctor, "_kernels", lambda: kernels[:1])
    assert list(check_compiled()) == [Check("compiled kernels", "ok", "1 loaded from the cache")]


def test_kernels_older_than_the_helpers_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "helper.py"
    source.write_text("def helper():\n    pass\n\ndef kernel():\n    helper()\n")
    scope: dict[str, Any] = {"__name__": "helper"}
    exec(compile(source.read_text(), source, "exec"), scope)
    user: dict[str, Any] = {"__name__": "user", "helper": SimpleNamespace(py_func=scope["helper"])}
    exec(compile(source.read_text().split("\n\n")[1], tmp_path / "user.py", "exec"), user)
    index = tmp_path / "user.kernel-1.py311.nbi"
    index.touch()
    monkeypatch.setattr(
        doctor, "_kernels", lambda: [fake_kernel(tmp_path, function=user["kernel"])]
    )
    os.utime(index, (200, 200))
    os.utime(source, (100, 100))
    assert by_name(check_compiled())["compiled kernels"].status == "ok"
    os.utime(source, (300, 300))
    check = by_name(check_compiled())["compiled kernels"]
    assert check.status == "warning"
    assert "kernel" in check.what
    assert check.mend == "wosac warmup --clear"


# Scenes


def test_a_sound_folder_of_scenes(tmp_path: Path, make_scenario: Make) -> None:
    write_scenarios(tmp_path, [make_scenario(scenario_id=str(i)) for i in range(7)], 3)
    checks = by_name(check_scenarios(str(tmp_path)))
    assert checks["scenarios"].status == "ok"
    assert checks["scenarios"].what.startswith("3 files, ")
    assert checks["scenes"].status == "ok"
    assert checks["scenes"].what == "7 scenes in the 3 of 3 files walked; read: 6 whole"


def test_the_test_split_cannot_be_scored(tmp_path: Path, make_scenario: Make) -> None:
    write_scenarios(tmp_path, [make_scenario(n_steps=11)], 1)
    check = by_name(check_scenarios(str(tmp_path)))["scenes"]
    assert check.status == "ok"
    assert "1 of the test split" in check.what
    assert "cannot be scored" in check.mend


def test_shards_that_are_missing(tmp_path: Path, make_scenario: Make) -> None:
    paths = write_scenarios(tmp_path, [make_scenario(scenario_id=str(i)) for i in range(4)], 4)
    paths[1].unlink()
    paths[2].unlink()
    check = by_name(check_scenarios(str(tmp_path)))["scenarios"]
    assert check.status == "warning"
    assert "2 of the 4 files scenarios.tfrecord-* are missing" in check.what
    assert "fetch" in check.mend


def test_files_that_are_empty(tmp_path: Path, make_scenario: Make) -> None:
    path = write_scenarios(tmp_path, [make_scenario(scenario_id=str(i)) for i in range(4)], 4)[1]
    path.write_bytes(b"")
    check = by_name(check_scenarios(str(tmp_path)))["scenarios"]
    assert check.status == "warning"
    assert f"1 files are empty, the first is {path.name}" in check.what
    for shard in tmp_path.iterdir():
        shard.write_bytes(b"")
    check = by_name(check_scenarios(str(tmp_path)))["scenes"]
    assert (check.status, check.what) == ("problem", "no scene in these files")


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "text"])
@pytest.mark.parametrize("shard", [0, 1, 4])
def test_a_damaged_shard(tmp_path: Path, make_scenario: Make, damage: str, shard: int) -> None:
    scenarios = [make_scenario(scenario_id=str(i)) for i in range(10)]
    path = write_scenarios(tmp_path, scenarios, 5)[shard]
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(
        {
            "truncated": path.read_bytes()[:-1],
            "corrupt": bytes(data),
            "text": b"<html>login</html>",
        }[damage]
    )
    checks = list(check_scenarios(str(tmp_path)))
    problems = [check for check in checks if check.status == "problem"]
    (problem,) = problems
    assert path.name in problem.what
    assert "fetch the file again" in problem.mend


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: replace(s, tracks=replace(s.tracks, valid=~s.tracks.valid)), "none can be simu"),
        (lambda s: replace(s, sdc_track_index=17), "sdc_track_index is 17, with 3 tracks"),
    ],
)
def test_a_scene_that_cannot_be_simulated(
    tmp_path: Path, make_scenario: Make, change: Callable[[Scenario], Scenario], said: str
) -> None:
    write_scenarios(tmp_path, [change(make_scenario(scenario_id="abc"))], 1)
    check = by_name(check_scenarios(str(tmp_path)))["scene"]
    assert check.status == "problem"
    assert "scenario abc" in check.what
    assert said in check.what


def test_a_future_that_is_too_short_and_no_map(tmp_path: Path, make_scenario: Make) -> None:
    for i, (scenario, said) in enumerate(
        [
            (make_scenario(n_steps=50), "50 steps, too few"),
            (make_scenario(road_edges=[]), "no map"),
        ]
    ):
        write_scenarios(tmp_path / str(i), [scenario], 1)
        assert said in by_name(check_scenarios(str(tmp_path / str(i))))["scene"].what


def test_shards_are_looked_at_from_both_ends_and_spread_out() -> None:
    order = sorted(range(17), key=lambda i: doctor._reversed_bits(i, 17))
    assert sorted(order) == list(range(17))
    assert order[:5] == [0, 16, 8, 4, 12]


def test_a_large_folder_is_sampled_from_both_ends(
    tmp_path: Path, make_scenario: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_scenarios(tmp_path, [make_scenario(scenario_id=str(i)) for i in range(30)], 30)
    monkeypatch.setattr(doctor, "_SCAN_SECONDS", 0.0)
    assert "in the 2 of 30 files" in by_name(check_scenarios(str(tmp_path)))["scenes"].what
    paths[-1].write_bytes(b"not a record at all")
    assert by_name(check_scenarios(str(tmp_path)))["scene"].status == "problem"


@pytest.mark.womd
def test_real_scenes_are_sound(womd_dir: Path) -> None:
    checks = by_name(check_scenarios(str(womd_dir)))
    assert checks["scenes"].status == "ok"
    assert checks["scenes"].what.startswith("124 scenes in the 8 of 8 files")


# The whole


def test_the_command() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert "parity 2025" in result.stdout
    assert "0 problems" in result.stdout.splitlines()[-1]


def test_a_problem_is_exit_code_1_and_in_the_json(tmp_path: Path) -> None:
    result = run("--format", "json", "--scenarios", tmp_path / "none")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["n_problems"] == 1
    (problem,) = [check for check in found["checks"] if check["status"] == "problem"]
    assert problem["name"] == "scenarios"
    assert "no such TFRecord file" in problem["what"]
    assert run(WOSAC_SCENARIOS=str(tmp_path / "none")).exit_code == 1


def test_a_check_that_breaks_is_a_problem_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: Any = None) -> Iterator[Check]:
        raise ImportError("libfoo.so:\nnot found")
        yield

    for name in ("check_parity", "check_kernel_cache"):
        monkeypatch.setattr(doctor, name, broken)
    checks = by_name(doctor.examine())
    for name in ("parity", "kernel cache"):
        assert checks[name].status == "problem"
        assert checks[name].what == "ImportError: libfoo.so: not found"
    assert checks["scenarios"].status == "ok"


def test_help_is_quick_to_come_and_extras_are_not_imported() -> None:
    code = (
        "import sys\n"
        "from wosac_toolkit.cli.doctor import command\n"
        "from wosac_toolkit.doctor import check_extras\n"
        "print([m for m in ('numba', 'numpy', 'pandas', 'pyarrow', 'torch') if m in sys.modules])\n"
        "list(check_extras())\n"
        "print([m for m in ('torch', 'matplotlib', 'jinja2') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "[]"]
