from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wosac_toolkit import metric, results
from wosac_toolkit.attributes import SceneAttributes
from wosac_toolkit.challenge import CHALLENGES, METRIC_FIELDS, get_challenge
from wosac_toolkit.errors import WosacError
from wosac_toolkit.results import (
    AGENT_SCHEMA,
    ATTRIBUTE_SCHEMA,
    BUCKET_SOURCES,
    SCORE_FIELDS,
    SCORE_SCHEMA,
    Journal,
    Request,
    SceneResult,
    Summary,
    agent_rows,
    field_tree,
    hash_lines,
    read_run,
    read_scenes,
    read_summary,
    scene_result,
    summarise,
    write_run,
)

REQUEST = Request(
    challenge="2025",
    engine="",
    toolkit_version="0.1.0",
    rollouts="/data/rollouts",
    rollouts_files="a" * 64,
    scenarios="/data/womd",
    scenarios_files="b" * 64,
    n_rollouts=32,
    per_agent=False,
    limit=None,
    scenario_ids=None,
    missing="error",
)
ATTRIBUTES = SceneAttributes(2, 1, 1, True, False, 3.5, "left turn")
TTC = "time_to_collision_likelihood"
STAMP = "12-345"
NO_VEHICLE = "no evaluated vehicle has a valid logged step"


def scene(scenario_id: str, value: float = 0.5, **fields: float | None) -> SceneResult:
    values = {**dict.fromkeys(SCORE_FIELDS, value), **fields}
    row = tuple(values[name] for name in SCORE_FIELDS)
    return SceneResult(scenario_id, row, 32, 50, 4, ATTRIBUTES)


def scene_without_vehicle(scenario_id: str) -> SceneResult:
    nan = dict.fromkeys((TTC, "metametric", "interactive_metrics"), math.nan)
    reasons = {TTC: NO_VEHICLE, "metametric": "a component is not a number"}
    return replace(scene(scenario_id, **nan), non_finite=reasons)


def kept(journal: Journal) -> str:
    return "".join(name for name in "abcd" if journal.find(name, STAMP) is not None)


def summary_of(*scenes: SceneResult, **changes: Any) -> Summary:
    return summarise(scenes, replace(REQUEST, **changes), get_challenge("2025"))


def agents(*object_ids: int) -> dict[str, list[Any]]:
    columns = {name: [0.25] * len(object_ids) for name, kind in AGENT_SCHEMA.items() if "f" in kind}
    columns |= {name: [80] * len(object_ids) for name, kind in AGENT_SCHEMA.items() if "i" in kind}
    columns.pop("scenario_id")
    return {**columns, "object_id": list(object_ids), "object_type": [1] * len(object_ids)}


# --------------------------------------------------------------------------------------------------
# The schema


def test_every_field_is_one_of_a_score() -> None:
    names = [field.name for field in dataclasses.fields(metric.ScenarioScore)]
    assert tuple(names[2 : 2 + len(METRIC_FIELDS)]) == METRIC_FIELDS
    assert all(hasattr(metric.ScenarioScore, name) for name in BUCKET_SOURCES)


def test_every_attribute_of_a_scene_is_a_column() -> None:
    names = [field.name for field in dataclasses.fields(SceneAttributes)]
    assert list(ATTRIBUTE_SCHEMA) == names
    assert set(names) < set(SCORE_SCHEMA)


def test_tables_list_all_fields_of_a_version_once_components_below_their_bucket() -> None:
    tree = field_tree(get_challenge("2025"))
    assert tree[:3] == [
        (0, "realism_meta_metric"),
        (0, "kinematic_metrics"),
        (1, "linear_speed_likelihood"),
    ]
    sources = [BUCKET_SOURCES.get(name, name) for _, name in tree]
    assert sorted(sources) == sorted(SCORE_FIELDS)


# --------------------------------------------------------------------------------------------------
# Aggregates


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_mean_is_that_of_the_official_aggregation(values: list[float]) -> None:
    summary = summary_of(*(scene(str(i), v) for i, v in enumerate(values)))
    assert summary.metrics["metametric"] == pytest.approx(np.mean(values), abs=1e-12)
    assert summary.n_averaged("metametric") == len(values)
    assert not summary.left_out


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.randoms())
def test_a_mean_does_not_depend_on_the_order_of_the_scenes(
    values: list[float], random: Any
) -> None:
    scenes = [scene(str(i), v) for i, v in enumerate(values)]
    shuffled = random.sample(scenes, len(scenes))
    assert summary_of(*scenes).metrics == summary_of(*shuffled).metrics
    assert summary_of(*scenes).signature == summary_of(*shuffled).signature


