from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from wosac_toolkit.attributes import SceneAttributes
from wosac_toolkit.challenge import CHALLENGES, get_challenge
from wosac_toolkit.cli.group import LazyGroup
from wosac_toolkit.errors import FormatError, WosacError
from wosac_toolkit.leaderboard import add, entry
from wosac_toolkit.leaderboard.add import add_entry, entry_of_run
from wosac_toolkit.leaderboard.board import (
    by_score,
    load_entries,
    obstacles_beside,
    published_folder,
    ranks,
    select,
    validate_folder,
)
from wosac_toolkit.leaderboard.entry import (
    BUCKETS,
    LIKELIHOODS,
    META_METRIC,
    SPLIT_SIZES,
    VALUE_FIELDS,
    Entry,
    Link,
    Results,
    check_sums,
    decimals,
    number_text,
    parameters_text,
    parse_entry,
    parse_parameters,
    sums,
)
from wosac_toolkit.metric import bucket_metrics
from wosac_toolkit.results import (
    SCORE_FIELDS,
    Request,
    SceneResult,
    read_run,
    read_summary,
    summarise,
    write_run,
)

MAIN = LazyGroup(
    name="wosac",
    program="wosac",
    commands={"leaderboard": ("wosac_toolkit.cli.leaderboard", "Published results.")},
)


def wosac(*args: object) -> Result:
    return CliRunner().invoke(MAIN, ["leaderboard", *map(str, args)], prog_name="wosac")


