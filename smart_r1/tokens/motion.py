"""From trajectories to motion tokens, and from tokens back to trajectories at 10 Hz.

Every agent is a box of its class's fixed size, and two poses are as far apart as the corners of
their boxes are, added up. Matching rolls: each token starts from where the last one ended, so that
the errors of tokens do not add up (SMART, arXiv 2405.15677).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from smart_r1.tokens.vocabulary import CLASS_SIZE
from wosac_toolkit.errors import WosacError

_PAIRS_ON_CPU, _PAIRS_ON_DEVICE = 2**16, 2**24
# Agents times tokens whose distances are held at a time: what stays in the cache of a core, and
# what keeps an accelerator busy (64 MiB).


@dataclass(frozen=True, eq=False)
class MotionTokens:
    """Tokens, and the states that they lead to: of A agents over 18 steps where no more is said.

    Token k leads to the state at the 10 Hz step 5 (k + 1). Simulated ones have a dimension for
    rollouts before these, and the model puts steps first.

    Attributes:
        index: int64 [A, 18]; 0 where not valid.
        position: float32 [A, 18, 2], metres; 0 where not valid.
        heading: float32 [A, 18], radians in [-pi, pi], likewise.
        valid: bool [A, 18], whether the track is valid where the token starts and where it ends.
    """

    index: Tensor
    position: Tensor
    heading: Tensor
    valid: Tensor

    def mapped(self, function: Callable[[Tensor], Tensor]) -> MotionTokens:
        """The same function of every field."""
        return MotionTokens(*map(function, (self.index, self.position, self.heading, self.valid)))

    def at(self, step: int) -> MotionTokens:
        """One of the first dimension."""
        return self.mapped(lambda field: field[step])


@dataclass(frozen=True, slots=True)
class TokenNoise:
    """Sampling among the nearest tokens, for training.

    Attributes:
        num_k: how many of the nearest to sample from; 1 is no noise.
        temperature: metres; a token weighs exp(-mean corner distance / temperature).

    Raises:
        WosacError: no tokens to sample from, or a temperature that is not positive.
    """

    num_k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.num_k < 1 or not self.temperature > 0:
            raise WosacError(f"no noise can have {self}", mend="num_k >= 1, temperature > 0")


def class_boxes(position: Tensor, heading: Tensor, size: Tensor) -> Tensor:
    """Corners of boxes.

    Args:
        position: [..., 2], the centres.
        heading: [...], radians.
        size: [..., 2], length and width.

    Returns:
        [..., 4, 2]: left front, right front, right back, left back.
    """
    signs = position.new_tensor([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5]])
    return _place(signs * size[..., None, :], position, heading)


def to_poses(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Poses of boxes.

    Args:
        corners: [..., 4, 2], as `class_boxes` gives them.

    Returns:
        position [..., 2], the mean of the corners; heading [...], radians in [-pi, pi], the
        direction from the left back to the left front corner.
    """
    along = corners[..., 0, :] - corners[..., 3, :]
    return corners.mean(dim=-2), torch.atan2(along[..., 1], along[..., 0])


def tokenize(
    position: Tensor,
    heading: Tensor,
    valid: Tensor,
    classes: Tensor,
    motion: Tensor,
    noise: TokenNoise | None = None,
    generator: torch.Generator | None = None,
) -> MotionTokens:
    """Match tracks to tokens, each token from the state that the last one led to.

    The first token starts from the track's own pose, and so does each that follows a gap in the
    track, or with which the track begins.

    Args:
        position: float32 [A, 19, 2], metres, at the 10 Hz steps 0, 5, .., 90.
        heading: float32 [A, 19], radians.
        valid: bool [A, 19].
        classes: int64 [A], 0 to 2.
        motion: float32 [3, V, 6, 4, 2], see `Vocabulary`.
        noise: to sample among the nearest tokens instead of taking the nearest.
        generator: of the noise, on any device.

    Raises:
        WosacError: noise among more tokens than there are.
    """
    valid_token = valid[:, 1:] & valid[:, :-1]
    draws = None
    if noise is not None and noise.num_k > 1:
        if noise.num_k > motion.shape[1]:
            raise WosacError(f"{noise} does not fit a vocabulary of {motion.shape[1]} tokens")
        # All at once, so that they do not depend on how the agents are divided.
        device = generator.device if generator is not None else position.device
        draws = torch.rand(valid_token.shape, generator=generator, device=device)
        draws = draws.to(position.device)
    index = torch.zeros_like(valid_token, dtype=torch.long)
    states, headings = torch.zeros_like(position[:, 1:]), torch.zeros_like(heading[:, 1:])
    for rows, ends, size in _by_class(classes, motion):
        state, facing = position[rows, 0], heading[rows, 0]
        for k in range(valid_token.shape[1]):
            goal, goal_heading = position[rows, k + 1], heading[rows, k + 1]
            boxes = class_boxes(_to_frame(goal, state, facing), goal_heading - facing, size)
            if noise is None or draws is None:
                chosen = _nearest(boxes, ends)
            else:
                chosen = _sample_near(boxes, ends, noise, draws[rows, k])
            reached, turned = to_poses(_place(ends[chosen], state, facing))
            matched = valid_token[rows, k]
            state = torch.where(matched[:, None], reached, goal)
            facing = torch.where(matched, turned, goal_heading)
            index[rows, k], states[rows, k], headings[rows, k] = chosen, state, facing
    return MotionTokens(
        index=index.where(valid_token, 0),
        position=states.where(valid_token[..., None], 0.0),
        heading=headings.where(valid_token, 0.0),
        valid=valid_token,
    )


