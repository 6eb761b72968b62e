"""The agents: from their tokens so far to what they may do next.

States are laid out [S, R, A]: S steps, R rollouts of every scene of a batch, and the agents of all
its scenes, scene by scene. The rollouts of a scene share its map.

The decoder runs in two ways over the same layers: `forward` over all steps at once, for training
and for the history, and `step` over the newest step only, against the keys and values that the
steps before have left. Both give the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from smart_r1.model import neighbours
from smart_r1.model.attention import AttentionLayer, embed_relations
from smart_r1.model.config import ModelConfig
from smart_r1.model.geometry import motion, relative_pose
from smart_r1.model.layers import FourierEmbedding, perceptron, token_embedding
from smart_r1.model.neighbours import Neighbours, Table
from smart_r1.tokens.motion import MotionTokens

N_CLASSES = 3


@dataclass(frozen=True, eq=False, slots=True)
class EncodedMap:
    """The maps of a batch, as agents see them. P map tokens of all scenes, scene by scene.

    Attributes:
        position: [P, 2], metres.
        heading: [P].
        counts: map tokens of each scene.
        keys_values: for each decoder layer [P, 2 * inner].
    """

    position: Tensor
    heading: Tensor
    counts: Sequence[int]
    keys_values: Sequence[Tensor]


@dataclass(frozen=True, eq=False, slots=True)
class AgentContext:
    """What stays the same of the A agents of a batch.

    Attributes:
        counts: agents of each scene.
        classes: long [A].
        offset: [A, D], the embedding of class and size.
        origin: [A, 2], of the frame of the agent's scene, metres in WOMD's frame.
        tokens: [3, V, D], embeddings of the motion vocabulary.
    """

    counts: Sequence[int]
    classes: Tensor
    offset: Tensor
    origin: Tensor
    tokens: Tensor


class Pairs(NamedTuple):
    """Neighbours and the embeddings of their relative poses."""

    neighbours: Neighbours
    relations: Sequence[Tensor]


class AgentDecoder(nn.Module):
    """Logits over the next token of every agent.

    Args:
        config: sizes.
        n_tokens: V, motion tokens of a class.
    """

    def __init__(self, config: ModelConfig, n_tokens: int) -> None:
        super().__init__()
        self.config = config
        dim, n_frequencies = config.hidden_dim, config.n_frequencies
        self.token = nn.ModuleList(token_embedding(8, dim) for _ in range(N_CLASSES))
        self.agent_class = nn.Embedding(N_CLASSES, dim)
        self.size = perceptron(3, dim, dim)
        self.motion = FourierEmbedding(2, dim, n_frequencies)
        self.fusion = token_embedding(2 * dim, dim)
        self.time_relation = FourierEmbedding(4, dim, n_frequencies)
        self.map_relation = FourierEmbedding(3, dim, n_frequencies)
        self.agent_relation = FourierEmbedding(3, dim, n_frequencies)

        def layers(*, bipartite: bool) -> nn.ModuleList:
            return nn.ModuleList(
                AttentionLayer(
                    dim, config.n_heads, config.head_dim, config.dropout, bipartite=bipartite
                )
                for _ in range(config.n_agent_layers)
            )

        self.time_layers = layers(bipartite=False)
        self.map_layers = layers(bipartite=True)
        self.agent_layers = layers(bipartite=False)
        # One head for all classes: what a token means depends on the class of the agent.
        self.head = perceptron(dim, dim, n_tokens)

    def encode_map(
        self, x: Tensor, position: Tensor, heading: Tensor, counts: Sequence[int]
    ) -> EncodedMap:
        """Keys and values of map features [P, D], once for all steps and rollouts."""
        keys_values = [layer.keys_values(x) for _, layer, _ in self._layers()]
        return EncodedMap(position, heading, counts, keys_values)

    def context(
        self,
        motion_tokens: Tensor,
        counts: Sequence[int],
        classes: Tensor,
        size: Tensor,
        origin: Tensor,
    ) -> AgentContext:
        """What stays the same over steps and rollouts.

        Args:
            motion_tokens: [3, V, 6, 4, 2], the vocabulary.
            counts: agents of each scene.
            classes: long [A].
            size: [A, 3], length, width, height in metres.
            origin: [A, 2].
        """
        corners = motion_tokens[:, :, -1].flatten(2)
        tokens = torch.stack([embed(c) for embed, c in zip(self.token, corners, strict=True)])
        return AgentContext(
            counts, classes, self.agent_class(classes) + self.size(size), origin, tokens
        )

    def forward(
        self, context: AgentContext, encoded: EncodedMap, states: MotionTokens
    ) -> tuple[Tensor, list[Tensor]]:
        """All steps at once: a step sees itself and those before.

        Args:
            context: of the agents.
            encoded: the maps.
            states: [S, R, A].

        Returns:
            Features [S, R, A, D], which `logits` reads, and for each layer the keys and values of
            the states, [S, R, A, 2 * inner].
        """
        shape = states.valid.shape
        n_rows = shape[1] * shape[2]
        position, heading = states.position.flatten(0, 2), states.heading.flatten(0, 2)
        kept = states.valid
        if self.training:
            kept = kept & self._kept(kept)
        past = neighbours.own_past(kept.flatten(1), self.config.time_span, self.config.hidden_dim)

        def relation(table: Table) -> Tensor:
            here, there = table.targets[:, None], table.sources
            ago = (there // n_rows - here // n_rows).unsqueeze(-1).to(position.dtype)
            pose = relative_pose(position[here], heading[here], position[there], heading[there])
            return torch.cat([pose, ago], dim=-1)

        past_pairs = Pairs(past, embed_relations(self.time_relation, past, relation))
        frames = states.mapped(lambda field: field.flatten(0, 1))
        map_pairs = self._sees_map(context, encoded, frames)
        agent_pairs = self._sees_agents(context, frames)
        x = self._features(context, states, _displacement(self.config, context, states))
        x, keys_values = self._decode(
            x.flatten(0, 2), encoded, past_pairs, map_pairs, agent_pairs, lambda _, own: own
        )
        return x.unflatten(0, shape), [layer.unflatten(0, shape) for layer in keys_values]

    def step(
        self,
        context: AgentContext,
        encoded: EncodedMap,
        memory: Memory,
        states: MotionTokens,
        displacement: Tensor,
    ) -> Tensor:
        """The newest step of a simulation, which joins the memory.

        Args:
            context: of the agents.
            encoded: the maps.
            memory: of the steps before.
            states: [R, A].
            displacement: [R, A, 2], how far the agents have come since the step before.

        Returns:
            Features [R, A, D].
        """
        shape = states.valid.shape
        position, heading = states.position.flatten(0, 1), states.heading.flatten(0, 1)
        seen = memory.valid
        if self.training:
            seen = seen & self._kept(seen)
        past = neighbours.last_states(
            seen.flatten(1), states.valid.flatten(), self.config.hidden_dim
        )
        old_position, old_heading = memory.position.flatten(0, 2), memory.heading.flatten(0, 2)
        ago = memory.ago()

        def relation(table: Table) -> Tensor:
            here, there = table.targets[:, None], table.sources
            pose = relative_pose(
                position[here], heading[here], old_position[there], old_heading[there]
            )
            return torch.cat([pose, ago[there // len(position)].unsqueeze(-1)], dim=-1)

        past_pairs = Pairs(past, embed_relations(self.time_relation, past, relation))
        map_pairs = self._sees_map(context, encoded, states)
        agent_pairs = self._sees_agents(context, states)
        x, keys_values = self._decode(
            self._features(context, states, displacement).flatten(0, 1),
            encoded,
            past_pairs,
            map_pairs,
            agent_pairs,
            lambda layer, _: memory.keys_values[layer].flatten(0, 2),
        )
        memory.remember(states, [layer.unflatten(0, shape) for layer in keys_values])
        features: Tensor = x.unflatten(0, shape)
        return features

    def _decode(
        self,
        x: Tensor,
        encoded: EncodedMap,
        past: Pairs,
        map_pairs: Pairs,
        agent_pairs: Pairs,
        sources: Callable[[int, Tensor], Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """All layers.

        Args:
            x: [N, D], the states.
            encoded: the maps.
            past: what each sees of its own past, rows of `sources`.
            map_pairs: of the map.
            agent_pairs: of the other states.
            sources: from a layer's number and the keys and values of the states themselves, the
                keys and values that temporal attention chooses from.

        Returns:
            [N, D], and for each layer the keys and values of the states, [N, 2 * inner].
        """
        kept = []
        for number, (time, from_map, from_agents) in enumerate(self._layers()):
            own = time.keys_values(x)
            kept.append(own)
            x = time(x, sources(number, own), *past)
            x = from_map(x, encoded.keys_values[number], *map_pairs)
            x = from_agents(x, from_agents.keys_values(x), *agent_pairs)
        return x, kept

    def logits(self, features: Tensor) -> Tensor:
        """Features [..., D] to logits over the next token, [..., V]."""
        logits: Tensor = self.head(features)
        return logits

    def _layers(self) -> Iterator[tuple[AttentionLayer, ...]]:
        """Temporal, map-to-agent and agent-to-agent attention of each layer."""
        layers = zip(self.time_layers, self.map_layers, self.agent_layers, strict=True)
        return cast("Iterator[tuple[AttentionLayer, ...]]", layers)

    def _kept(self, valid: Tensor) -> Tensor:
        """The states that temporal attention does not leave out, drawn anew in each pass."""
        return torch.rand(valid.shape, device=valid.device) >= self.config.history_drop

    def _features(
        self, context: AgentContext, states: MotionTokens, displacement: Tensor
    ) -> Tensor:
        """What agents [..., A] bring to the first layer: [..., A, D]."""
        token = context.tokens[context.classes.expand_as(states.index), states.index]
        moved = self.motion(motion(displacement, states.heading), context.offset)
        features: Tensor = self.fusion(torch.cat([token, moved], dim=-1))
        return features

    def _sees_map(self, context: AgentContext, encoded: EncodedMap, states: MotionTokens) -> Pairs:
        """For agents in frames, [G, A]."""
        near = neighbours.map_of_agents(
            states.position,
            states.valid,
            context.counts,
            encoded.position,
            encoded.counts,
            self.config.map_agent_radius,
            self.config.hidden_dim,
        )
        position, heading = states.position.flatten(0, 1), states.heading.flatten(0, 1)

        def relation(table: Table) -> Tensor:
            here, there = table.targets[:, None], table.sources
            return relative_pose(
                position[here], heading[here], encoded.position[there], encoded.heading[there]
            )

        return Pairs(near, embed_relations(self.map_relation, near, relation))

    def _sees_agents(self, context: AgentContext, states: MotionTokens) -> Pairs:
        """For agents in frames, [G, A]."""
        near = neighbours.between_agents(
            states.position,
            states.valid,
            context.counts,
            self.config.agent_radius,
            self.config.hidden_dim,
        )
        position, heading = states.position.flatten(0, 1), states.heading.flatten(0, 1)

        def relation(table: Table) -> Tensor:
            here, there = table.targets[:, None], table.sources
            return relative_pose(position[here], heading[here], position[there], heading[there])

        return Pairs(near, embed_relations(self.agent_relation, near, relation))


class Memory:
    """The last states of a simulation and their keys and values: a ring of W steps.

    Attributes:
        position: [W, R, A, 2].
        heading: [W, R, A].
        valid: bool [W, R, A].
        keys_values: for each layer [W, R, A, 2 * inner].
    """

    def __init__(
        self, time_span: int, n_rollouts: int, states: MotionTokens, keys_values: Sequence[Tensor]
    ) -> None:
        """Begin with a history that all rollouts share.

        Args:
            time_span: W.
            n_rollouts: R.
            states: [S, 1, A].
            keys_values: for each layer [S, 1, A, 2 * inner].
        """
        n_agents = states.valid.shape[-1]

        def ring(like: Tensor) -> Tensor:
            return like.new_zeros(time_span, n_rollouts, n_agents, *like.shape[3:])

        self.position, self.heading = ring(states.position), ring(states.heading)
        self.valid = ring(states.valid)
        self.keys_values = [ring(layer) for layer in keys_values]
        self._n_seen = 0
        for step in range(len(states.valid)):
            self.remember(states.at(step), [layer[step] for layer in keys_values])

    def remember(self, states: MotionTokens, keys_values: Sequence[Tensor]) -> None:
        """Replace the oldest step by one [R or 1, A]."""
        slot = self._n_seen % len(self.valid)
        self.position[slot], self.heading[slot] = states.position, states.heading
        self.valid[slot] = states.valid
        for ring, layer in zip(self.keys_values, keys_values, strict=True):
            ring[slot] = layer
        self._n_seen += 1

    def ago(self) -> Tensor:
        """When each slot was, seen from the step to come: -1 for the newest, [W]."""
        window = len(self.valid)
        slot = torch.arange(window, device=self.position.device)
        newest = self._n_seen - 1
        return -((newest - slot) % window + 1).to(self.position.dtype)


def _displacement(config: ModelConfig, context: AgentContext, states: MotionTokens) -> Tensor:
    """How far agents have come since the step before, [S, R, A, 2]; 0 at the first."""
    moved = torch.zeros_like(states.position)
    moved[1:] = states.position[1:] - states.position[:-1]
    enters = torch.zeros_like(states.valid)
    enters[1:] = states.valid[1:] & ~states.valid[:-1]
    entry = torch.zeros_like(moved)
    if config.entry_motion == "global":
        entry = states.position + context.origin
    return torch.where(enters.unsqueeze(-1), entry, moved)
