"""Losses and gradients equal those of the public code, without its noise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from smart_fixtures import Recorded, recorded_nano, recorded_small  # noqa: E402

from smart_r1.model.catk import our_name  # noqa: E402
from smart_r1.model.smart import SMART  # noqa: E402
from smart_r1.objectives import next_token_loss, recovery_targets  # noqa: E402
from smart_r1.tokens.motion import MotionTokens  # noqa: E402

pytestmark = pytest.mark.womd


def _without_noise(recorded: Recorded) -> SMART:
    """The model in training mode, with nothing dropped."""
    config = dataclasses.replace(recorded.model.config, dropout=0.0, history_drop=0.0)
    model = SMART(config, recorded.model.vocabulary())
    model.load_state_dict(recorded.model.state_dict())
    return model.train()


def _visited(recorded: Recorded) -> MotionTokens:
    """The states of the recorded rollout, or of the log where none is."""
    if "pred_idx" not in recorded.values:
        return recorded.tokens
    return MotionTokens(
        *(recorded.values[f"pred_{name}"] for name in ("idx", "pos", "head", "valid"))
    )


def _loss(model: SMART, recorded: Recorded, smoothing: float) -> torch.Tensor:
    states = _visited(recorded)
    targets = recovery_targets(model.motion, recorded.batch, states)
    mask = targets.valid & recorded.batch.train_mask[:, None]
    return next_token_loss(model(recorded.batch, states), targets.index, mask, smoothing)


def _gradients(model: SMART) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }


def _their_gradients(recorded: Recorded) -> dict[str, torch.Tensor]:
    """By our names."""
    renamed = {}
    for key, value in recorded.values.items():
        if key.startswith("grad/"):
            name = our_name(key.removeprefix("grad/"))
            assert name is not None
            renamed[name] = value
    assert renamed
    return renamed


@pytest.mark.parametrize(
    ("name", "smoothing"), [("sparse_train_bc_nonoise", 0.1), ("sparse_train_clsft_nonoise", 0.0)]
)
def test_loss_and_gradients_equal_the_public_ones(
    smart_fixtures_dir: Path, name: str, smoothing: float
) -> None:
    """Behaviour cloning, and closed-loop fine-tuning as one parallel pass over visited states."""
    recorded = recorded_small(smart_fixtures_dir, name)
    model = _without_noise(recorded)
    loss = _loss(model, recorded, smoothing)
    loss.backward()
    assert abs(float(loss.detach()) - float(recorded.values["loss"])) < 1e-5
    ours, theirs = _gradients(model), _their_gradients(recorded)
    scale = max(float(g.abs().max()) for g in theirs.values())
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-5 * scale, msg=key)


@pytest.mark.parametrize(
    ("name", "smoothing"), [("train_bc_nonoise", 0.1), ("clsft_catk32_nonoise", 0.0)]
)
def test_loss_and_gradient_norms_of_a_real_scene_equal_the_public_ones(
    smart_fixtures_dir: Path, name: str, smoothing: float
) -> None:
    recorded = recorded_nano(smart_fixtures_dir, name)
    model = _without_noise(recorded)
    loss = _loss(model, recorded, smoothing)
    loss.backward()
    file = name.replace("clsft_catk32", "clsft") + "_grads.json"
    theirs = json.loads((smart_fixtures_dir / "smart_nano_1M" / file).read_text())
    assert abs(float(loss.detach()) - theirs["loss"]) < 1e-5
    ours = _gradients(model)
    for key, norm in theirs["grad_norms"].items():
        assert float(ours[our_name(key)].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-6), key