def fields(**changes: Any) -> dict[str, Any]:
    """The fields of a file: SMART-R1 as it is published, changed."""
    values = {META_METRIC: 0.7858, "kinematic_metrics": 0.4944}
    values |= {"interactive_metrics": 0.8110, "map_based_metrics": 0.9201, "min_ade": 1.2885}
    base = {
        "schema_version": 1,
        "method": "SMART-R1",
        "challenge": "2025",
        "split": "test",
        "n_scenarios": 44_920,
        "tier": "official server",
        "results": {"values": values, "source": {"text": "the paper"}},
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def results_fields(**changes: Any) -> dict[str, Any]:
    return {**fields()["results"], **changes}


def with_values(**changes: Any) -> dict[str, Any]:
    values = {**fields()["results"]["values"], **changes}
    return results_fields(values={n: v for n, v in values.items() if v is not ...})


def an_entry(id_: str = "smart-r1", **changes: Any) -> Entry:
    return parse_entry(json.dumps(fields(**changes)), id_)


def scored(score: float, id_: str = "", **changes: Any) -> Entry:
    """An entry of which little matters but its score."""
    results = results_fields(values={META_METRIC: score})
    return an_entry(id_ or f"e-{score}".replace(".", "-"), results=results, **changes)


def write_entry(folder: Path, name: str, **changes: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(fields(**changes)))
    return path


# --------------------------------------------------------------------------------------------------
# The published entries


@pytest.fixture(scope="module")
def published() -> dict[str, Entry]:
    return {each.id: each for each in load_entries()}


def test_smart_r1_stands_on_the_board_with_the_numbers_of_its_paper(
    published: dict[str, Entry],
) -> None:
    smart_r1 = published["2025-test-smart-r1"]
    assert (smart_r1.challenge, smart_r1.split, smart_r1.n_scenarios) == ("2025", "test", 44_920)
    assert [smart_r1[field] for field in (META_METRIC, *BUCKETS, "min_ade")] == [
        0.7858,
        0.4944,
        0.8110,
        0.9201,
        1.2885,
    ]
    assert smart_r1["collision_indication_likelihood"] == 0.9709
    assert smart_r1.parameters == 7_000_000
    assert smart_r1.paper == Link("arXiv 2509.23993", "https://arxiv.org/abs/2509.23993")
    assert not smart_r1.obstacles
    # An earlier snapshot of the official board is kept beside it.
    assert [other.values[META_METRIC] for other in smart_r1.other_results] == [0.7855]


def test_the_published_board_of_2025_is_in_the_order_of_its_scores(
    published: dict[str, Entry],
) -> None:
    places = ranks(published.values())
    board = sorted(
        (place, published[id_].method)
        for id_, place in places.items()
        if published[id_].challenge == "2025" and published[id_].split == "test"
    )
    assert board[:4] == [
        (1, "SMART-tiny-DecompGAIL"),
        (2, "SMART-R1"),
        (3, "SMART-tiny-RLFTSim"),
        (4, "TrajTok"),
    ]
    assert len(board) == 15


def test_the_published_entries_are_valid_and_what_does_not_add_up_is_noted() -> None:
    n_files, remarks = validate_folder()
    assert n_files == len(list(published_folder().glob("*.json"))) > 130
    assert [remark for remark in remarks if remark.level == "error"] == []
    assert [remark.where for remark in remarks] == [
        "2024-drivegatr-30m.json",
        "2024-test-gump.json",
        "2024-test-vbd.json",
        "2025-test-rosettasim.json",
        "2025-test-smart-base-as-summaries-of-smart-r1-print-it.json",
    ]


def test_published_results_on_the_test_split_are_of_the_official_server(
    published: dict[str, Entry],
) -> None:
    # Nobody else can score them: the logs of the test split are not public.
    on_test = [e for e in published.values() if e.split == "test" and not e.obstacles]
    assert {e.tier for e in on_test} == {"official server"}
    assert {e.n_scenarios for e in on_test} == {44_920}


def test_published_files_are_as_this_toolkit_would_write_them(published: dict[str, Entry]) -> None:
    for id_, each in published.items():
        assert (published_folder() / f"{id_}.json").read_text() == each.to_json()
        assert parse_entry(each.to_json(), id_) == each


# --------------------------------------------------------------------------------------------------
# Whether numbers add up


def remarks_of(**changes: Any) -> list[tuple[str, str]]:
    return [(r.level, r.what) for r in check_sums(an_entry(**changes), "file")]


CONFLICT = {"note": "Said so.", "field": META_METRIC}


def test_numbers_that_add_up_within_rounding_need_no_word() -> None:
    # 0.2 * 0.4944 + 0.45 * 0.8110 + 0.35 * 0.9201 = 0.785865, printed as 0.7858.
    (total,) = sums(an_entry().results, "2025")
    assert total.parts == BUCKETS
    assert total.computed == pytest.approx(0.785865, abs=1e-12)
    assert total.tolerance == pytest.approx(1e-4, abs=2e-6)
    assert total.agrees
    assert remarks_of() == []


@pytest.mark.parametrize("printed", [0.7856, 0.7861])
def test_a_difference_that_rounding_does_not_explain_must_be_noted(printed: float) -> None:
    values = with_values(realism_meta_metric=printed)
    ((level, what),) = remarks_of(results=values)
    assert level == "error"
    assert f"printed as {printed}" in what
    assert "0.78587" in what
    assert "note it as a conflict" in what
    noted = {**CONFLICT, "difference": 0.785865 - printed}
    ((level, what),) = remarks_of(results={**values, "conflicts": [noted]})
    assert level == "warning"
    assert what.endswith("as it notes")


def test_a_noted_difference_must_be_the_one_that_is_there() -> None:
    values = with_values(realism_meta_metric=0.7833)
    other = {**CONFLICT, "difference": 0.03}
    ((level, what),) = remarks_of(results={**values, "conflicts": [other]})
    assert level == "error"
    assert "+0.03 is noted" in what


def test_a_noted_difference_that_is_not_there_is_an_error() -> None:
    noted = {**CONFLICT, "difference": 0.002}
    ((level, what),) = remarks_of(results=results_fields(conflicts=[noted]))
    assert level == "error"
    assert "a conflict is noted, but" in what
    alone = {"values": {META_METRIC: 0.78}, "source": {"text": "x"}, "conflicts": [noted]}
    ((level, what),) = remarks_of(results=alone)
    assert level == "error"
    assert "its parts are not known" in what


def test_a_conflict_of_words_needs_no_numbers() -> None:
    conflicts = [{"note": "Parameters are given as 101M or 102M."}]
    assert remarks_of(results=results_fields(conflicts=conflicts)) == []


def test_other_results_are_held_to_the_same() -> None:
    other = with_values(realism_meta_metric=0.70)
    ((level, what),) = remarks_of(other_results=[other])
    assert level == "error"
    assert "in the numbers of 'the paper'" in what


def test_printed_digits_decide_what_rounding_explains() -> None:
    three = {META_METRIC: 0.703, "kinematic_metrics": 0.43}
    three |= {"interactive_metrics": 0.776, "map_based_metrics": 0.768}
    # The parts give 0.7040: 0.001 off, which three digits explain and four would not.
    results = Results(three, Link("x"))
    assert decimals(three, "kinematic_metrics") == 3
    assert sums(results, "2024")[0].agrees
    four = {**three, "map_based_metrics": 0.7681}
    assert not sums(Results(four, Link("x")), "2024")[0].agrees


@pytest.mark.parametrize("challenge", CHALLENGES)
@settings(deadline=None)
@given(scores=st.lists(st.floats(0, 1, width=32), min_size=10, max_size=10))
def test_scores_of_the_toolkit_add_up(challenge: str, scores: list[float]) -> None:
    components = get_challenge(challenge).components
    # With many digits, so that rounding explains little.
    values = {c.field: 0.0123456 + 0.9 * s for c, s in zip(components, scores, strict=False)}
    values |= bucket_metrics(values, challenge)
    values[META_METRIC] = math.fsum(c.weight * values[c.field] for c in components)
    totals = sums(Results(values, Link("x")), challenge)
    assert [total.field for total in totals] == [META_METRIC, *BUCKETS]
    assert all(total.agrees for total in totals)
    # Any component that was tampered with shows in its bucket.
    component = components[0]
    values[component.field] += 0.01 if values[component.field] < 0.5 else -0.01
    wrong = {t.field for t in sums(Results(values, Link("x")), challenge) if not t.agrees}
    assert wrong == {f"{component.bucket}_metrics"}


def test_without_buckets_the_meta_metric_is_held_to_the_components() -> None:
    components = get_challenge("2025").components
    values: dict[str, float] = {c.field: 0.5 for c in components} | {META_METRIC: 0.5}
    (total,) = sums(Results(values, Link("x")), "2025")
    assert total.parts == LIKELIHOODS
    assert total.computed == pytest.approx(0.5)
    assert not sums(Results({**values, META_METRIC: 0.8}, Link("x")), "2025")[0].agrees


def test_no_weights_are_known_of_other_metrics() -> None:
    results = with_values(realism_meta_metric=0.1)
    assert remarks_of(challenge="other", conditions="a metric of our own", results=results) == []


# --------------------------------------------------------------------------------------------------
# Files


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"schema_version": 2}, "schema version 2 is unknown"),
    ({"schema_version": ...}, "'schema_version' is missing"),
    ({"method": ...}, "'method' is missing"),
    ({"method": ""}, "'method' must have 1 to 500 characters"),
    ({"method": "x" * 501}, "'method' must have 1 to 500 characters"),
    ({"method": "two\nlines"}, "'method' must be one line of printable text"),
    ({"method": "turned \u202e round"}, "'method' must be one line of printable text"),
    ({"method": "half a \ud800"}, "'method' must be one line of printable text"),
    ({"method": 7}, "'method' must be text, not 7"),
    ({"challenge": "2022"}, "'challenge' is '2022', not one of"),
    ({"challenge": 2025}, "'challenge' must be text"),
    ({"challenge": "other"}, "needs 'conditions'"),
    ({"split": "val"}, "'split' is 'val', not one of"),
    ({"tier": "believed"}, "'tier' is 'believed', not one of"),
    ({"n_scenarios": 0}, "'n_scenarios' must be a positive whole number"),
    ({"n_scenarios": True}, "'n_scenarios' must be a whole number or null, not true"),
    ({"n_scenarios": 1.5}, "'n_scenarios' must be a whole number or null"),
    ({"parameters": "7M"}, "'parameters' must be a whole number or null"),
    ({"date": "2025"}, "'date' is '2025', not YYYY-MM"),
    ({"date": "2025-13"}, "'date' is '2025-13', not YYYY-MM"),
    ({"code": "javascript:alert(1)"}, "'code' is no http or https address"),
    ({"code": "https://"}, "'code' is no http or https address"),
    ({"code": "https://a b"}, "'code' is no http or https address"),
    ({"code": "https://[::1"}, "'code' is no http or https address"),
    ({"paper": "arXiv"}, "paper: not a JSON object"),
    ({"paper": {"text": "x", "url": "data:text/html,x"}}, "paper: 'url' is no http or https"),
    ({"paper": {"url": "https://arxiv.org"}}, "paper: 'text' is missing"),
    ({"notes": "a note"}, "'notes' must be a list"),
    ({"notes": [1]}, "'notes' must be a list of texts"),
    ({"local": 1}, "'local' must be true or false"),
    ({"score": 1, "rank": 2}, "unknown field 'rank', 'score'"),
    ({"results": ...}, "'results' is missing"),
    ({"results": []}, "results: not a JSON object"),
    ({"results": results_fields(source=...) | {"source": "x"}}, "source: not a JSON object"),
    ({"results": with_values(realism_meta_metric=...)}, "'realism_meta_metric' is missing"),
    ({"results": with_values(realism_meta_metric=1.1)}, "must be between 0 and 1, not 1.1"),
    ({"results": with_values(map_based_metrics=-0.1)}, "must be between 0 and 1, not -0.1"),
    ({"results": with_values(min_ade=-1)}, "'min_ade' must be 0 or more"),
    ({"results": with_values(min_ade=10**400)}, "'min_ade' must be a finite number"),
    ({"results": with_values(min_ade="1.3")}, "'min_ade' must be a whole number or a number"),
    ({"results": with_values(rmm=0.5)}, "results: values: unknown field 'rmm'"),
    ({"results": results_fields(intervals={"min_ade": [1.3, 1.4]})}, "does not hold its value"),
    ({"results": results_fields(intervals={"min_ade": [1.0]})}, "must be two numbers"),
    ({"results": results_fields(intervals={"min_ade": [1, "2"]})}, "must be two numbers"),
    ({"results": results_fields(intervals={"offroad": [0, 1]})}, "unknown field 'offroad'"),
    ({"results": results_fields(conflicts=[{"note": "x", "field": "min_ade"}])}, "not one of"),
    ({"results": results_fields(conflicts=[CONFLICT])}, "conflicts[0]: 'difference' is missing"),
    ({"results": results_fields(conflicts=[{}])}, "conflicts[0]: 'note' is missing"),
    ({"other_results": {}}, "'other_results' must be a list"),
    ({"other_results": [{}]}, "other_results[0]: 'values' is missing"),
]