def test_buckets_are_the_official_ones_and_repeat_the_metrics_they_are() -> None:
    summary = summary_of(
        scene("a", kinematic_metrics=0.25, min_average_displacement_error=1.5, metametric=0.75)
    )
    assert list(summary.buckets) == [
        "realism_meta_metric",
        "kinematic_metrics",
        "interactive_metrics",
        "map_based_metrics",
        "min_ade",
        "simulated_collision_rate",
        "simulated_offroad_rate",
        "simulated_traffic_light_violation_rate",
    ]
    assert summary.buckets["kinematic_metrics"] == 0.25
    assert summary.buckets["min_ade"] == 1.5
    assert summary.buckets["realism_meta_metric"] == summary.metrics["metametric"] == 0.75


def test_a_scene_without_a_finite_value_is_left_out_of_that_mean_alone_counted_and_named() -> None:
    summary = summary_of(scene("a", 0.25), scene_without_vehicle("b"), scene("c", 0.75))
    assert summary.n_scenarios == 3
    assert summary.metrics[TTC] == summary.metrics["metametric"] == 0.5
    assert summary.metrics["linear_speed_likelihood"] == 0.5
    assert summary.n_averaged("linear_speed_likelihood") == 3
    for field in (TTC, "metametric", "interactive_metrics", "realism_meta_metric"):
        assert summary.n_averaged(field) == 2
        # A mean of others is left out for the reason of what it is made of.
        assert summary.left_out[field].reasons == {NO_VEHICLE: ["b"]}
    assert set(summary.left_out) == {
        TTC,
        "metametric",
        "interactive_metrics",
        "realism_meta_metric",
    }
    assert "|scenes:3|left_out:1|" in summary.signature


def test_infinite_values_are_left_out_too() -> None:
    summary = summary_of(scene("a", 0.25), scene("b", average_displacement_error=math.inf))
    assert summary.metrics["average_displacement_error"] == 0.25
    assert summary.left_out["average_displacement_error"].n_scenarios == 1


def test_a_mean_over_no_scene_is_none_not_nan() -> None:
    summary = summary_of(scene_without_vehicle("a"))
    assert summary.metrics[TTC] is None
    assert summary.n_averaged(TTC) == 0


def test_a_field_that_the_challenge_does_not_have_is_none_and_nothing_is_left_out() -> None:
    summary = summary_of(scene("a", traffic_light_violation_likelihood=None))
    assert summary.metrics["traffic_light_violation_likelihood"] is None
    assert not summary.left_out


# --------------------------------------------------------------------------------------------------
# The signature


def test_the_signature_says_what_was_scored() -> None:
    summary = summary_of(scene("b"), scene("a"))
    assert summary.scenario_list_sha256 == hash_lines(["a", "b"])
    assert summary.signature == (
        f"wosac|metric:2025|rollouts:32|scenes:2|list:{hash_lines(['a', 'b'])[:8]}|version:0.1.0"
    )


def test_the_signature_tells_differing_numbers_of_rollouts_and_other_engines() -> None:
    summary = summary_of(scene("a"), replace(scene("b"), n_rollouts=4), engine="lab.other_metric")
    assert "|engine:lab.other_metric|rollouts:4-32|" in summary.signature
    assert summary.n_rollouts is None


# --------------------------------------------------------------------------------------------------
# summary.json


def test_a_summary_survives_json() -> None:
    summary = summary_of(scene("a", 0.1), scene_without_vehicle("b"))
    again = Summary.from_json(summary.to_json())
    assert again == summary
    assert again.to_json() == summary.to_json()


def test_summary_json_is_strict_json_with_nulls_for_what_is_no_number() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = summary_of(scene_without_vehicle("b")).to_json()
    fields = json.loads(text, parse_constant=refuse)
    assert fields["schema_version"] == 2
    assert fields["metrics"][TTC] is None
    assert fields["left_out"][TTC] == {"n_scenarios": 1, "reasons": {NO_VEHICLE: ["b"]}}
    assert fields["metrics"]["linear_speed_likelihood"] == 0.5
    assert fields["n_scenarios"] == 1
    assert fields["official_release"] == "waymo-open-dataset-tf-2-12-0 1.6.7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a summary"),
        ("[]", "not a summary"),
        ("{}", "not a summary"),
        ('{"schema_version": 2}', "not a summary"),
        ('{"schema_version": 1}', "schema version 1 is unknown"),
        ('{"schema_version": 99}', "schema version 99 is unknown"),
    ],
)
def test_what_is_no_summary_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(WosacError, match=message) as error:
        read_summary(tmp_path)
    assert str(tmp_path) in str(error.value)


