"""What the policy is trained towards: targets, losses and accuracies, as pure functions.

Shapes: A agents, V motion tokens, 16 predicted actions. Action j of `logits[:, j]` is motion token
j + 2, taken in state j + 1: the first predicted action leads from the current step, 1.0 s, to
1.5 s, the last from 8.5 s to 9.0 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from smart_r1.tokens.motion import MotionTokens, nearest_tokens

if TYPE_CHECKING:
    from smart_r1.batching import SceneBatch


@dataclass(frozen=True, eq=False)
class Targets:
    """The token that each predicted action should have been.

    Attributes:
        index: long [..., A, 16], 0 where not valid.
        valid: bool [..., A, 16].
    """

    index: Tensor
    valid: Tensor


def next_token_targets(states: MotionTokens) -> Targets:
    """The tokens of the states themselves: behaviour cloning (SMART, arXiv 2405.15677, eq. 3).

    For states matched without noise they are the recovery targets too, but for rounding.

    Args:
        states: [..., A, 18], of the logged tracks, matched without noise.
    """
    valid = states.valid[..., 1:-1] & states.valid[..., 2:]
    return Targets(states.index[..., 2:].where(valid, 0), valid)


@torch.no_grad()
def recovery_targets(motion: Tensor, batch: SceneBatch, states: MotionTokens) -> Targets:
    """The token that brings each visited state nearest to the logged pose 0.5 s later.

    With p_k, h_k the visited state and p*, h* the logged pose at its end, the target is

        argmin_v sum over the 4 corners c of | box_c(R(-h_k)(p* - p_k), h* - h_k) - token_v,c |

    for boxes of the class's size. It undoes the noise of sampled tokens (Trajeglish,
    arXiv 2312.04535) and what a rollout has drifted ("recovery action" of CAT-K,
    arXiv 2412.05334).

    Args:
        motion: [3, V, 6, 4, 2], the vocabulary: corners of the tokens' boxes.
        batch: the logged tracks, at steps 0, 5, ..., 90.
        states: [..., A, 18], where the policy was, in the frame of `batch`; those of a closed
            loop have a dimension for rollouts first.

    Returns:
        Valid where the visited state is and the logged pose at the end of the action is.
    """
    position, heading = states.position[..., 1:-1, :], states.heading[..., 1:-1]
    # State k is at the logged step k + 1, so the pose at the end of the action from it at k + 2.
    ahead = batch.position[:, 3:] - position
    cos, sin = heading.cos(), heading.sin()
    along = cos * ahead[..., 0] + sin * ahead[..., 1]
    across = cos * ahead[..., 1] - sin * ahead[..., 0]
    turn = batch.heading[:, 3:] - heading
    valid = states.valid[..., 1:-1] & batch.valid[:, 3:]
    index = torch.zeros_like(valid, dtype=torch.long)
    index[valid] = nearest_tokens(
        torch.stack([along, across], dim=-1)[valid],
        turn[valid],
        batch.classes[:, None].expand_as(valid)[valid],
        motion,
    )
    return Targets(index, valid)


def next_token_loss_sum(
    logits: Tensor, target: Tensor, mask: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The cross entropy of the next tokens, summed over the actions that count.

    With smoothing e and log-probabilities l over V tokens an action costs

        -(1 - e) l_target - e / V sum_v l_v                    (Szegedy et al., arXiv 1512.00567)

    Divided by the number of actions, which may be spread over several batches and processes, it is
    `next_token_loss` of their union.

    Args:
        logits: [..., A, 16, V], any floating type; the loss is in float32.
        target: long [..., A, 16].
        mask: bool [..., A, 16], the actions that count; what others hold, NaN too, has no effect.
        label_smoothing: e above, in [0, 1).

    Returns:
        A scalar, 0 where no action counts.
    """
    return functional.cross_entropy(
        logits[mask].float(), target[mask], label_smoothing=label_smoothing, reduction="sum"
    )


def next_token_loss(
    logits: Tensor, target: Tensor, mask: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The mean over the actions that count, see `next_token_loss_sum`; 0 where there are none."""
    total = next_token_loss_sum(logits, target, mask, label_smoothing)
    return total / mask.sum().clamp(min=1)


@torch.no_grad()
def top_k_hits(logits: Tensor, target: Tensor, mask: Tensor, k: int) -> Tensor:
    """Whether the target is among the k most probable tokens, for the actions that count.

    Args:
        logits: [..., A, 16, V].
        target: long [..., A, 16].
        mask: bool [..., A, 16], the actions that count, N of them.
        k: at most V.

    Returns:
        bool [N]; its mean is the top-k accuracy.
    """
    chosen = logits[mask].topk(k).indices
    return (chosen == target[mask][:, None]).any(dim=-1)
