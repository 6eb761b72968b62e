"""The model against an edge-by-edge oracle, on made-up scenes; no data is needed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from smart_oracle import Oracle, random_weights  # noqa: E402

from smart_r1.batching import SceneBatch  # noqa: E402
from smart_r1.model import catk, neighbours  # noqa: E402
from smart_r1.model.config import ModelConfig  # noqa: E402
from smart_r1.model.smart import SMART  # noqa: E402
from smart_r1.simulate import (  # noqa: E402
    Sampling,
    begin,
    most_probable,
    replay,
    sample,
    simulate,
)
from smart_r1.tokens.map_tokens import match_curves  # noqa: E402
from smart_r1.tokens.motion import MotionTokens  # noqa: E402
from smart_r1.tokens.vocabulary import CLASS_SIZE, Vocabulary, box_corners  # noqa: E402

CONFIG = ModelConfig(16, 2, 4, 4, 1, 2, 10.0, 20.0, 25.0, 3, entry_motion="global")
N_TOKENS, N_CURVES = 12, 7


def _vocabulary(rng: np.random.Generator) -> Vocabulary:
    time = np.linspace(0, 1, 6)
    end = rng.uniform([0, -0.5, -0.3], [5, 0.5, 0.3], (3, N_TOKENS, 3))
    poses = time[:, None] * end[:, :, None]
    poses = np.concatenate(
        [poses[..., :2], np.cos(poses[..., 2:]), np.sin(poses[..., 2:])], axis=-1
    )
    corners = box_corners(poses, CLASS_SIZE[:, None, None])
    curves = np.linspace(0, 1, 11)[:, None] * rng.uniform([1, -1], [5, 1], (N_CURVES, 1, 2))
    return Vocabulary(corners.astype(np.float32), curves.astype(np.float32))


def _batch(rng: np.random.Generator, counts: tuple[int, ...], maps: tuple[int, ...]) -> SceneBatch:
    n, p = sum(counts), sum(maps)
    velocity = rng.uniform(-4, 4, (n, 1, 2))
    position = rng.uniform(-20, 20, (n, 1, 2)) + velocity * np.arange(19)[:, None] / 2
    valid = np.ones((n, 19), bool)
    valid[0, :2] = False  # Enters in the history.
    valid[-1, 9:] = False  # Leaves.
    heading = rng.uniform(-4, 4, (n, 19))
    points = rng.uniform(-30, 30, (p, 1, 2)) + np.cumsum(rng.uniform(-2, 2, (p, 3, 2)), axis=1)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array, np.float32))

    return SceneBatch(
        scenario_ids=tuple(f"s{i}" for i in range(len(counts))),
        origin=torch.from_numpy(rng.uniform(-100, 100, (len(counts), 2))),
        agent_counts=counts,
        map_counts=maps,
        object_ids=torch.arange(n),
        classes=torch.from_numpy(rng.integers(0, 3, n)),
        size=tensor(rng.uniform(1, 5, (n, 3))),
        z=torch.zeros(n),
        roles=torch.zeros(n, 3, dtype=torch.bool),
        position=tensor(position * valid[..., None]),
        heading=tensor(heading * valid),
        valid=torch.from_numpy(valid),
        train_mask=torch.ones(n, dtype=torch.bool),
        map_points=tensor(points),
        map_heading=tensor(rng.uniform(-3, 3, p)),
        map_type=torch.from_numpy(rng.integers(0, 10, p)),
        map_polygon=torch.from_numpy(rng.integers(0, 4, p)),
        map_light=torch.from_numpy(rng.integers(0, 5, p)),
    )


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return random_weights(16, 2, 4, 4, (1, 2), N_TOKENS, seed=1)


@pytest.fixture(scope="module")
def model(weights: dict[str, torch.Tensor]) -> SMART:
    made = SMART(CONFIG, _vocabulary(np.random.default_rng(0)))
    catk.load_weights(made, weights, "weights")
    return made.eval()


def _scene(batch: SceneBatch, scene: int) -> tuple[slice, slice]:
    """The agents and the map tokens of a scene."""
    agents = np.cumsum([0, *batch.agent_counts])
    tokens = np.cumsum([0, *batch.map_counts])
    return slice(*agents[scene : scene + 2]), slice(*tokens[scene : scene + 2])


def _expected(
    weights: dict[str, torch.Tensor], model: SMART, batch: SceneBatch, tokens: MotionTokens
) -> torch.Tensor:
    """The oracle's logits of all scenes, [A, 16, V] in float64."""
    oracle = Oracle(weights, 2, (10.0, 20.0, 25.0), 3)
    scenes = []
    for scene in range(len(batch)):
        agents, roads = _scene(batch, scene)
        points, turns = batch.map_points[roads].double(), batch.map_heading[roads].double()
        index = match_curves(batch.map_points[roads], batch.map_heading[roads], model.curves)
        kinds = [batch.map_type[roads], batch.map_polygon[roads], batch.map_light[roads]]
        features = oracle.map_features(model.curves.double(), index, kinds, points[:, 0], turns)
        states = (
            tokens.index[agents, :17],
            tokens.position[agents, :17].double(),
            tokens.heading[agents, :17].double(),
            tokens.valid[agents, :17],
        )
        enters = model.config.entry_motion == "global"
        logits = oracle.logits(
            model.motion[:, :, -1].flatten(2).double(),
            states,
            batch.classes[agents],
            batch.size[agents].double(),
            (features, points[:, 0], turns),
            batch.origin[scene].float().double() if enters else None,
        )
        scenes.append(logits[:, 1:])
    return torch.cat(scenes)


