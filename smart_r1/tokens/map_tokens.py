"""From pieces of map polylines to map tokens."""

from __future__ import annotations

import torch
from torch import Tensor

_PAIRS_ON_CPU, _PAIRS_ON_DEVICE = 2**16, 2**24
# Pieces times curves whose distances are held at a time, as in `motion`.


def match_curves(points: Tensor, heading: Tensor, curves: Tensor) -> Tensor:
    """The curve of the vocabulary that is most like each piece of the map.

    They are compared at start, middle and end, by the sum of the squared distances.

    Args:
        points: float32 [P, 3, 2], metres: start, middle and end of each piece.
        heading: float32 [P], radians, of the piece at its start.
        curves: float32 [M, 11, 2], see `Vocabulary`.

    Returns:
        int64 [P].
    """
    cos, sin = heading.cos()[:, None], heading.sin()[:, None]
    x, y = (points - points[:, :1]).unbind(-1)
    pieces = torch.cat([x * cos + y * sin, y * cos - x * sin], dim=1)
    shapes = curves[:, ::5].permute(2, 1, 0).flatten(0, 1).contiguous()
    index = torch.zeros(len(points), dtype=torch.long, device=points.device)
    at_a_time = max(1, (_PAIRS_ON_CPU if points.is_cpu else _PAIRS_ON_DEVICE) // len(curves))
    for start in range(0, len(pieces), at_a_time):
        part = pieces[start : start + at_a_time]
        total = torch.zeros(len(part), len(curves), device=points.device)
        for coordinate, values in zip(part.T, shapes, strict=True):
            total += (coordinate[:, None] - values).square_()
        index[start : start + at_a_time] = total.argmin(dim=1)
    return index
