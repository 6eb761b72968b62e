"""Relative poses: all that the model knows of where things are.

No function passes gradients to positions: the model is trained on the states it is given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wrap(angle: Tensor) -> Tensor:
    """Angles in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def angle_to(heading: Tensor, vector: Tensor) -> Tensor:
    """The angle [...] from a heading [...] to a vector [..., 2]; 0 for a vector of no length."""
    cos, sin, x, y = heading.cos(), heading.sin(), vector[..., 0], vector[..., 1]
    # Without the leading 0.0 the dot product with (0, 0) can be -0.0, and atan2(0, -0.0) is pi.
    return torch.atan2(cos * y - sin * x, 0.0 + cos * x + sin * y)


def motion(displacement: Tensor, heading: Tensor) -> Tensor:
    """Length of a displacement [..., 2] and its angle to the heading [...]: [..., 2]."""
    return torch.stack(
        [torch.linalg.vector_norm(displacement, dim=-1), angle_to(heading, displacement)], dim=-1
    )


def relative_pose(
    position: Tensor, heading: Tensor, source_position: Tensor, source_heading: Tensor
) -> Tensor:
    """Where sources are, seen from targets: distance, bearing and relative heading.

    Args:
        position: [..., 2] of the targets, metres.
        heading: [...].
        source_position: [..., 2].
        source_heading: [...].

    Returns:
        [..., 3].
    """
    away = source_position - position
    return torch.cat(
        [motion(away, heading), wrap(source_heading - heading).unsqueeze(-1)],
        dim=-1,
    )