def _with_entry(model: SMART, entry: str) -> SMART:
    made = SMART(dataclasses.replace(CONFIG, entry_motion=entry), model.vocabulary())
    made.load_state_dict(model.state_dict())
    return made.eval()


@pytest.mark.parametrize("entry", ["global", "zero"])
def test_logits_equal_the_oracle_s(
    weights: dict[str, torch.Tensor], entry: str, model: SMART
) -> None:
    """Two scenes in a batch; agents that enter and leave; motion of those that enter."""
    batch = _batch(np.random.default_rng(3), (4, 3), (9, 6))
    ours = _with_entry(model, entry)
    tokens = ours.tokenize(batch)
    exact = {name: weight.double() for name, weight in weights.items()}
    with torch.no_grad():
        logits = ours(batch, tokens)
        expected = _expected(exact, ours, batch, tokens)
    valid = tokens.valid[:, 1:17]
    assert valid.any()
    assert not valid.all()
    torch.testing.assert_close(logits[valid], expected[valid].float(), rtol=1e-4, atol=1e-4)


def test_gradients_equal_the_oracle_s(weights: dict[str, torch.Tensor], model: SMART) -> None:
    """Of every weight, although half of the forward pass is computed again for them."""
    batch = _batch(np.random.default_rng(4), (3, 2), (6, 4))
    ours = _with_entry(model, "zero")
    tokens = ours.tokenize(batch)
    valid = tokens.valid[:, 1:17]
    wanted = torch.from_numpy(np.random.default_rng(5).standard_normal((*valid.shape, N_TOKENS)))
    (ours(batch, tokens) * wanted)[valid].sum().backward()
    exact = {name: weight.double().requires_grad_() for name, weight in weights.items()}
    for name in exact:  # One norm for both, where sources and targets are of one kind.
        if "attn_prenorm_x_dst" in name and "pt2a" not in name:
            exact[name] = exact[name.replace("x_dst", "x_src")]
    (_expected(exact, ours, batch, tokens) * wanted)[valid].sum().backward()
    # What no agent needs, such as the tokens of an absent class, has no gradient or one of zeros.
    found = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in ours.named_parameters()
    }
    scale = max(float(gradient.abs().max()) for gradient in found.values())
    for name, weight in exact.items():
        key = catk.our_name(name)
        if "attn_prenorm_x_dst" in name and "pt2a" not in name:
            continue
        theirs = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(
            found[key], theirs.float(), rtol=1e-3, atol=1e-5 * scale, msg=key
        )


def test_the_cap_of_map_neighbours_keeps_the_lowest_rows() -> None:
    """A hundred beside itself; one more where it is not among the first hundred and one."""
    position = torch.linspace(0, 5, 150)[:, None].repeat(1, 2)
    near = neighbours.between_map_tokens(position, [150], 10.0, 32)
    sources: dict[int, list[int]] = {}
    for table in near.tables:
        for target, row, absent in zip(
            table.targets.tolist(), table.sources.tolist(), table.absent[:, 0].tolist(), strict=True
        ):
            sources[target] = [s for s, a in zip(row, absent, strict=True) if a == 0]
    assert sources[3] == [j for j in range(101) if j != 3]
    assert sources[149] == list(range(101))