@pytest.mark.parametrize(("changes", "what"), BAD_FIELDS, ids=[what for _, what in BAD_FIELDS])
def test_what_is_wrong_with_a_field_is_named(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(FormatError) as error:
        an_entry(**changes)
    assert what in str(error.value)
    assert str(error.value).startswith("smart-r1")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"schema_version": 1, "schema_version": 1}', "a field is given twice"),
        (json.dumps(fields()).replace("0.7858", "NaN"), "NaN is not a number"),
        (json.dumps(fields()).replace("0.7858", "Infinity"), "Infinity is not a number"),
        (json.dumps(fields()).replace("0.7858", "1e999"), "must be a finite number"),
        ("[" * 100_000, "not JSON"),
        ('{"n_scenarios": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_text_that_is_no_entry_is_refused(text: str, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        parse_entry(text, "smart-r1")


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../x", "a--b", "-a", "a/b", "x" * 121])
def test_a_file_is_named_by_plain_words(name: str) -> None:
    with pytest.raises(FormatError, match="rename the file"):
        parse_entry(json.dumps(fields()), name)


@settings(deadline=None)
@given(
    method=st.text(st.characters(codec="utf-8"), min_size=1).filter(
        lambda text: text.isprintable() and text == text.strip() and len(text) <= 500
    ),
    score=st.floats(0, 1),
    rate=st.none() | st.floats(0, 1),
    parameters=st.none() | st.integers(1, 10**13),
)
def test_an_entry_survives_being_written_and_read(
    method: str, score: float, rate: float | None, parameters: int | None
) -> None:
    values = {META_METRIC: score, "min_ade": 0.0}
    if rate is not None:
        values["simulated_collision_rate"] = rate
    written = replace(
        an_entry(),
        method=method,
        parameters=parameters,
        results=Results(values, Link("x", "https://example.org"), intervals={META_METRIC: (0, 1)}),
        reference=True,
    )
    assert parse_entry(written.to_json(), written.id) == written


def test_a_folder_is_checked_whole_and_every_bad_file_named(tmp_path: Path) -> None:
    write_entry(tmp_path, "good")
    write_entry(tmp_path, "wrong-sum", method="B", results=with_values(realism_meta_metric=0.5))
    write_entry(tmp_path, "wrong-field", split="somewhere")
    write_entry(tmp_path, "zz-twice", method="smart-r1")
    (tmp_path / "latin.json").write_bytes(b'{"method": "\xe9"}')
    (tmp_path / "large.json").write_bytes(b" " * (1 << 20) + b"{}")
    (tmp_path / "README.md").write_text("not an entry")
    n_files, remarks = validate_folder(tmp_path)
    assert n_files == 6
    assert [(r.level, r.where.split(":")[0]) for r in remarks] == [
        ("error", "large.json"),
        ("error", "latin.json"),
        ("error", "wrong-field.json"),
        ("error", "wrong-sum.json"),
        ("error", "zz-twice.json"),
    ]
    assert "larger than 1 MiB" in remarks[0].what
    assert "not UTF-8" in remarks[1].what
    assert remarks[4].what == "the same method, metric and scenes as good.json"
    with pytest.raises(FormatError, match=r"large\.json"):
        load_entries(tmp_path)


def test_a_folder_without_entries_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WosacError, match="no entries"):
        load_entries(tmp_path)
    with pytest.raises(WosacError, match="no such folder"):
        validate_folder(tmp_path / "absent")


