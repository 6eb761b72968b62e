from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_validation import SIMULATED, a_scenario

from wosac_toolkit import results, scoring
from wosac_toolkit.attributes import scene_attributes
from wosac_toolkit.challenge import CHALLENGES, Challenge
from wosac_toolkit.errors import ScenarioError, WosacError
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.scenarios import write_scenarios
from wosac_toolkit.io.submission import SubmissionMetadata, write_submission
from wosac_toolkit.metric import AgentScores, ScenarioScore, score_scenario
from wosac_toolkit.results import read_run
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Scenario
from wosac_toolkit.scoring import ScoredDataset, ScoringError, score_dataset

# Not sorted: what is written must be in the order of the scenario files.
NAMES = ["delta", "alpha", "echo", "bravo", "charlie", "foxtrot"]

# --------------------------------------------------------------------------------------------------
# Engines: the metric is not what is tested here, so they only tell scenes apart. What they scored
# is logged to a file, since they run in other processes.


def plain(scenario: Scenario, rollouts: Rollouts, challenge: Challenge) -> ScenarioScore:
    if log := os.environ.get("SCORED_LOG"):
        with open(log, "a") as file:
            file.write(f"{scenario.scenario_id} {os.getpid()}\n")
    value = float(rollouts.states[0, 0, 0, 0]) / 7
    per_agent = {c.name: np.array([-value, -1.0]) for c in challenge.components}
    return ScenarioScore(
        scenario_id=scenario.scenario_id,
        challenge=challenge.name,
        metametric=value,
        average_displacement_error=3 * value,
        min_average_displacement_error=2 * value,
        **{c.field: value for c in CHALLENGES["2025"].components},
        simulated_collision_rate=value,
        simulated_offroad_rate=value,
        simulated_traffic_light_violation_rate=0.0,
        kinematic_metrics=value,
        interactive_metrics=value,
        map_based_metrics=value,
        n_rollouts=rollouts.n_rollouts,
        n_sim_agents=len(rollouts.object_ids),
        n_evaluated_agents=2,
        agents=AgentScores(
            object_ids=np.array([10, 20]),
            object_types=np.array([1, 2], np.int8),
            log_likelihoods=per_agent,
            n_valid_steps={name: np.array([80, 1]) for name in per_agent},
            average_displacement_error=np.array([1.0, 2.0]),
            collision_rate=np.array([0.0, 0.25]),
            offroad_rate=np.zeros(2),
            traffic_light_violation_rate=np.zeros(2),
        ),
    )


def refuses_echo(scenario: Scenario, rollouts: Rollouts, challenge: Challenge) -> ScenarioScore:
    if scenario.scenario_id == "echo":
        raise ScenarioError("the scene has no road edges", where="scenario echo")
    return plain(scenario, rollouts, challenge)


def defective(scenario: Scenario, rollouts: Rollouts, challenge: Challenge) -> ScenarioScore:
    if scenario.scenario_id == "echo":
        raise ZeroDivisionError("a defect")
    return plain(scenario, rollouts, challenge)


def killed_at_echo(scenario: Scenario, rollouts: Rollouts, challenge: Challenge) -> ScenarioScore:
    if scenario.scenario_id == "echo" and not os.environ.get("SPARED"):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(scenario, rollouts, challenge)


def without_vehicle(scenario: Scenario, rollouts: Rollouts, challenge: Challenge) -> ScenarioScore:
    score = plain(scenario, rollouts, challenge)
    if scenario.scenario_id != "echo":
        return score
    steps = {**score.agents.n_valid_steps, "time_to_collision": np.zeros(2, np.int64)}
    agents = replace(score.agents, n_valid_steps=steps)
    undefined = ("time_to_collision_likelihood", "interactive_metrics", "metametric")
    return replace(score, **dict.fromkeys(undefined, math.nan), agents=agents)


def in_threads(scenario: Scenario, rollouts: Rollouts, challenge: Challenge) -> ScenarioScore:
    """The metric itself, in so many threads."""
    if scenario.scenario_id == os.environ.get("REFUSED"):
        raise ScenarioError("refused")
    return score_scenario(scenario, rollouts, challenge, threads=int(os.environ["THREADS"]))