def _moved(batch: SceneBatch, by: tuple[float, float]) -> SceneBatch:
    shift = torch.tensor(by)
    return dataclasses.replace(
        batch,
        position=torch.where(batch.valid[..., None], batch.position + shift, batch.position),
        map_points=batch.map_points + shift,
        origin=batch.origin - shift.double(),
    )


def test_logits_do_not_depend_on_where_the_local_frame_is(model: SMART) -> None:
    """Both for our models, which know relative poses only, and for compatible ones."""
    batch = _batch(np.random.default_rng(5), (4,), (9,))
    moved = _moved(batch, (8.0, -16.0))
    with torch.no_grad():
        a, b = (model(one, model.tokenize(one)) for one in (batch, moved))
    valid = model.tokenize(batch).valid[:, 1:17]
    torch.testing.assert_close(a[valid], b[valid], rtol=1e-3, atol=1e-3)


def test_a_rotated_scene_has_the_same_logits_without_the_compatible_entry(model: SMART) -> None:
    ours = _with_entry(model, "zero")
    batch = _batch(np.random.default_rng(6), (5,), (9,))
    turn = torch.tensor(1.1)
    rotation = torch.stack(
        [torch.stack([turn.cos(), turn.sin()]), torch.stack([-turn.sin(), turn.cos()])]
    )
    rotated = dataclasses.replace(
        batch,
        position=batch.position @ rotation,
        heading=torch.where(batch.valid, batch.heading + turn, batch.heading),
        map_points=batch.map_points @ rotation,
        map_heading=batch.map_heading + turn,
    )
    with torch.no_grad():
        a, b = (ours(one, ours.tokenize(one)) for one in (batch, rotated))
    valid = ours.tokenize(batch).valid[:, 1:17]
    torch.testing.assert_close(a[valid], b[valid], rtol=1e-3, atol=1e-3)


def test_scenes_do_not_know_of_others_in_the_batch(model: SMART) -> None:
    rng = np.random.default_rng(7)
    both = _batch(rng, (4, 3), (9, 6))
    agents, roads = _scene(both, 1)
    fields = {}
    for field in dataclasses.fields(SceneBatch):
        value = getattr(both, field.name)
        if field.name in ("scenario_ids", "agent_counts", "map_counts", "origin"):
            fields[field.name] = value[1:]
        else:
            fields[field.name] = value[roads if field.name.startswith("map_") else agents]
    alone = SceneBatch(**fields)
    with torch.no_grad():
        together = model(both, model.tokenize(both))[agents]
        apart = model(alone, model.tokenize(alone))
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_the_order_of_agents_does_not_matter(model: SMART) -> None:
    batch = _batch(np.random.default_rng(8), (6,), (9,))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    of_agents = ("object_ids", "classes", "size", "z", "roles", "position", "heading", "valid")
    permuted = dataclasses.replace(
        batch, **{name: getattr(batch, name)[order] for name in of_agents}
    )
    with torch.no_grad():
        a, b = (model(one, model.tokenize(one)) for one in (batch, permuted))
    valid = model.tokenize(permuted).valid[:, 1:17]
    torch.testing.assert_close(a[order][valid], b[valid], rtol=1e-4, atol=1e-4)


def test_stepping_gives_the_logits_of_one_parallel_pass(model: SMART) -> None:
    """Over the states that a rollout visits, with more steps than are kept in memory."""
    batch = _batch(np.random.default_rng(9), (4, 3), (9, 6))
    seen = []

    def watched(decision):  # type: ignore[no-untyped-def]
        seen.append(decision.logits)
        return sample(batch, range(3), Sampling(N_TOKENS), 0)(decision)

    loop = simulate(model, begin(model, batch, model.tokenize(batch)), watched, 3)
    with torch.no_grad():
        parallel = model(batch, loop.tokens)
    valid = loop.tokens.valid[:, :, 1:17]
    torch.testing.assert_close(torch.stack(seen, 2)[valid], parallel[valid], rtol=1e-4, atol=1e-4)
    chosen = parallel.log_softmax(-1).gather(-1, loop.tokens.index[:, :, 2:, None])[..., 0]
    torch.testing.assert_close(loop.log_probability[valid], chosen[valid], rtol=1e-4, atol=1e-4)