# --------------------------------------------------------------------------------------------------
# Who is compared with whom


@pytest.mark.parametrize(
    ("changes", "obstacles"),
    [
        ({}, ()),
        ({"n_scenarios": 44_926}, ()),
        ({"split": "validation", "n_scenarios": 44_097}, ()),
        ({"split": "validation", "n_scenarios": 44_102}, ()),
        ({"split": "validation"}, ("44,920 scenes, not the whole split",)),
        ({"split": "validation", "n_scenarios": ...}, ("number of scenes not stated",)),
        ({"n_scenarios": ..., "conditions": "2 % of the split"}, ("2 % of the split",)),
        ({"conditions": "vehicles only"}, ("vehicles only",)),
        ({"split": "not stated"}, ("split not stated",)),
        ({"split": "other"}, ("not a split of WOMD",)),
        ({"split": "other", "conditions": "8 scenes"}, ("8 scenes",)),
    ],
)
def test_only_a_whole_split_under_the_official_rules_can_be_compared(
    changes: dict[str, Any], obstacles: tuple[str, ...]
) -> None:
    assert an_entry(**changes).obstacles == obstacles


def test_the_sizes_of_the_splits_are_those_that_papers_state() -> None:
    assert SPLIT_SIZES["test"][0] == 44_920
    assert SPLIT_SIZES["validation"][0] == 44_097