def slow(scenario: Scenario, rollouts: Rollouts, challenge: Challenge) -> ScenarioScore:
    time.sleep(0.15)
    return plain(scenario, rollouts, challenge)


# --------------------------------------------------------------------------------------------------
# Inputs


def rollouts_of(name: str, n_rollouts: int = 32, n_steps: int = 80) -> Rollouts:
    states = np.zeros((n_rollouts, len(SIMULATED), n_steps, 4), np.float32)
    states[..., 0] = 1 + sorted(NAMES).index(name) if name in NAMES else 0
    return Rollouts(name, np.array(SIMULATED), states)


def add_to_archive(archive: tarfile.TarFile, name: str, shard: Path) -> None:
    data = shard.read_bytes()
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def scenarios(tmp_path: Path) -> Path:
    write_scenarios(
        tmp_path / "scenes", (replace(a_scenario(), scenario_id=n) for n in NAMES), 1, "test"
    )
    return tmp_path / "scenes"


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    folder = tmp_path / "rollouts"
    folder.mkdir()
    for name in NAMES:
        write_npz(folder, rollouts_of(name))
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A .tar.gz of two shards, its scenes in yet another order."""
    path = tmp_path / "submission.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for number, names in enumerate([sorted(NAMES)[:4], sorted(NAMES)[4:]]):
            shard = tmp_path / f"s.binproto-{number:05d}-of-00002"
            write_submission(shard, map(rollouts_of, names), SubmissionMetadata())
            add_to_archive(tar, shard.name, shard)
    return path


@pytest.fixture
def scored_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The scenes that engines were asked to score since the last call."""
    path = tmp_path / "scored.log"
    monkeypatch.setenv("SCORED_LOG", str(path))

    def read() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.split()[0] for line in lines]

    return read


def score(
    rollouts: Path, scenarios: Path, out: Path | None = None, **options: object
) -> ScoredDataset:
    options = {"engine": plain, "workers": 1, **options}
    return score_dataset(rollouts, scenarios, out=out, **options)  # type: ignore[arg-type]


def files_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.iterdir()) if path.is_file()}


def refused(rollouts: Path, scenarios: Path, **options: object) -> list[tuple[str, str]]:
    """The (code, scenario id) of the findings that keep a dataset from being scored."""
    with pytest.raises(ScoringError) as error:
        score(rollouts, scenarios, **options)  # type: ignore[arg-type]
    # The one line names the scenes too.
    assert all(finding.scenario_id in str(error.value) for finding in error.value.findings)
    return [(finding.code, finding.scenario_id) for finding in error.value.findings]


# --------------------------------------------------------------------------------------------------
# Scoring


def test_every_scene_is_scored_once_in_the_order_of_the_scenario_files(
    rollouts: Path, scenarios: Path, scored_log: Callable[[], list[str]]
) -> None:
    scored = score(rollouts, scenarios)
    assert [scene.scenario_id for scene in scored.scenes] == NAMES
    assert scored.scenes[0]["metametric"] == 4 / 7  # delta
    assert scored.summary.metrics["metametric"] == pytest.approx(3.5 / 7, abs=1e-15)
    assert scored_log() == NAMES


def test_the_files_are_the_same_for_one_and_two_workers(
    rollouts: Path, scenarios: Path, tmp_path: Path
) -> None:
    for workers in (1, 2):
        out = tmp_path / f"run{workers}"
        score(rollouts, scenarios, out, engine=slow, workers=workers, per_agent=True)
    one, two = files_of(tmp_path / "run1"), files_of(tmp_path / "run2")
    assert list(one) == ["agents.parquet", "scores.parquet", "summary.json"]
    assert one == two