# --------------------------------------------------------------------------------------------------
# A finished run


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    scenes = [scene("b", 0.1), scene_without_vehicle("a"), scene("c", 1 / 3)]
    summary = summary_of(*scenes)
    write_run(tmp_path / "run", summary, scenes)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "scores.parquet",
        "summary.json",
    ]
    run = read_run(tmp_path / "run")
    assert run.summary == summary
    assert list(run.scores.columns) == list(SCORE_SCHEMA)
    assert run.scores["scenario_id"].tolist() == ["b", "a", "c"]
    assert run.scores["metametric"].tolist()[::2] == [0.1, 1 / 3]
    assert np.isnan(run.scores[TTC][1])
    assert run.scores["n_evaluated_agents"].tolist() == [4, 4, 4]
    assert run.scores[list(ATTRIBUTE_SCHEMA)].iloc[0].tolist() == list(
        dataclasses.astuple(ATTRIBUTES)
    )
    assert run.scores["has_traffic_lights"].dtype == bool
    with pytest.raises(WosacError, match="--per-agent"):
        run.agents()


@given(
    st.one_of(
        st.tuples(st.just("string"), st.lists(st.none() | st.text())),
        st.tuples(st.just("float64"), st.lists(st.none() | st.floats())),
        st.tuples(st.just("int8"), st.lists(st.none() | st.integers(-128, 127))),
        st.tuples(st.just("bool"), st.lists(st.none() | st.booleans())),
    )
)
def test_a_column_is_what_pyarrow_makes_of_it(column: tuple[str, list[Any]]) -> None:
    kind, values = column
    ours = results._arrow_array(values, kind)
    ours.validate(full=True)
    theirs = pa.array(values, pa.type_for_alias(kind))
    assert ours.type == theirs.type
    assert repr(ours.to_pylist()) == repr(theirs.to_pylist())


def test_absent_fields_are_null_and_non_finite_results_are_nan(tmp_path: Path) -> None:
    absent = scene("a", simulated_offroad_rate=None)
    write_run(tmp_path, summary_of(absent), [absent, scene_without_vehicle("b")])
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table["simulated_offroad_rate"].null_count == 1
    assert table[TTC].null_count == 0
    assert math.isnan(table[TTC][1].as_py())
    first, second = read_scenes(tmp_path)
    assert first == absent
    assert math.isnan(second[TTC] or 0.0)
    assert second["simulated_offroad_rate"] == 0.5