def test_places_are_counted_among_comparable_entries_and_shared_by_equals() -> None:
    board = [
        scored(0.80, "first"),
        scored(0.79, "second"),
        scored(0.79, "equal"),
        scored(0.78, "fourth"),
        scored(0.83, "log", reference=True),
        scored(0.82, "part", conditions="2 % of the split"),
        scored(0.81, "mine", local=True),
        scored(0.70, "other-year", challenge="2024"),
        scored(0.60, "other-split", split="validation", n_scenarios=44_097),
    ]
    assert ranks(board) == {
        "first": 1,
        "second": 2,
        "equal": 2,
        "fourth": 4,
        "other-year": 1,
        "other-split": 1,
    }


def test_the_board_is_ordered_by_year_then_score_then_name() -> None:
    board = [
        scored(0.9, "old", challenge="2023"),
        scored(0.7, "b"),
        scored(0.7, "a"),
        scored(0.8, "c"),
        scored(0.95, "z", challenge="other", conditions="30 s"),
    ]
    assert [e.id for e in by_score(board)] == ["c", "a", "b", "old", "z"]


def test_a_selection_holds_one_metric_and_whole_splits_and_never_hides_local_runs() -> None:
    board = [
        scored(0.80, "test"),
        scored(0.81, "part", conditions="2 % of the split"),
        scored(0.82, "validation", split="validation", n_scenarios=44_097),
        scored(0.70, "old", challenge="2024"),
        scored(0.60, "mine", split="other", conditions="8 scenes", local=True),
        scored(0.99, "mine-old", challenge="2024", local=True),
    ]
    ids = [e.id for e in select(board, "2025", "test")]
    # What is of another metric comes last, however high its score.
    assert ids == ["test", "mine", "mine-old"]
    assert next(e.id for e in select(board, "2025", "validation")) == "validation"
    assert [e.id for e in select(board, "2025", "all")] == [
        "validation",
        "part",
        "test",
        "mine",
        "mine-old",
    ]


def test_what_keeps_an_entry_from_comparison_depends_on_what_stands_beside_it() -> None:
    whole = scored(0.8, split="validation", n_scenarios=44_097, local=True)
    assert obstacles_beside(whole, "2025", "validation") == ()
    assert obstacles_beside(whole, "2025", "all") == ()
    assert obstacles_beside(whole, "2025", "test") == ("validation split",)
    assert obstacles_beside(whole, "2024", "validation") == ("2025 metric",)
    small = scored(0.8, split="other", conditions="8 scenes", local=True)
    assert obstacles_beside(small, "2024", "test") == ("2025 metric", "8 scenes")


# --------------------------------------------------------------------------------------------------
# Numbers as text


def test_numbers_are_shown_with_the_digits_that_are_printed() -> None:
    values = {META_METRIC: 0.782, "kinematic_metrics": 0.4920, "map_based_metrics": 0.9167}
    results = Results({**values, "min_ade": 1.3, "simulated_offroad_rate": 1 / 3}, Link("x"))
    assert number_text(results, META_METRIC) == "0.7820"
    assert number_text(results, "min_ade") == "1.3"
    assert number_text(results, "simulated_offroad_rate") == "0.3333"
    assert number_text(results, "interactive_metrics") == ""
    assert decimals({META_METRIC: 1e-5}, META_METRIC) == 5


@pytest.mark.parametrize(
    ("text", "n"),
    [("7M", 7_000_000), ("0.5B", 500_000_000), ("65k", 65_000), ("24", 24), ("1.2T", 1.2e12)],
)
def test_numbers_of_parameters_are_read_with_their_suffix(text: str, n: float) -> None:
    assert parse_parameters(text) == n
    assert parse_parameters(parameters_text(int(n))) == n