def test_the_files_of_the_metric_are_the_same_however_they_come_about(
    make_scenario: Callable[..., Scenario], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pedestrians = {"object_types": [2, 2, 2]}  # none has a time to collision, so NaN is written
    scenes = [
        make_scenario(scenario_id=name, origin=(900.0 * number, -50.0), **kind)
        for number, (name, kind) in enumerate(zip(NAMES, [{}, pedestrians, {}, {}], strict=False))
    ]
    write_scenarios(tmp_path / "scenes", scenes, 1, "test")
    (tmp_path / "rollouts").mkdir()
    for scene in scenes:
        tracks = scene.tracks
        future = np.concatenate([tracks.position, tracks.heading[..., None]], axis=2)[:, 11:]
        noise = np.cumsum(rng.normal(0, 0.05, (32, *future.shape)), axis=2)
        states = (future + noise).astype(np.float32)
        write_npz(tmp_path / "rollouts", Rollouts(scene.scenario_id, tracks.object_ids, states))

    def files(out: str, workers: int, threads: int) -> dict[str, bytes]:
        monkeypatch.setenv("THREADS", str(threads))
        options = {"engine": in_threads, "workers": workers, "per_agent": True}
        score(tmp_path / "rollouts", tmp_path / "scenes", tmp_path / out, **options)
        return files_of(tmp_path / out)

    expected = files("plain", workers=1, threads=1)
    assert list(expected) == ["agents.parquet", "scores.parquet", "summary.json"]
    assert read_run(tmp_path / "plain").scores["metametric"].isna().tolist() == [
        False,
        True,
        False,
        False,
    ]
    assert files("workers", workers=2, threads=3) == expected
    monkeypatch.setenv("REFUSED", NAMES[2])
    with pytest.raises(ScoringError):
        files("resumed", workers=1, threads=2)
    monkeypatch.delenv("REFUSED")
    assert list(files_of(tmp_path / "resumed")) == ["findings.json"]
    assert files("resumed", workers=1, threads=2) == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_an_archive_is_scored_like_a_folder(
    archive: Path, rollouts: Path, scenarios: Path, workers: int
) -> None:
    streamed = score(archive, scenarios, workers=workers)
    listed = score(rollouts, scenarios)
    assert [(s.scenario_id, s.values) for s in streamed.scenes] == [
        (s.scenario_id, s.values) for s in listed.scenes
    ]
    assert streamed.summary.signature == listed.summary.signature


def test_results_of_all_kinds_reach_the_run_folder(
    rollouts: Path, scenarios: Path, tmp_path: Path
) -> None:
    score(rollouts, scenarios, tmp_path / "run", per_agent=True)
    run = read_run(tmp_path / "run")
    assert run.scores["scenario_id"].tolist() == NAMES
    assert run.scores["n_sim_agents"].tolist() == [3] * 6
    kinds = [scene_attributes(replace(a_scenario(), scenario_id=name)) for name in NAMES]
    assert run.scores["sdc_manoeuvre"].tolist() == [kind.sdc_manoeuvre for kind in kinds]
    assert run.scores["mean_speed"].tolist() == [kind.mean_speed for kind in kinds]
    assert run.agents()["scenario_id"].tolist() == [n for n in NAMES for _ in range(2)]
    assert run.summary.request.scenarios == str(scenarios)


def test_a_scene_without_a_finite_score_is_left_out_of_the_mean_and_named(
    rollouts: Path, scenarios: Path, tmp_path: Path
) -> None:
    scored = score(rollouts, scenarios, tmp_path / "run", engine=without_vehicle)
    assert scored.summary.n_scenarios == 6
    assert scored.summary.n_averaged("metametric") == 5
    assert scored.summary.metrics["metametric"] == pytest.approx((21 - 5) / 5 / 7)
    reason = {"no evaluated vehicle has a valid logged step": ["echo"]}
    assert scored.summary.left_out["metametric"].reasons == reason
    assert read_run(tmp_path / "run").scores["metametric"].isna().sum() == 1


def test_limit_takes_the_first_scenes_of_the_files(rollouts: Path, scenarios: Path) -> None:
    assert [s.scenario_id for s in score(rollouts, scenarios, limit=2).scenes] == NAMES[:2]


def test_scenes_beyond_the_limit_need_no_rollouts(
    rollouts: Path, scenarios: Path, tmp_path: Path
) -> None:
    """As `smart-r1 rollout --limit 2` leaves a folder."""
    for name in NAMES[2:]:
        (rollouts / f"{name}.npz").unlink()
    scored = score(rollouts, scenarios, tmp_path / "run", limit=2)
    assert [s.scenario_id for s in scored.scenes] == NAMES[:2]
    assert scored.summary.n_scenarios_without_rollouts == 0
    assert len(refused(rollouts, scenarios)) == 4


def test_of_the_first_scenes_those_without_rollouts_are_refused(
    rollouts: Path, scenarios: Path
) -> None:
    for name in NAMES[2:]:
        (rollouts / f"{name}.npz").unlink()
    assert refused(rollouts, scenarios, limit=3) == [("no_rollouts", NAMES[2])]
    (rollouts / f"{NAMES[0]}.npz").unlink()
    assert refused(rollouts, scenarios, limit=2) == [("no_rollouts", NAMES[0])]


def test_of_an_intersection_limit_takes_the_first_scenes(rollouts: Path, scenarios: Path) -> None:
    for name in (NAMES[0], NAMES[2], NAMES[5]):
        (rollouts / f"{name}.npz").unlink()
    scored = score(rollouts, scenarios, limit=2, missing="intersect")
    assert [s.scenario_id for s in scored.scenes] == [NAMES[1], NAMES[3]]
    # The last one was not looked for.
    assert scored.summary.n_scenarios_without_rollouts == 2


def test_limit_counts_from_the_first_of_the_scenes_asked_for(
    rollouts: Path, scenarios: Path
) -> None:
    (rollouts / "charlie.npz").unlink()
    asked = {"scenario_ids": ["charlie", "echo", "alpha"]}
    assert [s.scenario_id for s in score(rollouts, scenarios, limit=2, **asked).scenes] == [
        "alpha",
        "echo",
    ]
    assert refused(rollouts, scenarios, limit=3, **asked) == [("no_rollouts", "charlie")]


def test_an_archive_with_fewer_scenes_than_the_limit_lacks_the_first_without_rollouts(
    rollouts: Path, scenarios: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "two.tar.gz"
    shard = tmp_path / "s.binproto"
    write_submission(shard, [rollouts_of("echo"), rollouts_of("alpha")], SubmissionMetadata())
    with tarfile.open(archive, "w:gz") as tar:
        add_to_archive(tar, shard.name, shard)
    assert [s.scenario_id for s in score(archive, scenarios, limit=2).scenes] == ["alpha", "echo"]
    assert refused(archive, scenarios, limit=3) == [("no_rollouts", "delta")]


def test_limit_takes_the_first_scenes_of_an_archive(archive: Path, scenarios: Path) -> None:
    scored = score(archive, scenarios, limit=2)
    assert [s.scenario_id for s in scored.scenes] == ["alpha", "bravo"]


def test_only_the_scenes_asked_for_are_scored_and_others_are_nobodys_business(
    rollouts: Path, scenarios: Path
) -> None:
    write_npz(rollouts, rollouts_of("stranger"))
    scored = score(rollouts, scenarios, scenario_ids=["echo", "alpha"])
    assert [s.scenario_id for s in scored.scenes] == ["alpha", "echo"]


def test_scenes_asked_for_that_are_not_there_are_named(rollouts: Path, scenarios: Path) -> None:
    with pytest.raises(WosacError, match=r"1 of the 2 scenarios asked for are not.*: nobody"):
        score(rollouts, scenarios, scenario_ids=["echo", "nobody"])


def test_rows_of_agents_need_a_folder(rollouts: Path, scenarios: Path) -> None:
    with pytest.raises(WosacError, match="give --out"):
        score(rollouts, scenarios, per_agent=True)


# --------------------------------------------------------------------------------------------------
# Scenes and rollouts that do not find each other


def test_scenarios_without_rollouts_are_refused_before_anything_is_scored(
    rollouts: Path, scenarios: Path, tmp_path: Path, scored_log: Callable[[], list[str]]
) -> None:
    (rollouts / "echo.npz").unlink()
    (rollouts / "alpha.npz").unlink()
    found = refused(rollouts, scenarios, out=tmp_path / "run")
    assert found == [("no_rollouts", "alpha"), ("no_rollouts", "echo")]
    assert scored_log() == []
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["findings.json"]


def test_rollouts_without_scenario_are_refused(rollouts: Path, scenarios: Path) -> None:
    write_npz(rollouts, rollouts_of("stranger"))
    assert refused(rollouts, scenarios) == [("no_scenario", "stranger")]


def test_an_intersection_is_scored_where_it_is_asked_for_and_counted(
    rollouts: Path, scenarios: Path
) -> None:
    (rollouts / "echo.npz").unlink()
    write_npz(rollouts, rollouts_of("stranger"))
    scored = score(rollouts, scenarios, missing="intersect")
    assert [s.scenario_id for s in scored.scenes] == [n for n in NAMES if n != "echo"]
    assert scored.summary.n_scenarios_without_rollouts == 1
    assert scored.summary.n_rollouts_without_scenario == 1


def test_an_empty_intersection_is_an_error(rollouts: Path, scenarios: Path) -> None:
    for name in NAMES:
        (rollouts / f"{name}.npz").rename(rollouts / f"not-{name}.npz")
    with pytest.raises(WosacError, match="no scene has rollouts"):
        score(rollouts, scenarios, missing="intersect")


@pytest.mark.parametrize("missing", ["error", "intersect"])
def test_two_files_with_rollouts_of_one_scene_are_refused_and_both_named(
    rollouts: Path, scenarios: Path, missing: str
) -> None:
    shard = rollouts / "extra.binproto"
    write_submission(shard, [rollouts_of("echo")], SubmissionMetadata())
    with pytest.raises(ScoringError) as error:
        score(rollouts, scenarios, missing=missing)
    (finding,) = error.value.findings
    assert (finding.code, finding.scenario_id) == ("duplicate_rollouts", "echo")
    assert "echo.npz" in str(finding)
    assert "extra.binproto" in str(finding)


def test_an_archive_tells_at_its_end_what_it_lacks_and_what_it_has_too_much(
    archive: Path, scenarios: Path, tmp_path: Path, scored_log: Callable[[], list[str]]
) -> None:
    shard = tmp_path / "extra.binproto"
    extra = [rollouts_of("alpha"), rollouts_of("stranger")]
    write_submission(shard, extra, SubmissionMetadata())
    with tarfile.open(tmp_path / "new.tar.gz", "w:gz") as tar:
        add_to_archive(tar, "first.binproto", tmp_path / "s.binproto-00000-of-00002")
        add_to_archive(tar, "extra.binproto", shard)
    found = refused(tmp_path / "new.tar.gz", scenarios, out=tmp_path / "run")
    assert sorted(found) == [
        ("duplicate_rollouts", "alpha"),
        ("no_rollouts", "echo"),
        ("no_rollouts", "foxtrot"),
        ("no_scenario", "stranger"),
    ]
    # What was scored on the way there is not scored again for the intersection.
    assert scored_log() == sorted(NAMES)[:4]
    with pytest.raises(ScoringError, match="1 scenario with rollouts more than once"):
        score(tmp_path / "new.tar.gz", scenarios, tmp_path / "run", missing="intersect")
    assert scored_log() == []


# --------------------------------------------------------------------------------------------------
# Bad scenes


def spoil_objects(good: Rollouts) -> Rollouts:
    return replace(good, object_ids=np.array([10, 20, 99]))


def spoil_values(good: Rollouts) -> Rollouts:
    good.states[7, 1, 3, 2] = np.nan
    return good


def spoil_length(good: Rollouts) -> Rollouts:
    return replace(good, states=good.states[:, :, :79])


def spoil_count(good: Rollouts) -> Rollouts:
    return replace(good, states=good.states[:31])


def spoil_duplicate(good: Rollouts) -> Rollouts:
    return replace(good, object_ids=np.array([10, 20, 20]))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (spoil_objects, ["object 99: is not in the scene", "object 30: has no trajectory"]),
        (spoil_duplicate, ["object 30: has no", "object 20: comes 2 times"]),
        (spoil_values, ["rollout 7: object 20: 1 of 10240 values are not finite"]),
        (spoil_length, ["79 steps where 80 are expected"]),
        (spoil_count, ["31 rollouts where 32 are expected"]),
    ],
)
def test_bad_rollouts_are_named_by_file_scenario_and_object_and_the_others_are_scored(
    rollouts: Path,
    scenarios: Path,
    scored_log: Callable[[], list[str]],
    spoil: Callable[[Rollouts], Rollouts],
    expected: list[str],
) -> None:
    write_npz(rollouts, spoil(rollouts_of("echo")))
    with pytest.raises(ScoringError, match=r"1 scenario that cannot be scored \(echo\)") as error:
        score(rollouts, scenarios)
    lines = [str(finding) for finding in error.value.findings]
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith(f"{rollouts}/echo.npz: scenario echo: {text}")
    assert sorted(scored_log()) == sorted(set(NAMES) - {"echo"})


