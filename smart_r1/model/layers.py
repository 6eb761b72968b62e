"""The perceptrons and embeddings that the encoder and the decoder are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

#: The first layer of `token_embedding` is so wide in every size of the model.
_EMBEDDING_WIDTH = 128


def perceptron(n_in: int, hidden: int, n_out: int) -> nn.Sequential:
    """Linear, LayerNorm, ReLU, Linear: [..., n_in] to [..., n_out]."""
    return nn.Sequential(
        nn.Linear(n_in, hidden),
        nn.LayerNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, n_out),
    )


def token_embedding(n_in: int, dim: int) -> nn.Sequential:
    """Two hidden layers, [..., n_in] to [..., dim]: the shape of a token to its embedding."""
    return nn.Sequential(
        nn.Linear(n_in, _EMBEDDING_WIDTH),
        nn.LayerNorm(_EMBEDDING_WIDTH),
        nn.ReLU(inplace=True),
        nn.Linear(_EMBEDDING_WIDTH, dim),
        nn.LayerNorm(dim),
        nn.ReLU(inplace=True),
        nn.Linear(dim, dim),
    )


class FourierEmbedding(nn.Module):
    """Scalars to a vector, through learnt frequencies (QCNet's, as SMART has it).

    Each scalar x has F frequencies w and a perceptron of its own over [cos 2 pi w x, sin 2 pi w x,
    x]; their outputs are summed, with an offset where one is given, and a last layer follows.

    Args:
        n_in: number of scalars.
        dim: D, width of the result.
        n_frequencies: F.
    """

    def __init__(self, n_in: int, dim: int, n_frequencies: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.empty(n_in, n_frequencies))
        self.scalars = nn.ModuleList(
            perceptron(2 * n_frequencies + 1, dim, dim) for _ in range(n_in)
        )
        self.out = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(inplace=True), nn.Linear(dim, dim))

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """[..., n_in], and [..., D] to be added, to [..., D]."""
        total = offset
        angular = self.frequencies * (2 * math.pi)
        for i, scalar in enumerate(self.scalars):
            column = x[..., i : i + 1]
            phase = column * angular[i]
            one = scalar(torch.cat([phase.cos(), phase.sin(), column], dim=-1))
            total = one if total is None else total + one
        result: Tensor = self.out(total)
        return result


def normalised(x: Tensor) -> Tensor:
    """[..., D] with mean 0 and variance 1: a LayerNorm without its scale and shift."""
    return functional.layer_norm(x, x.shape[-1:])


def initialise(module: nn.Module) -> None:
    """Draw the weights: Xavier for linear layers, N(0, 0.02) for tables and frequencies."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        elif isinstance(part, FourierEmbedding):
            nn.init.normal_(part.frequencies, std=0.02)
