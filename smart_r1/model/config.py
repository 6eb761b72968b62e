"""The sizes of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that the shapes and the arithmetic of SMART depend on, but for the vocabulary.

    Attributes:
        hidden_dim: D, the width of the features.
        n_heads: H, attention heads.
        head_dim: width of a head; H * head_dim need not be D.
        n_frequencies: F, learnt frequencies a scalar of a relative pose.
        n_map_layers: attention layers between map tokens.
        n_agent_layers: decoder layers, each of temporal, map-to-agent and agent-to-agent attention.
        map_radius: metres within which map tokens see each other.
        map_agent_radius: metres within which an agent sees map tokens.
        agent_radius: metres within which agents see each other.
        time_span: tokens of 0.5 s that an agent sees of its own past.
        dropout: of attention weights and in feed-forward layers, in training.
        history_drop: probability that an agent's state at a step is left out of temporal attention,
            in training.
        entry_motion: the motion an agent is given at its first valid step after the start of the
            record, where its previous position is unknown. `zero`: none. `global`: its position in
            WOMD's frame, kilometres long, as the public code has it, which takes an invalid
            position to be (0, 0). Checkpoints of CAT-K were trained with that; it makes the output
            depend on where on Earth the scene is, so our own models do without.
    """

    hidden_dim: int
    n_heads: int
    head_dim: int
    n_frequencies: int
    n_map_layers: int
    n_agent_layers: int
    map_radius: float
    map_agent_radius: float
    agent_radius: float
    time_span: int
    dropout: float = 0.1
    history_drop: float = 0.1
    entry_motion: Literal["zero", "global"] = "zero"


# fmt: off
#: `nano`, `mini` and `tiny` are CAT-K's smart_nano_1M, smart_mini_3M and smart (7M).
CONFIGS = {
    "pico": ModelConfig(32, 4, 8, 8, 1, 2, 10.0, 15.0, 30.0, 4),
    "nano": ModelConfig(64, 4, 8, 64, 2, 4, 10.0, 20.0, 20.0, 4),
    "mini": ModelConfig(128, 4, 8, 64, 2, 4, 10.0, 30.0, 60.0, 6),
    "tiny": ModelConfig(128, 8, 16, 64, 3, 6, 10.0, 30.0, 60.0, 6),
    "base": ModelConfig(256, 8, 32, 64, 4, 8, 10.0, 40.0, 80.0, 6),
}
# fmt: on