def test_findings_are_the_same_from_one_and_two_workers(rollouts: Path, scenarios: Path) -> None:
    write_npz(rollouts, spoil_objects(rollouts_of("echo")))
    write_npz(rollouts, spoil_values(rollouts_of("foxtrot")))
    findings = []
    for workers in (1, 2):
        with pytest.raises(ScoringError) as error:
            score(rollouts, scenarios, workers=workers)
        findings.append(error.value.findings)
    assert findings[0] == findings[1]
    assert [f.scenario_id for f in findings[0]] == ["echo", "echo", "foxtrot"]


def test_any_number_of_rollouts_where_it_is_asked_for(rollouts: Path, scenarios: Path) -> None:
    write_npz(rollouts, rollouts_of("echo", n_rollouts=4))
    scored = score(rollouts, scenarios, n_rollouts=None)
    assert scored.summary.n_rollouts is None
    assert "|rollouts:4-32|" in scored.summary.signature


def test_a_damaged_file_of_rollouts_is_named(rollouts: Path, scenarios: Path) -> None:
    data = (rollouts / "echo.npz").read_bytes()
    (rollouts / "echo.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ScoringError) as error:
        score(rollouts, scenarios)
    (finding,) = error.value.findings
    assert finding.code == "unreadable"
    assert str(finding).count(f"{rollouts}/echo.npz") == 1


def test_a_damaged_record_of_a_scene_is_named(rollouts: Path, scenarios: Path) -> None:
    (file,) = scenarios.iterdir()
    data = bytearray(file.read_bytes())
    data[-1000] ^= 0xFF  # in the tracks of the last record, which no longer fit their checksum
    file.write_bytes(data)
    with pytest.raises(ScoringError) as error:
        score(rollouts, scenarios)
    (finding,) = error.value.findings
    assert (finding.code, finding.scenario_id) == ("unreadable", NAMES[-1])
    assert str(file) in str(finding)


def test_a_scene_that_the_metric_refuses_is_named(rollouts: Path, scenarios: Path) -> None:
    with pytest.raises(ScoringError) as error:
        score(rollouts, scenarios, engine=refuses_echo)
    (finding,) = error.value.findings
    assert finding.code == "not_scored"
    assert "the scene has no road edges" in str(finding)


def test_a_scene_without_road_edges_is_an_error_of_the_official_metric(
    rollouts: Path, scenarios: Path
) -> None:
    with pytest.raises(ScoringError) as error:
        score(rollouts, scenarios, engine=scoring.official_metric, limit=1)
    (finding,) = error.value.findings
    assert (finding.code, finding.scenario_id) == ("not_scored", NAMES[0])
    assert "road edge" in str(finding)


def test_a_defect_of_an_engine_is_told_with_its_place_and_loses_no_other_scene(
    rollouts: Path, scenarios: Path, scored_log: Callable[[], list[str]]
) -> None:
    with pytest.raises(ScoringError) as error:
        score(rollouts, scenarios, engine=defective)
    (finding,) = error.value.findings
    assert finding.code == "internal_error"
    assert "ZeroDivisionError: a defect [test_scoring.py:" in str(finding)
    assert len(scored_log()) == 5


def test_findings_are_listed_in_the_run_folder_until_it_is_finished(
    rollouts: Path, scenarios: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    write_npz(rollouts, spoil_count(rollouts_of("echo")))
    with pytest.raises(ScoringError, match=r"findings\.json"):
        score(rollouts, scenarios, run)
    (finding,) = json.loads((run / "findings.json").read_text())
    assert (finding["code"], finding["scenario_id"]) == ("rollout_count", "echo")
    assert not (run / "summary.json").exists()
    write_npz(rollouts, rollouts_of("echo"))
    score(rollouts, scenarios, run)
    assert sorted(path.name for path in run.iterdir()) == ["scores.parquet", "summary.json"]


# --------------------------------------------------------------------------------------------------
# Interrupted and repeated runs


def test_once_the_bad_scene_is_repaired_only_it_is_scored(
    rollouts: Path, scenarios: Path, tmp_path: Path, scored_log: Callable[[], list[str]]
) -> None:
    write_npz(rollouts, spoil_values(rollouts_of("echo")))
    with pytest.raises(ScoringError):
        score(rollouts, scenarios, tmp_path / "run")
    assert len(scored_log()) == 5
    write_npz(rollouts, rollouts_of("echo"))
    scored = score(rollouts, scenarios, tmp_path / "run")
    assert scored_log() == ["echo"]
    assert (scored.n_kept, len(scored.scenes)) == (5, 6)


def test_a_scene_whose_file_has_changed_since_the_interruption_is_scored_again(
    rollouts: Path, scenarios: Path, tmp_path: Path, scored_log: Callable[[], list[str]]
) -> None:
    with pytest.raises(ScoringError):
        score(rollouts, scenarios, tmp_path / "run", engine=refuses_echo)
    scored_log()
    other = rollouts_of("alpha")
    other.states[...] = 6.5
    write_npz(rollouts, other)
    with pytest.raises(ScoringError):
        score(rollouts, scenarios, tmp_path / "run", engine=refuses_echo)
    assert scored_log() == ["alpha"]


def test_a_worker_that_is_killed_ends_the_run_with_the_scene_and_the_next_run_resumes(
    rollouts: Path,
    scenarios: Path,
    tmp_path: Path,
    scored_log: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    with pytest.raises(WosacError, match=r"scenario echo: .*killed by SIGKILL.*out of memory"):
        score(rollouts, scenarios, run, engine=killed_at_echo, workers=2)
    before = scored_log()
    assert not (run / "summary.json").exists()
    monkeypatch.setenv("SPARED", "1")
    scored = score(rollouts, scenarios, run, engine=killed_at_echo, workers=2)
    after = scored_log()
    assert "echo" not in before
    assert sorted(s.scenario_id for s in scored.scenes) == sorted(NAMES)
    # A scene that was scored but not yet answered when the other worker died is scored again.
    assert scored.n_kept == 6 - len(after)
    assert scored.n_kept >= len(before) - 1


_RUN = """
import sys
from test_scoring import slow
from wosac_toolkit.scoring import score_dataset

if __name__ == "__main__":
    rollouts, scenarios, out, workers = sys.argv[1:]
    score_dataset(rollouts, scenarios, out=out, engine=slow, workers=int(workers), per_agent=True)
"""


def start(tmp_path: Path, rollouts: Path, scenarios: Path, workers: int) -> subprocess.Popen[bytes]:
    (tmp_path / "run.py").write_text(_RUN)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, "run.py", rollouts, scenarios, tmp_path / "run", str(workers)],
        cwd=tmp_path,
        # A shell that runs tests in the background lets them ignore Ctrl-C, and so their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the workers in /proc")
def test_a_run_that_is_killed_resumes_and_its_files_are_those_of_an_unbroken_run(
    rollouts: Path, scenarios: Path, tmp_path: Path, scored_log: Callable[[], list[str]]
) -> None:
    log, journal = tmp_path / "scored.log", tmp_path / "run" / ".partial" / "journal.jsonl"
    process = start(tmp_path, rollouts, scenarios, workers=2)
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 3)
    process.kill()
    process.communicate()
    pids = {int(line.split()[1]) for line in log.read_text().splitlines()}
    # Workers do not outlive their parent, even if it had no chance to end them.
    wait_until(lambda: not any(is_running(pid) for pid in pids), 10)
    # As if it had been killed in the middle of a line.
    journal.write_bytes(journal.read_bytes() + b'{"stamp": "12')
    kept = {json.loads(line)["scenario_id"] for line in journal.read_text().splitlines()[1:-1]}
    assert 2 <= len(kept) < 6
    scored_log()

    scored = score(rollouts, scenarios, tmp_path / "run", engine=slow, per_agent=True)
    assert scored.n_kept == len(kept)
    assert sorted(scored_log()) == sorted(set(NAMES) - kept)

    score(rollouts, scenarios, tmp_path / "unbroken", engine=slow, per_agent=True)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "unbroken")