def nearest_tokens(position: Tensor, heading: Tensor, classes: Tensor, motion: Tensor) -> Tensor:
    """The tokens that end nearest to poses, by the sum of the distances of the four corners.

    Args:
        position: float32 [N, 2], metres, in the frame of the state that the token starts from.
        heading: float32 [N], radians, in that frame.
        classes: int64 [N], 0 to 2.
        motion: float32 [3, V, 6, 4, 2], see `Vocabulary`.

    Returns:
        int64 [N]. The memory used meanwhile does not grow with N times V.
    """
    index = torch.zeros_like(classes, dtype=torch.long)
    for rows, ends, size in _by_class(classes, motion):
        index[rows] = _nearest(class_boxes(position[rows], heading[rows], size), ends)
    return index


def play_out(
    index: Tensor, position: Tensor, heading: Tensor, classes: Tensor, motion: Tensor
) -> tuple[Tensor, Tensor]:
    """The poses through which tokens lead.

    Args:
        index: int64 [N], the tokens.
        position: float32 [N, 2], metres, the states from which they start.
        heading: float32 [N], radians.
        classes: int64 [N], 0 to 2.
        motion: float32 [3, V, 6, 4, 2], see `Vocabulary`.

    Returns:
        position [N, 5, 2] and heading [N, 5], radians in [-pi, pi], after 0.1, .. 0.5 s; the last
        is the next state.
    """
    return to_poses(_place(motion[classes, index, 1:], position[:, None], heading[:, None]))


def _place(corners: Tensor, position: Tensor, heading: Tensor) -> Tensor:
    """Boxes [..., 4, 2] out of the frame of poses [..., 2], [...]."""
    cos, sin = heading.cos()[..., None], heading.sin()[..., None]
    x, y = corners.unbind(-1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1) + position[..., None, :]


def _to_frame(points: Tensor, position: Tensor, heading: Tensor) -> Tensor:
    """Points [n, 2] in the frame of poses [n, 2], [n]."""
    cos, sin = heading.cos(), heading.sin()
    x, y = (points - position).unbind(-1)
    return torch.stack([x * cos + y * sin, y * cos - x * sin], dim=-1)


def _by_class(classes: Tensor, motion: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each class: its rows, the boxes [V, 4, 2] where its tokens end, and its box's size [2]."""
    sizes = motion.new_tensor(CLASS_SIZE)
    for index, (tokens, size) in enumerate(zip(motion, sizes, strict=True)):
        rows = torch.nonzero(classes == index)[:, 0]
        if len(rows):
            yield rows, tokens[:, -1], size


def _nearest(boxes: Tensor, ends: Tensor) -> Tensor:
    """The token [n] whose end [V, 4, 2] is nearest to each box [n, 4, 2]."""
    return torch.cat([distance.argmin(dim=1) for distance in _distances(boxes, ends)])


def _sample_near(boxes: Tensor, ends: Tensor, noise: TokenNoise, draws: Tensor) -> Tensor:
    """One of the tokens whose ends are near to each box; `draws` [n] are uniform in [0, 1)."""
    nearest = [distance.topk(noise.num_k, largest=False) for distance in _distances(boxes, ends)]
    distance, token = (torch.cat(parts) for parts in zip(*nearest, strict=True))
    weights = torch.softmax(-distance / 4 / noise.temperature, dim=1).cumsum(dim=1)
    # Rounding can leave the last sum a little below 1.
    place = (weights[:, :-1] <= draws[:, None]).sum(dim=1, keepdim=True)
    return token.gather(1, place)[:, 0]


def _distances(boxes: Tensor, ends: Tensor) -> Iterator[Tensor]:
    """Sums of the distances of corners [m, V], for some of the boxes at a time."""
    xs, ys = ends.permute(2, 1, 0).contiguous()
    at_a_time = max(1, (_PAIRS_ON_CPU if boxes.is_cpu else _PAIRS_ON_DEVICE) // len(ends))
    for start in range(0, len(boxes), at_a_time):
        part = boxes[start : start + at_a_time]
        total: Tensor | float = 0.0
        for corner, (x, y) in enumerate(zip(xs, ys, strict=True)):
            dx, dy = part[:, corner, 0, None] - x, part[:, corner, 1, None] - y
            # In place: fresh memory would take longer than the arithmetic.
            total = dx.square_().add_(dy.square_()).sqrt_().add_(total)
        assert isinstance(total, Tensor)
        yield total