def test_agents_are_a_row_each_in_the_order_of_the_scenes(tmp_path: Path) -> None:
    request = replace(REQUEST, per_agent=True)
    scenes = [scene("b"), scene("a")]
    with Journal(tmp_path, request) as journal:
        journal.append(scenes[1], STAMP, agents(7))
        journal.append(scenes[0], STAMP, agents(1, 2))
        write_run(tmp_path, summary_of(*scenes, per_agent=True), scenes, journal)
        journal.discard()
    frame = read_run(tmp_path).agents()
    assert list(frame.columns) == list(AGENT_SCHEMA)
    assert frame["scenario_id"].tolist() == ["b", "b", "a"]
    assert frame["object_id"].tolist() == [1, 2, 7]
    assert frame["linear_speed_log_likelihood"].tolist() == [0.25] * 3


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_a_score_fills_the_rows_of_its_scene_and_agents(challenge: str) -> None:
    names = [c.name for c in CHALLENGES[challenge].components]
    has_lights = CHALLENGES[challenge].has_traffic_lights
    rates = 0.125 if CHALLENGES[challenge].reports_rates else None
    score = metric.ScenarioScore(
        scenario_id="a",
        challenge=challenge,
        metametric=0.5,
        average_displacement_error=3.0,
        min_average_displacement_error=2.0,
        **{c.field: 0.5 for c in CHALLENGES["2025"].components if c.name in names},
        **({} if has_lights else {"traffic_light_violation_likelihood": None}),
        simulated_collision_rate=rates,
        simulated_offroad_rate=rates,
        simulated_traffic_light_violation_rate=0.0 if has_lights else None,
        kinematic_metrics=0.5,
        interactive_metrics=0.5,
        map_based_metrics=0.5,
        n_rollouts=32,
        n_sim_agents=9,
        n_evaluated_agents=2,
        agents=metric.AgentScores(
            object_ids=np.array([3, 5]),
            object_types=np.array([1, 2], np.int8),
            log_likelihoods={name: np.array([-1.0, np.nan]) for name in names},
            n_valid_steps={name: np.array([80, 0]) for name in names},
            average_displacement_error=np.array([1.0, 5.0]),
            collision_rate=np.array([0.0, 0.25]),
            offroad_rate=np.array([0.0, 0.25]),
            traffic_light_violation_rate=np.zeros(2) if has_lights else None,
        ),
    )
    result = scene_result(score, ATTRIBUTES)
    assert (result["metametric"], result["kinematic_metrics"]) == (0.5, pytest.approx(0.5))
    assert (result["traffic_light_violation_likelihood"] is not None) == has_lights
    assert result["simulated_collision_rate"] == rates
    assert (result.n_sim_agents, result.n_evaluated_agents) == (9, 2)
    rows = agent_rows(score)
    assert set(rows) <= set(AGENT_SCHEMA)
    assert rows["object_id"] == [3, 5]
    assert rows["linear_speed_n_valid_steps"] == [80, 0]
    assert ("traffic_light_violation_rate" in rows) == has_lights


def test_no_run_an_unfinished_run_and_a_damaged_run_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(WosacError, match="no finished run"):
        read_run(tmp_path / "nowhere")
    Journal(tmp_path, REQUEST).__exit__(None, None, None)
    with pytest.raises(WosacError, match="has not finished"):
        read_run(tmp_path)
    write_run(tmp_path, summary_of(scene("a")), [scene("a")])
    (tmp_path / "scores.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(WosacError, match="not a table of this toolkit"):
        read_run(tmp_path)
    (tmp_path / "scores.parquet").unlink()
    with pytest.raises(WosacError, match="the file is missing"):
        read_run(tmp_path)


def test_scores_of_other_scenes_than_the_summary_says_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, summary_of(scene("a"), scene("b")), [scene("a"), scene("c")])
    with pytest.raises(WosacError, match="different scenes"):
        read_run(tmp_path)


def test_a_table_without_our_columns_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, summary_of(scene("a")), [scene("a")])
    pd.DataFrame({"scenario_id": ["a"]}).to_parquet(tmp_path / "scores.parquet")
    with pytest.raises(WosacError, match="not a table of this toolkit"):
        read_run(tmp_path)


def test_columns_of_an_older_toolkit_are_passed_over(tmp_path: Path) -> None:
    """It kept how long each scene took."""
    write_run(tmp_path, summary_of(scene("a", 0.25)), [scene("a", 0.25)])
    path = tmp_path / "scores.parquet"
    pd.read_parquet(path).assign(seconds=0.01).to_parquet(path)
    assert read_run(tmp_path).scores.columns.tolist() == list(SCORE_SCHEMA)
    assert read_scenes(tmp_path) == [scene("a", 0.25)]


def test_a_run_that_cannot_be_written_leaves_no_summary_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, summary_of(scene("a")), [scene("a")])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        write_run(tmp_path, summary_of(scene("b")), [scene("b")])
    # The old scores must not pass for those of the new run, nor the other way round.
    assert [p.name for p in tmp_path.iterdir()] == ["scores.parquet"]


# --------------------------------------------------------------------------------------------------
# The journal of an unfinished run


def test_a_journal_gives_back_exactly_what_was_appended(tmp_path: Path) -> None:
    scenes = [scene("a", 0.1 + 0.2), scene("b", simulated_collision_rate=None)]
    with Journal(tmp_path, REQUEST) as journal:
        assert len(journal) == 0
        for result in scenes:
            journal.append(result, STAMP)
    with Journal(tmp_path, REQUEST) as journal:
        assert [journal.find(name, STAMP) for name in "ab"] == scenes
        assert journal.find("c", STAMP) is None