def test_ctrl_c_ends_the_workers_in_silence(
    rollouts: Path, scenarios: Path, tmp_path: Path, scored_log: Callable[[], list[str]]
) -> None:
    process = start(tmp_path, rollouts, scenarios, 2)
    log = tmp_path / "scored.log"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert stderr.count(b"Traceback") == 1  # that of the script itself, which does not catch it
    assert stderr.strip().endswith(b"KeyboardInterrupt")
    assert len(scored_log()) < 6


def test_a_finished_run_is_not_scored_again(
    rollouts: Path, scenarios: Path, tmp_path: Path, scored_log: Callable[[], list[str]]
) -> None:
    first = score(rollouts, scenarios, tmp_path / "run")
    scored_log()
    second = score(rollouts, scenarios, tmp_path / "run")
    assert scored_log() == []
    assert second.finished_before
    assert (second.summary, list(second.scenes)) == (first.summary, list(first.scenes))


def test_a_finished_run_of_other_inputs_is_kept_unless_it_may_be_overwritten(
    rollouts: Path, scenarios: Path, tmp_path: Path, scored_log: Callable[[], list[str]]
) -> None:
    run = tmp_path / "run"
    score(rollouts, scenarios, run)
    before = (run / "summary.json").read_bytes()
    with pytest.raises(WosacError, match="finished run that differs in limit"):
        score(rollouts, scenarios, run, limit=3)
    write_npz(rollouts, rollouts_of("echo"))
    with pytest.raises(WosacError, match="finished run that differs in rollouts_files"):
        score(rollouts, scenarios, run)
    assert (run / "summary.json").read_bytes() == before
    scored_log()
    scored = score(rollouts, scenarios, run, limit=3, overwrite=True)
    assert len(scored_log()) == len(scored.scenes) == 3
    assert read_run(run).summary.request.limit == 3


