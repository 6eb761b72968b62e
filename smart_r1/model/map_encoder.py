"""The road map: tokens that have looked around themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from smart_r1.model import neighbours
from smart_r1.model.attention import AttentionLayer, embed_relations
from smart_r1.model.config import ModelConfig
from smart_r1.model.geometry import relative_pose
from smart_r1.model.layers import FourierEmbedding, token_embedding
from smart_r1.model.neighbours import Table

N_TYPES, N_POLYGONS, N_LIGHTS = 10, 4, 5
"""Point types, polygon classes and light states, see `smart_r1.scene_tensors`."""


class MapEncoder(nn.Module):
    """Map tokens to features, through attention between those near each other.

    Args:
        config: sizes.
        curve_points: points of a curve of the vocabulary.
    """

    def __init__(self, config: ModelConfig, curve_points: int) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.radius = config.map_radius
        self.token = token_embedding(2 * curve_points, dim)
        self.point_type = nn.Embedding(N_TYPES, dim)
        self.polygon = nn.Embedding(N_POLYGONS, dim)
        self.light = nn.Embedding(N_LIGHTS, dim)
        self.relation = FourierEmbedding(3, dim, config.n_frequencies)
        self.layers = nn.ModuleList(
            AttentionLayer(dim, config.n_heads, config.head_dim, config.dropout, bipartite=False)
            for _ in range(config.n_map_layers)
        )

    def forward(
        self,
        curves: Tensor,
        index: Tensor,
        kinds: tuple[Tensor, Tensor, Tensor],
        position: Tensor,
        heading: Tensor,
        counts: Sequence[int],
    ) -> Tensor:
        """Encode the maps of a batch.

        Args:
            curves: [M, 11, 2], the vocabulary.
            index: long [P], the curve of each map token.
            kinds: long [P] each: point type, polygon class, light state.
            position: [P, 2], metres.
            heading: [P].
            counts: map tokens of each scene.

        Returns:
            [P, D].
        """
        type_, polygon, light = kinds
        x: Tensor = self.token(curves.flatten(1))[index]
        x = x + self.point_type(type_) + self.polygon(polygon) + self.light(light)
        near = neighbours.between_map_tokens(position, counts, self.radius, x.shape[1])

        def relation(table: Table) -> Tensor:
            here, there = table.targets[:, None], table.sources
            return relative_pose(position[here], heading[here], position[there], heading[there])

        relations = embed_relations(self.relation, near, relation)
        for layer in cast("Iterator[AttentionLayer]", iter(self.layers)):
            x = layer(x, layer.keys_values(x), near, relations)
        return x
