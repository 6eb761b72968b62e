"""Attention over tables of neighbours, with relative poses in its keys and values.

The layer is QCNet's, as SMART has it. A source j has the key `k_j + W_kr r_ij` and the value
`v_j + W_vr r_ij` for target i, where r_ij is the embedding of its relative pose, normalised with
the layer's own scale and shift. We never compute the second terms, a product of two matrices for
each pair and layer, since

    q_i . (W_kr r_ij)      = (W_kr^T q_i) . r_ij           a vector a head and target
    sum_j a_ij W_vr r_ij   = W_vr (sum_j a_ij r_ij)

which are the same sums in another order, and a sixteenth of the work at D = 128 and 8 heads. In the
same way the scale is moved to the target's side; a shift adds the same to all the scores of a
target, and so nothing to their softmax. What is left for each pair, its normalised embedding, is
the same in all layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from smart_r1.model.layers import FourierEmbedding, normalised
from smart_r1.model.neighbours import Neighbours, Table

Made = TypeVar("Made")


def embed_relations(
    embedding: FourierEmbedding, neighbours: Neighbours, relation: Callable[[Table], Tensor]
) -> list[Tensor]:
    """Normalised embeddings of the pairs of tables.

    Args:
        embedding: of n_in scalars.
        neighbours: T tables.
        relation: gives the scalars [t, K, n_in] of a table's pairs.

    Returns:
        [t, K, D] for each table.
    """

    def embed(scalars: Tensor) -> Tensor:
        return normalised(embedding(scalars))

    return [_recomputed(embed, relation(table)) for table in neighbours.tables]


class AttentionLayer(nn.Module):
    """Gated multi-head attention, and a feed-forward layer.

    Args:
        dim: D.
        n_heads: H.
        head_dim: width of a head.
        dropout: of attention weights and of the feed-forward layer.
        bipartite: sources and targets are of different kinds, each with its own LayerNorm.
    """

    def __init__(
        self, dim: int, n_heads: int, head_dim: int, dropout: float, *, bipartite: bool
    ) -> None:
        super().__init__()
        inner = n_heads * head_dim
        self.n_heads, self.head_dim, self.dropout = n_heads, head_dim, dropout
        self.source_norm = nn.LayerNorm(dim)
        self.target_norm = nn.LayerNorm(dim) if bipartite else None
        self.relation_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, inner)
        self.key = nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, inner)
        self.relation_key = nn.Linear(dim, inner, bias=False)
        self.relation_value = nn.Linear(dim, inner)
        self.skip = nn.Linear(dim, inner)
        self.gate = nn.Linear(inner + dim, inner)
        self.out = nn.Linear(inner, dim)
        self.out_norm = nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
        )
        self.feed_forward_out_norm = nn.LayerNorm(dim)

    def keys_values(self, x: Tensor) -> Tensor:
        """What sources [N, D] offer to every target: keys and values, [N, 2 * inner]."""
        x = self.source_norm(x)
        return torch.cat([self.key(x), self.value(x)], dim=-1)

    def forward(
        self, x: Tensor, keys_values: Tensor, neighbours: Neighbours, relations: Sequence[Tensor]
    ) -> Tensor:
        """Let targets attend to their sources.

        Args:
            x: [T, D], the targets.
            keys_values: [N, 2 * inner], see `keys_values`.
            neighbours: which sources each target attends to; those without any attend to nothing.
            relations: see `embed_relations`.

        Returns:
            [T, D].
        """
        target = (self.target_norm or self.source_norm)(x)
        message = self._attend(self.query(target), keys_values, neighbours, relations)
        gate: Tensor = self.gate(torch.cat([message, target], dim=-1)).sigmoid()
        message = message + gate * (self.skip(target) - message)
        normed: Tensor = self.out_norm(self.out(message))
        x = x + normed
        update: Tensor = self.feed_forward_out_norm(self.feed_forward(self.feed_forward_norm(x)))
        return x + update

    def _attend(
        self,
        query: Tensor,
        keys_values: Tensor,
        neighbours: Neighbours,
        relations: Sequence[Tensor],
    ) -> Tensor:
        """The sums of values that targets receive: [T, inner]."""
        heads, width, norm = self.n_heads, self.head_dim, self.relation_norm
        query = query.unflatten(-1, (heads, width)) / math.sqrt(width)
        by_head = self.relation_key.weight.unflatten(0, (heads, width))
        # [T, H, D]: the queries, as relations meet them.
        relation_query = torch.einsum("thw,hwd->thd", query, by_head) * norm.weight
        # [T, H, inner]: each head's query, zero where other heads' keys are, so that one product
        # serves all heads without moving keys around.
        spread = torch.diag_embed(query.transpose(1, 2), dim1=1, dim2=2).flatten(2)

        summed = [
            _recomputed(
                self._attend_table,
                spread[table.targets],
                relation_query[table.targets],
                keys_values,
                relation,
                table.sources,
                table.absent,
            )
            for table, relation in zip(neighbours.tables, relations, strict=True)
        ]
        if not summed:
            return query.new_zeros(len(query), heads * width)
        # [n, H, width], [n, H, D], [n, H]: with a row of zeros for targets without sources.
        values, related, weight = (
            functional.pad(torch.cat(parts), (0, 0) * (parts[0].dim() - 1) + (0, 1))[
                neighbours.place
            ]
            for parts in zip(*summed, strict=True)
        )
        related = related * norm.weight + weight.unsqueeze(-1) * norm.bias
        values = values + torch.einsum(
            "thd,hwd->thw", related, self.relation_value.weight.unflatten(0, (heads, width))
        )
        bias = self.relation_value.bias.unflatten(0, (heads, width))
        message: Tensor = values + weight.unsqueeze(-1) * bias
        return message.flatten(1)

    def _attend_table(
        self,
        query: Tensor,
        relation_query: Tensor,
        keys_values: Tensor,
        relation: Tensor,
        sources: Tensor,
        absent: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted sums over the sources of a table's targets.

        Args:
            query: [t, H, inner], see `_attend`.
            relation_query: [t, H, D].
            keys_values: [N, 2 * inner].
            relation: [t, K, D].
            sources: [t, K].
            absent: [t, 1, K].

        Returns:
            Values [t, H, width], relations [t, H, D], and weights [t, H].
        """
        # An embedding is the fastest way to gather rows.
        keys, values = functional.embedding(sources, keys_values).chunk(2, dim=-1)
        scores = torch.bmm(relation_query, relation.transpose(1, 2)) + absent
        weights = torch.baddbmm(scores, query, keys.transpose(1, 2)).softmax(dim=-1)
        weights = functional.dropout(weights, self.dropout, self.training)
        all_heads = torch.bmm(weights, values).unflatten(-1, (self.n_heads, self.head_dim))
        own = all_heads.diagonal(dim1=1, dim2=2).transpose(1, 2)
        return own, torch.bmm(weights, relation), weights.sum(-1)


def _recomputed(function: Callable[..., Made], *args: Tensor) -> Made:
    """Call a function; where gradients are wanted, it is called again for them.

    What is computed for pairs is by far the largest part of a forward pass, so it is not kept.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    result: Made = checkpoint(function, *args, use_reentrant=False)
    return result