def test_a_result_is_not_that_of_a_scene_whose_files_have_changed(tmp_path: Path) -> None:
    with Journal(tmp_path, REQUEST) as journal:
        journal.append(scene("a", 0.25), "before")
        assert journal.find("a", "after") is None
        journal.append(scene("a", 0.75), "after")
    with Journal(tmp_path, REQUEST) as journal:
        assert journal.find("a", "before") is None
        assert journal.find("a", "after") == scene("a", 0.75)


def test_nan_and_its_reason_survive_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path, REQUEST) as journal:
        journal.append(scene_without_vehicle("a"), STAMP)
    with Journal(tmp_path, REQUEST) as journal:
        result = journal.find("a", STAMP)
    assert result is not None
    assert math.isnan(result[TTC] or 0.0)
    assert result.non_finite[TTC] == NO_VEHICLE


def test_a_request_without_the_end_of_its_line_is_torn(tmp_path: Path) -> None:
    path = tmp_path / ".partial" / "journal.jsonl"
    with Journal(tmp_path, REQUEST):
        pass
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    with Journal(tmp_path, REQUEST) as journal:
        journal.append(scene("a"), STAMP)
    with Journal(tmp_path, REQUEST) as journal:
        assert kept(journal) == "a"


@settings(deadline=None)
@given(cut=st.integers(0, 10_000))
def test_a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("run")
    path = directory / ".partial" / "journal.jsonl"
    scenes = [scene(name) for name in "abc"]
    with Journal(directory, REQUEST) as journal:
        for result in scenes:
            journal.append(result, STAMP)
    data = path.read_bytes()
    path.write_bytes(data[: cut % (len(data) + 1)])
    whole = "abc"[: max(0, data[: cut % (len(data) + 1)].count(b"\n") - 1)]
    with Journal(directory, REQUEST) as journal:
        assert kept(journal) == whole
        journal.append(scene("d"), STAMP)
    with Journal(directory, REQUEST) as journal:
        assert kept(journal) == whole + "d"


def test_a_line_of_an_older_toolkit_is_scored_again(tmp_path: Path) -> None:
    with Journal(tmp_path, REQUEST) as journal:
        journal.append(scene("a"), STAMP)
    path = tmp_path / ".partial" / "journal.jsonl"
    header, line = path.read_text().splitlines()
    record = json.loads(line)
    del record["attributes"]
    path.write_text(f"{header}\n{json.dumps(record)}\n")
    with Journal(tmp_path, REQUEST) as journal:
        assert kept(journal) == ""


def test_a_garbled_line_costs_the_lines_behind_it_and_no_more(tmp_path: Path) -> None:
    with Journal(tmp_path, REQUEST) as journal:
        for name in "abc":
            journal.append(scene(name), STAMP)
    path = tmp_path / ".partial" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\x00" * 50 + b"\n", lines[3]]))
    with Journal(tmp_path, REQUEST) as journal:
        assert kept(journal) == "a"


def test_the_journal_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with Journal(tmp_path, REQUEST) as journal:
        journal.append(scene("a"), STAMP)
    other = replace(REQUEST, challenge="2024", rollouts="/data/others")
    with pytest.raises(WosacError, match="differs in challenge, rollouts "):
        Journal(tmp_path, other)
    with Journal(tmp_path, REQUEST) as journal:
        assert kept(journal) == "a"
    with Journal(tmp_path, other, overwrite=True) as journal:
        assert len(journal) == 0


def test_which_scenes_are_asked_for_and_how_others_are_does_not_change_what_is_kept(
    tmp_path: Path,
) -> None:
    with Journal(tmp_path, REQUEST) as journal:
        journal.append(scene("a"), STAMP)
    asked = replace(
        REQUEST, limit=5, scenario_ids="d" * 64, missing="intersect", rollouts_files="e" * 64
    )
    with Journal(tmp_path, asked) as journal:
        assert kept(journal) == "a"


def _open_journal(directory: Path, answers: Any) -> None:
    try:
        Journal(directory, REQUEST)
        answers.put("opened")
    except WosacError as error:
        answers.put(str(error))


def test_two_processes_cannot_score_into_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    with Journal(tmp_path, REQUEST):
        process = context.Process(target=_open_journal, args=(tmp_path, answers))
        process.start()
        assert "another process is scoring" in answers.get(timeout=30)
        process.join()
    process = context.Process(target=_open_journal, args=(tmp_path, answers))
    process.start()
    assert answers.get(timeout=30) == "opened"
    process.join()