def test_an_unfinished_run_of_another_challenge_is_kept_unless_it_may_be_overwritten(
    rollouts: Path, scenarios: Path, tmp_path: Path, scored_log: Callable[[], list[str]]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(ScoringError):
        score(rollouts, scenarios, run, engine=refuses_echo)
    with pytest.raises(WosacError, match="unfinished run that differs in challenge"):
        score(rollouts, scenarios, run, engine=refuses_echo, challenge="2024")
    scored_log()
    score(rollouts, scenarios, run, challenge="2024", overwrite=True)
    assert len(scored_log()) == 6


def test_another_run_s_agents_do_not_survive_in_the_folder(
    rollouts: Path, scenarios: Path, tmp_path: Path
) -> None:
    score(rollouts, scenarios, tmp_path / "run", per_agent=True)
    score(rollouts, scenarios, tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "agents.parquet").exists()


def test_how_many_scenes_there_may_be_is_told_from_the_size_of_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.npz").write_bytes(bytes(2 << 20))
    assert scoring._rough_n_scenes(tmp_path, None) == 6
    assert scoring._rough_n_scenes(tmp_path, 4) == 4
    assert scoring._rough_n_scenes(tmp_path / "1.npz", None) == 2


def test_the_list_hash_is_of_sorted_ids(rollouts: Path, scenarios: Path) -> None:
    summary = score(rollouts, scenarios).summary
    assert summary.scenario_list_sha256 == results.hash_lines(sorted(NAMES))