@pytest.mark.parametrize("text", ["", "M", "7 millions", "-7M", "1e9", "7MB", "nan", "9" * 40])
def test_other_texts_are_no_number_of_parameters(text: str) -> None:
    with pytest.raises(WosacError, match="no number of parameters"):
        parse_parameters(text)


# --------------------------------------------------------------------------------------------------
# Runs of wosac score


ATTRIBUTES = SceneAttributes(
    n_evaluated_vehicles=3,
    n_evaluated_pedestrians=1,
    n_evaluated_cyclists=0,
    has_traffic_lights=True,
    sdc_at_intersection=False,
    mean_speed=5.0,
    sdc_manoeuvre="straight",
)


def write_scores(
    folder: Path,
    n_scenes: int,
    *,
    challenge: str = "2025",
    n_rollouts: int = 32,
    engine: str = "",
    spoil: Callable[[int, dict[str, float | None]], None] = lambda scene, values: None,
) -> Path:
    """A finished run with scores drawn at random."""
    rng = np.random.default_rng(n_scenes)
    version = get_challenge(challenge)
    request = Request(
        challenge=challenge,
        engine=engine,
        toolkit_version="0.1.0",
        rollouts="/rollouts",
        rollouts_files="a" * 64,
        scenarios="/scenarios",
        scenarios_files="b" * 64,
        n_rollouts=None,
        per_agent=False,
        limit=None,
        scenario_ids=None,
        missing="error",
    )
    scenes = []
    for number in range(n_scenes):
        likelihoods = {c.field: float(rng.uniform(0.5, 1)) for c in version.components}
        values: dict[str, float | None] = dict.fromkeys(SCORE_FIELDS)
        values |= likelihoods | bucket_metrics(likelihoods, challenge)
        values["metametric"] = sum(c.weight * likelihoods[c.field] for c in version.components)
        values["average_displacement_error"] = float(rng.uniform(2, 4))
        values["min_average_displacement_error"] = float(rng.uniform(1, 2))
        spoil(number, values)
        scenes.append(
            SceneResult(
                scenario_id=f"{number:016x}",
                values=tuple(values[field] for field in SCORE_FIELDS),
                n_rollouts=n_rollouts,
                n_sim_agents=10,
                n_evaluated_agents=4,
                attributes=ATTRIBUTES,
            )
        )
    write_run(folder, summarise(scenes, request, version), scenes)
    return folder