def test_agents_that_are_not_there_change_nothing(model: SMART) -> None:
    batch = _batch(np.random.default_rng(10), (4,), (9,))
    gone = batch.valid.clone()
    gone[1] = False
    without = dataclasses.replace(batch, valid=gone)
    elsewhere = dataclasses.replace(without, position=batch.position.clone())
    elsewhere.position[1] += 3.0
    loops = [
        simulate(model, begin(model, one, model.tokenize(one)), most_probable, 1)
        for one in (without, elsewhere)
    ]
    assert not loops[0].tokens.valid[:, 1].any()
    others = [0, 2, 3]
    assert torch.equal(loops[0].trajectory[:, others], loops[1].trajectory[:, others])


def test_replaying_tokens_repeats_the_trajectories(model: SMART) -> None:
    batch = _batch(np.random.default_rng(11), (4,), (9,))
    beginning = begin(model, batch, model.tokenize(batch))
    first = simulate(model, beginning, sample(batch, range(2), Sampling(5), 1), 2)
    again = simulate(model, beginning, replay(first.tokens.index[:, :, 2:]), 2)
    assert torch.equal(first.trajectory, again.trajectory)
    assert torch.equal(first.tokens.position[:, :, 2:], again.trajectory[:, :, 4::5])


def test_draws_belong_to_the_scene_and_the_rollout(model: SMART) -> None:
    """Not to what is simulated beside them, nor to which rollouts are drawn together."""
    batch = _batch(np.random.default_rng(12), (4, 3), (9, 6))
    beginning = begin(model, batch, model.tokenize(batch))

    def tokens(rollouts: range, seed: int = 0) -> torch.Tensor:
        choose = sample(batch, rollouts, Sampling(N_TOKENS), seed)
        return simulate(model, beginning, choose, len(rollouts)).tokens.index

    together = tokens(range(4))
    assert torch.equal(together[2:], tokens(range(2, 4)))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, tokens(range(4), seed=1))


def test_sampling_follows_the_probabilities_of_the_largest_logits(model: SMART) -> None:
    n = 4000
    batch = _batch(np.random.default_rng(13), (1,), (3,))
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0]).expand(n, 1, 4)
    from smart_r1.simulate import Decision

    decision = Decision(0, logits, torch.zeros(n, 1, 2), torch.zeros(n, 1))
    drawn = sample(batch, range(n), Sampling(3, 2.0), 0)(decision).flatten()
    expected = torch.tensor([0.0, 2.0, 1.0, -torch.inf]).div(2.0).softmax(0)
    share = torch.bincount(drawn, minlength=4) / n
    torch.testing.assert_close(share, expected, rtol=0, atol=0.03)


RECORDED = Path(__file__).parent / "recorded/smart_small.json"


def test_logits_and_rollouts_are_those_recorded(model: SMART) -> None:
    """Recorded when the model equalled the public code's outputs and the oracle.

    To record anew, delete the file and run this test.
    """
    batch = _batch(np.random.default_rng(20), (5, 4), (12, 9))
    tokens = model.tokenize(batch)
    with torch.no_grad():
        logits = model(batch, tokens)
    loop = simulate(model, begin(model, batch, tokens), most_probable, 1)
    found = {
        "tokens": tokens.index.tolist(),
        "logits": logits[:, ::3, ::4].where(tokens.valid[:, 1:17:3, None], 0).double().tolist(),
        "chosen": loop.tokens.index[0, :, 2:].tolist(),
        "ends": loop.trajectory[0, :, -1].double().tolist(),
    }
    if not RECORDED.is_file():
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps(found) + "\n")
        pytest.fail(f"{RECORDED.name} was missing, and is recorded now")
    recorded = json.loads(RECORDED.read_text())
    assert found["tokens"] == recorded["tokens"]
    assert found["chosen"] == recorded["chosen"]
    np.testing.assert_allclose(found["logits"], recorded["logits"], atol=1e-4)
    np.testing.assert_allclose(found["ends"], recorded["ends"], atol=1e-3)
