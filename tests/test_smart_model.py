"""SMART gives what the public code gives."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from smart_fixtures import (  # noqa: E402
    Recorded,
    corner_distance,
    largest,
    of_rollout,
    recorded_nano,
    recorded_small,
    turned,
)

from smart_r1.simulate import (  # noqa: E402
    ClosedLoop,
    Decision,
    begin,
    closest_to_log,
    most_probable,
    replay,
    simulate,
)

pytestmark = pytest.mark.womd


@pytest.fixture(scope="module", params=["sparse_eval_indexorder", "dense_cap_eval_indexorder"])
def small(request: pytest.FixtureRequest, smart_fixtures_dir: Path) -> Recorded:
    return recorded_small(smart_fixtures_dir, request.param)


@pytest.fixture(scope="module")
def nano(smart_fixtures_dir: Path) -> Recorded:
    return recorded_nano(smart_fixtures_dir, "open_loop_eval")


def _map_features(recorded: Recorded) -> torch.Tensor:
    from smart_r1.tokens.map_tokens import match_curves

    model, batch = recorded.model, recorded.batch
    index = match_curves(batch.map_points, batch.map_heading, model.curves)
    with torch.no_grad():
        return model.map_encoder(
            model.curves,
            index,
            (batch.map_type, batch.map_polygon, batch.map_light),
            batch.map_points[:, 0],
            batch.map_heading,
            batch.map_counts,
        )


def test_map_features_equal_the_public_ones(small: Recorded, nano: Recorded) -> None:
    assert largest(_map_features(small) - small.values["open/map_feature"]) < 1e-5
    assert largest(_map_features(nano) - nano.values["map_feature"]) < 1e-5


def test_logits_equal_the_public_ones_open_loop(small: Recorded, nano: Recorded) -> None:
    for recorded, name in ((small, "open/logits"), (nano, "next_token_logits")):
        with torch.no_grad():
            logits = recorded.model(recorded.batch, recorded.tokens)
        valid = recorded.tokens.valid[:, 1:17]
        assert largest((logits - recorded.values[name])[valid]) < 1e-5


def _compare_rollout(
    recorded: Recorded, theirs: dict[str, torch.Tensor], choose: object, tolerance: float
) -> ClosedLoop:
    """Simulate, and compare everything that they recorded of it."""
    seen: list[torch.Tensor] = []

    def watched(decision):  # type: ignore[no-untyped-def]
        seen.append(decision.logits[0])
        return choose(decision)  # type: ignore[operator]

    beginning = begin(recorded.model, recorded.batch, recorded.tokens)
    loop = simulate(recorded.model, beginning, watched, 1)
    valid = theirs["pred_valid"]
    assert torch.equal(loop.tokens.valid[0], valid)
    assert torch.equal(loop.tokens.index[0][valid], theirs["pred_idx"][valid])
    assert largest((torch.stack(seen, 1) - theirs["next_token_logits"])[valid[:, 1:17]]) < tolerance
    assert largest((loop.tokens.position[0] - theirs["pred_pos"])[valid]) < 1e-3
    assert largest(turned(loop.tokens.heading[0], theirs["pred_head"])[valid]) < 1e-4
    now = valid[:, 1]
    assert largest((loop.trajectory[0] - theirs["pred_traj_10hz"])[now]) < 1e-3
    assert largest(turned(loop.trajectory_heading[0], theirs["pred_head_10hz"])[now]) < 1e-4
    return loop


@pytest.mark.parametrize("name", ["greedy", "top5", "catk8", "trajeglish5"])
def test_a_replayed_rollout_equals_the_public_one(small: Recorded, name: str) -> None:
    theirs = of_rollout(small.values, name)
    _compare_rollout(small, theirs, replay(theirs["pred_idx"][None, :, 2:]), 1e-4)


def test_a_greedy_rollout_chooses_what_the_public_one_does(small: Recorded) -> None:
    _compare_rollout(small, of_rollout(small.values, "greedy"), most_probable, 1e-4)


def test_a_cat_k_rollout_chooses_what_the_public_one_does(small: Recorded) -> None:
    choose = closest_to_log(small.batch, small.model.motion, top_k=8)
    _compare_rollout(small, of_rollout(small.values, "catk8"), choose, 1e-4)


@pytest.mark.parametrize("name", ["rollout_greedy", "rollout_catk32_eval"])
def test_a_replayed_rollout_of_a_real_scene_equals_the_public_one(
    smart_fixtures_dir: Path, name: str
) -> None:
    recorded = recorded_nano(smart_fixtures_dir, name)
    theirs = dict(recorded.values)
    _compare_rollout(recorded, theirs, replay(theirs["pred_idx"][None, :, 2:]), 1e-4)


def test_cat_k_choices_of_a_real_scene_are_the_public_ones_or_as_near(
    smart_fixtures_dir: Path,
) -> None:
    """They measure distances in WOMD's frame, where float32 has half a millimetre."""
    recorded = recorded_nano(smart_fixtures_dir, "rollout_catk32_eval")
    model, batch = recorded.model, recorded.batch
    choose = closest_to_log(batch, model.motion, top_k=32)
    theirs = recorded.values["pred_idx"][None, :, 2:]
    valid = recorded.values["pred_valid"][None, :, 1]
    different = []

    def watched(decision: Decision) -> torch.Tensor:
        ours, other = choose(decision), theirs[:, :, decision.step]
        for agent in ((ours != other) & valid)[0].nonzero()[:, 0].tolist():
            different.append(
                [
                    corner_distance(batch, model.motion, decision, agent, int(index[0, agent]))
                    for index in (ours, other)
                ]
            )
        return other

    simulate(model, begin(model, batch, recorded.tokens), watched, 1)
    assert len(different) <= 2
    assert all(abs(ours - other) < 5e-4 for ours, other in different)