@pytest.fixture
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of WOMD so small that whole ones are quickly made."""
    sizes = MappingProxyType({"test": (50,), "validation": (40, 41)})
    monkeypatch.setattr(entry, "SPLIT_SIZES", sizes)
    monkeypatch.setattr(add, "SPLIT_SIZES", sizes)


def edit_summary(run: Path, **changes: Any) -> None:
    path = run / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.usefixtures("small_splits")
def test_a_run_on_a_whole_split_becomes_an_entry(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run", 40)
    details = {"parameters": 7_000_000, "code": "https://example.org/code"}
    made = entry_of_run(run, "My model", details=details)
    summary = read_summary(run)
    assert made.id == "2025-validation-my-model"
    assert (made.method, made.challenge, made.split) == ("My model", "2025", "validation")
    assert (made.n_scenarios, made.tier, made.local) == (40, "re-scored from rollouts", False)
    assert (made.parameters, made.code) == (7_000_000, "https://example.org/code")
    assert made.signature == summary.signature
    assert made.obstacles == ()
    assert made.score == summary.metrics["metametric"]
    assert made["min_ade"] == summary.metrics["min_average_displacement_error"]
    assert made["map_based_metrics"] == summary.buckets["map_based_metrics"]
    assert set(made.results.values) == set(VALUE_FIELDS) - {
        f"simulated_{name}_rate" for name in ("collision", "offroad", "traffic_light_violation")
    }
    assert list(check_sums(made, "file")) == []
    assert parse_entry(made.to_json(), made.id) == made


@pytest.mark.usefixtures("small_splits")
def test_intervals_are_those_of_means_over_scenes(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run", 40)
    made = entry_of_run(run, "x")
    for field, column in ((META_METRIC, "metametric"), ("map_based_metrics", "map_based_metrics")):
        scores = read_run(run).scores[column].to_numpy()
        half = 1.96 * scores.std(ddof=1) / np.sqrt(40)
        low, high = made.results.intervals[field]
        assert low == pytest.approx(scores.mean() - half, abs=1e-5)
        assert high == pytest.approx(scores.mean() + half, abs=1e-5)


def test_few_scenes_have_no_interval(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run", 29)
    assert entry_of_run(run, "x", local=True).results.intervals == {}


def test_a_part_of_a_split_is_refused_and_taken_as_local(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run", 8)
    with pytest.raises(WosacError, match="8 scenes are no whole split of WOMD") as error:
        entry_of_run(run, "x")
    assert "44,097" in str(error.value)
    assert "--local" in str(error.value)
    made = entry_of_run(run, "x", local=True)
    assert (made.local, made.split, made.n_scenarios) == (True, "other", 8)
    assert made.id == "local-2025-8-scenes-x"
    list_hash = read_summary(run).scenario_list_sha256[:8]
    assert made.obstacles == (f"8 other scenes, list {list_hash}",)


@pytest.mark.usefixtures("small_splits")
def test_a_whole_split_is_refused_with_fewer_rollouts(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run", 41, n_rollouts=8)
    with pytest.raises(WosacError, match="the challenge asks for 32 rollouts"):
        entry_of_run(run, "x")
    assert entry_of_run(run, "x", local=True).obstacles == ("8 rollouts a scene",)


@pytest.mark.usefixtures("small_splits")
def test_a_whole_split_is_refused_where_the_mean_leaves_out_scenes(tmp_path: Path) -> None:
    def spoil(scene: int, values: dict[str, float | None]) -> None:
        if scene == 7:
            values["metametric"] = values["time_to_collision_likelihood"] = math.nan
            values["interactive_metrics"] = math.nan

    run = write_scores(tmp_path / "run", 40, spoil=spoil)
    with pytest.raises(WosacError, match="the meta-metric leaves out 1 scenes"):
        entry_of_run(run, "x")
    made = entry_of_run(run, "x", local=True)
    assert made.obstacles == ("1 scenes left out of the mean",)
    # Means over different scenes do not add up, and the entry says so itself.
    assert made.conflicts
    assert {remark.level for remark in check_sums(made, "file")} == {"warning"}


@pytest.mark.parametrize(
    ("signature", "what"),
    [
        ("", "unknown signature"),
        ("nrefs:1|case:mixed|version:2.0.0", "unknown signature (case)"),
        ("wosac|metric:2025|engine:my.scorer|rollouts:32|scenes:8", "unknown signature (engine)"),
        ("wosac|metric:2025|metric:2025", "unknown signature"),
        ("wosac", "does not fit the summary in metric, rollouts, scenes, list, version"),
        ("{}|extra:1", "unknown signature (extra)"),
    ],
)
def test_an_unknown_signature_is_refused_even_as_local(
    tmp_path: Path, signature: str, what: str
) -> None:
    run = write_scores(tmp_path / "run", 8)
    edit_summary(run, signature=signature.format(read_summary(run).signature))
    with pytest.raises(WosacError) as error:
        entry_of_run(run, "x", local=True)
    assert what in str(error.value)


def test_a_signature_must_fit_its_summary(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run", 8)
    edit_summary(run, n_scenarios=44_097)
    with pytest.raises(WosacError, match="does not fit the summary in scenes"):
        entry_of_run(run, "x")


def test_runs_of_another_engine_are_refused(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run", 8, engine="my.scorer")
    with pytest.raises(WosacError, match=r"unknown signature \(engine\)"):
        entry_of_run(run, "x", local=True)


def test_means_must_be_those_of_the_scenes(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run", 8)
    buckets = {**read_summary(run).buckets, META_METRIC: 0.99}
    edit_summary(run, buckets=dict(buckets))
    with pytest.raises(WosacError, match=r"realism_meta_metric is 0.99 in summary.json"):
        entry_of_run(run, "x", local=True)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WosacError, match="no finished run"):
        entry_of_run(tmp_path, "x")
    run = write_scores(tmp_path / "run", 8)
    shutil.copy(write_scores(tmp_path / "other", 9) / "scores.parquet", run)
    with pytest.raises(WosacError, match="different scenes"):
        entry_of_run(run, "x", local=True)


def test_an_entry_is_added_once_unless_overwritten(tmp_path: Path) -> None:
    made = an_entry("mine")
    path = add_entry(made, tmp_path)
    assert load_entries(tmp_path) == [made]
    with pytest.raises(WosacError, match="the entry exists"):
        add_entry(made, tmp_path)
    better = dataclasses.replace(made, method="Better")
    assert add_entry(better, tmp_path, overwrite=True) == path
    assert load_entries(tmp_path) == [better]
    assert [p.name for p in tmp_path.iterdir()] == ["mine.json"]
    with pytest.raises(WosacError, match="no such folder"):
        add_entry(made, tmp_path / "absent")


# --------------------------------------------------------------------------------------------------
# The command


def test_show_prints_the_board_best_first() -> None:
    result = wosac("show")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("SMART-R1 ")]
    assert line.split()[:7] == ["SMART-R1", "2", "0.7858", "0.4944", "0.8110", "0.9201", "1.2885"]
    assert "other figures noted" in line
    names = [line.split()[0] for line in lines if line]
    assert names.index("SMART-tiny-DecompGAIL") < names.index("SMART-R1") < names.index("TrajTok")
    assert lines[-1] == "WOSAC 2025 metric, the whole test split: 17 entries"


def test_show_chooses_metric_and_split() -> None:
    rows = json.loads(wosac("show", "--year", "2024", "--format", "json").stdout)
    assert {(row["challenge"], row["split"]) for row in rows} == {("2024", "test")}
    rows = json.loads(wosac("show", "--split", "all", "--format", "json").stdout)
    assert {row["challenge"] for row in rows} == {"2025"}
    assert {row["split"] for row in rows} == {"test", "validation", "not stated"}
    parts = [row for row in rows if row.get("conditions") == "2 % of the split"]
    assert parts
    assert all(row["place"] is None and row["obstacles"] for row in parts)


def test_show_prints_all_digits_as_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(wosac("show", "--format", "csv").stdout)))
    by_name = {row["method"]: row for row in rows}
    assert by_name["SMART-R1"]["realism"] == "0.7858"
    assert by_name["SMART-R1"]["parameters"] == "7000000"
    assert by_name["unimotion"]["parameters"] == ""


@pytest.mark.parametrize("format_", ["markdown", "latex"])
def test_show_prints_for_papers(format_: str) -> None:
    result = wosac("show", "--format", format_)
    assert result.exit_code == 0
    assert "SMART-R1" in result.stdout


def test_show_puts_runs_beside_the_published(tmp_path: Path) -> None:
    write_scores(tmp_path / "trial", 8)
    result = wosac("show", "--run", f"mine={tmp_path / 'trial'}", "--run", tmp_path / "trial")
    assert result.exit_code == 0, result.output
    for name in ("mine", "trial"):
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"{name} ")]
        assert "not comparable: 8 other scenes" in line
        assert "local run" in line
    result = wosac("show", "--run", tmp_path / "trial", "--run", tmp_path / "trial")
    assert result.exit_code == 2
    assert "two runs are called 'trial'" in result.stderr


def test_validate_passes_the_published_entries_with_their_warnings() -> None:
    result = wosac("validate")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert sum(line.startswith("warning: ") for line in lines) == 5
    assert lines[-1].endswith("entries: 0 errors, 5 warnings")


def test_validate_fails_on_an_inconsistency_that_is_not_noted(tmp_path: Path) -> None:
    write_entry(tmp_path, "wrong", results=with_values(realism_meta_metric=0.79))
    result = wosac("validate", "--entries", tmp_path)
    assert result.exit_code == 1
    first, last = result.stdout.splitlines()
    assert first.startswith("error: wrong.json: realism_meta_metric is printed as 0.7900")
    assert "difference -0.00413" in first
    assert last == "1 entry: 1 error, 0 warnings"


@pytest.mark.usefixtures("small_splits")
def test_add_writes_an_entry_that_show_prints(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run", 40)
    entries = tmp_path / "entries"
    entries.mkdir()
    command = ("add", run, "--name", "Mine", "--parameters", "7M", "--entries", entries)
    result = wosac(*command, "--paper", "https://example.org/paper", "--note", "A trial.")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"added: {entries / '2025-validation-mine.json'}\n"
    (made,) = load_entries(entries)
    assert made.paper == Link("https://example.org/paper", "https://example.org/paper")
    assert (made.parameters, made.notes) == (7_000_000, ("A trial.",))
    shown = wosac("show", "--split", "validation", "--entries", entries)
    assert shown.stdout.splitlines()[2].split()[:2] == ["Mine", "1"]
    again = wosac(*command)
    assert again.exit_code == 2
    assert "--overwrite replaces it" in again.stderr


def test_add_tells_in_one_line_what_it_refuses(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run", 8)
    result = wosac("add", run, "--name", "Mine", "--entries", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"wosac: error: {run}: 8 scenes are no whole split")
    assert len(result.stderr.splitlines()) == 1
    bad = ("--local", "--code", "javascript:alert(1)", "--entries", tmp_path)
    result = wosac("add", run, "--name", "Mine", *bad)
    assert result.exit_code == 2
    assert "'code' is no http or https address" in result.stderr
    assert not list(tmp_path.glob("*.json"))
