"""SMART: scalable multi-agent real-time simulation by next-token prediction (arXiv 2405.15677), in
the form of CAT-K (arXiv 2412.05334).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smart_r1.batching import SceneBatch
from smart_r1.model.agent_decoder import AgentContext, AgentDecoder, EncodedMap
from smart_r1.model.config import ModelConfig
from smart_r1.model.layers import initialise
from smart_r1.model.map_encoder import MapEncoder
from smart_r1.tokens.map_tokens import match_curves
from smart_r1.tokens.motion import MotionTokens, tokenize
from smart_r1.tokens.vocabulary import Vocabulary

N_TOKEN_STEPS = 18
"""Tokens of a record of 91 steps."""

FIRST_PREDICTED, LAST_PREDICTED = 1, 16
"""The states whose next token is predicted: the current one, to the last but one."""


class SMART(nn.Module):
    """The model, with the vocabulary it speaks.

    Args:
        config: sizes.
        vocabulary: motion tokens and map curves.
    """

    motion: Tensor
    curves: Tensor

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("motion", torch.from_numpy(vocabulary.motion.copy()))
        self.register_buffer("curves", torch.from_numpy(vocabulary.curves.copy()))
        self.map_encoder = MapEncoder(config, vocabulary.curves.shape[1])
        self.agent_decoder = AgentDecoder(config, vocabulary.motion.shape[1])
        initialise(self)

    def vocabulary(self) -> Vocabulary:
        """The tokens, as arrays."""
        return Vocabulary(self.motion.cpu().numpy(), self.curves.cpu().numpy())

    def tokenize(self, batch: SceneBatch) -> MotionTokens:
        """The logged tracks of a batch as motion tokens, [A, 18]."""
        return tokenize(batch.position, batch.heading, batch.valid, batch.classes, self.motion)

    def encode_map(self, batch: SceneBatch) -> EncodedMap:
        """The maps of a batch, once for all steps and rollouts."""
        index = match_curves(batch.map_points, batch.map_heading, self.curves)
        position = batch.map_points[:, 0]
        kinds = (batch.map_type, batch.map_polygon, batch.map_light)
        x = self.map_encoder(
            self.curves, index, kinds, position, batch.map_heading, batch.map_counts
        )
        return self.agent_decoder.encode_map(x, position, batch.map_heading, batch.map_counts)

    def context(self, batch: SceneBatch) -> AgentContext:
        """What stays the same of the agents over steps and rollouts."""
        counts = torch.tensor(batch.agent_counts, device=batch.size.device)
        origin = batch.origin.to(batch.size.dtype).repeat_interleave(counts, dim=0)
        return self.agent_decoder.context(
            self.motion, batch.agent_counts, batch.classes, batch.size, origin
        )

    def forward(self, batch: SceneBatch, tokens: MotionTokens) -> Tensor:
        """Logits over the next token, given all the tokens before.

        Args:
            batch: scenes with A agents in all.
            tokens: states [A, 18], logged or simulated, or [R, A, 18] for R rollouts of each scene.

        Returns:
            [A, 16, V] or [R, A, 16, V]: at j, of the token that leads from state j + 1 to j + 2.
        """
        rollouts = tokens.valid.dim() == 3
        # Steps first; and the last state predicts nothing that is known.
        states = tokens.mapped(
            lambda field: (field if rollouts else field[None]).movedim(2, 0)[: LAST_PREDICTED + 1]
        )
        features, _ = self.agent_decoder(self.context(batch), self.encode_map(batch), states)
        logits = self.agent_decoder.logits(features[FIRST_PREDICTED:])
        logits = logits.movedim(0, 2)
        return logits if rollouts else logits[0]
