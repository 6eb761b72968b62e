"""Who attends to whom.

Attention runs over tables: a table has some targets, and K sources of each. Targets are put
together with others of about as many sources, so that little of a table is empty, and tables are
small enough that what is computed for one stays in a processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Most numbers that a table's pairs have in one embedding. A CPU is fastest while they stay in its
#: cache; a GPU where there are few tables.
_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 27}

#: Most entries of a matrix of distances.
_PAIRS = 1 << 24

MAP_CAP = 100
AGENT_CAP = 300
"""The most neighbours that the public code takes: of a map token, and of an agent or, among agents,
of a map token; those of the lowest index. Checkpoints were trained so. (It counts agents that are
not valid too, as if they stood at (0, 0); we do not, which no scene of up to 300 agents shows.)"""


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """Some targets and the sources each attends to.

    Attributes:
        targets: long [t], rows of the targets.
        sources: long [t, K], rows of the sources; any row where there is none.
        absent: [t, 1, K], what to add to scores: 0 where there is a source, else -inf; each target
            has one source at least.
    """

    targets: Tensor
    sources: Tensor
    absent: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Neighbours:
    """The tables of all targets that have sources.

    Attributes:
        tables: disjoint in their targets.
        place: long [T], where each target stands in the tables' order; the number of all that have
            sources, for one that has none.
    """

    tables: Sequence[Table]
    place: Tensor


def tabulate(targets: Tensor, sources: Tensor, n_targets: int, dim: int) -> Neighbours:
    """Tables of pairs.

    Args:
        targets: long [E], ascending.
        sources: long [E].
        n_targets: T.
        dim: D, width of the embedding of a pair, by which tables are as large as they should be.
    """
    device = targets.device
    degree = torch.bincount(targets, minlength=n_targets)
    start = degree.cumsum(0) - degree
    by_degree = torch.argsort(degree, descending=True, stable=True)
    sorted_degree = degree[by_degree]
    n_present = int((sorted_degree > 0).sum())
    place = torch.full((n_targets,), n_present, dtype=torch.long, device=device)
    place[by_degree[:n_present]] = torch.arange(n_present, device=device)
    # With no pairs at all there still is one to point at.
    sources = sources if len(sources) else targets.new_zeros(1)
    tables = []
    cells = _NUMBERS[device.type] // dim
    for first, last, width in _runs(sorted_degree[:n_present].tolist(), cells):
        chosen = by_degree[first:last]
        column = torch.arange(width, device=device)
        absent = torch.zeros(len(chosen), 1, width, device=device)
        absent.masked_fill_((column >= degree[chosen, None])[:, None], -math.inf)
        entry = (start[chosen, None] + column).clamp_(max=len(sources) - 1)
        tables.append(Table(chosen, sources[entry], absent))
    return Neighbours(tables, place)


def _runs(degrees: Sequence[int], cells: int) -> Iterator[tuple[int, int, int]]:
    """First, last and width of tables, from degrees in falling order."""
    first = 0
    while first < len(degrees):
        width = degrees[first]
        last = min(len(degrees), first + max(1, cells // width))
        yield first, last, width
        first = last


def between_map_tokens(
    position: Tensor, counts: Sequence[int], radius: float, dim: int
) -> Neighbours:
    """The map tokens nearer than a radius to each, in the same scene.

    Args:
        position: [P, 2].
        counts: map tokens of each scene.
        radius: metres; what is exactly so far away is no neighbour.
        dim: see `tabulate`.
    """
    pairs = []
    first = 0
    for part in position.split(list(counts)):
        rows = max(1, _PAIRS // max(1, len(part)))
        for i in range(0, len(part), rows):
            near = _near(part[i : i + rows, None], part[None], radius)
            # The public search takes itself for a neighbour, and removes it after the cap.
            near = _first(near, MAP_CAP + 1, dim=1)
            near.diagonal(i).fill_(False)
            pairs.append(near.nonzero() + torch.tensor([first + i, first], device=near.device))
        first += len(part)
    targets, sources = _stack(pairs, position.device)
    return tabulate(targets, sources, len(position), dim)


def map_of_agents(
    position: Tensor,
    valid: Tensor,
    counts: Sequence[int],
    map_position: Tensor,
    map_counts: Sequence[int],
    radius: float,
    dim: int,
) -> Neighbours:
    """The map tokens that agents see.

    Args:
        position: [G, A, 2] of the agents of all scenes in G frames: steps, rollouts, or both.
        valid: bool [G, A].
        counts: agents of each scene.
        map_position: [P, 2].
        map_counts: map tokens of each scene.
        radius: metres.
        dim: see `tabulate`.

    Returns:
        Targets are rows of [G * A], sources rows of [P].
    """
    n_frames, n_agents = valid.shape
    pairs = []
    agent, token = 0, 0
    for n, n_tokens in zip(counts, map_counts, strict=True):
        tokens = map_position[token : token + n_tokens]
        frames = max(1, _PAIRS // max(1, n * n_tokens))
        for g in range(0, n_frames, frames):
            here = slice(g, g + frames), slice(agent, agent + n)
            near = _near(position[here][:, :, None], tokens, radius)
            near = _first(near & valid[here][..., None], AGENT_CAP, dim=1)
            frame, row, source = near.nonzero().unbind(1)
            pairs.append(torch.stack([(frame + g) * n_agents + row + agent, source + token], 1))
        agent, token = agent + n, token + n_tokens
    return _sorted(pairs, n_frames * n_agents, dim, position.device)


def between_agents(
    position: Tensor, valid: Tensor, counts: Sequence[int], radius: float, dim: int
) -> Neighbours:
    """The agents that agents see, in the same frame.

    Args:
        position: [G, A, 2], see `map_of_agents`.
        valid: bool [G, A].
        counts: agents of each scene.
        radius: metres.
        dim: see `tabulate`.

    Returns:
        Targets and sources are rows of [G * A].
    """
    n_frames, n_agents = valid.shape
    pairs = []
    agent = 0
    for n in counts:
        frames = max(1, _PAIRS // max(1, n * n))
        for g in range(0, n_frames, frames):
            here = slice(g, g + frames), slice(agent, agent + n)
            near = _near(position[here][:, :, None], position[here][:, None], radius)
            near &= valid[here][:, :, None] & valid[here][:, None]
            near = _first(near, AGENT_CAP + 1, dim=2)
            near.diagonal(dim1=1, dim2=2).fill_(False)
            frame, row, source = near.nonzero().unbind(1)
            base = (frame + g) * n_agents + agent
            pairs.append(torch.stack([base + row, base + source], 1))
        agent += n
    return _sorted(pairs, n_frames * n_agents, dim, position.device)


def own_past(valid: Tensor, time_span: int, dim: int) -> Neighbours:
    """The earlier states that agents see of themselves.

    Args:
        valid: bool [S, N], over steps; states that are no source and no target are not valid.
        time_span: steps.
        dim: see `tabulate`.

    Returns:
        Targets and sources are rows of [S * N].
    """
    n_steps, n = valid.shape
    step = torch.arange(n_steps, device=valid.device)
    ago = step[:, None] - step
    seen = ((ago > 0) & (ago <= time_span))[:, None] & valid[:, :, None] & valid.T
    target, row, source = seen.nonzero().unbind(1)
    return tabulate(target * n + row, source * n + row, n_steps * n, dim)


def last_states(valid: Tensor, now: Tensor, dim: int) -> Neighbours:
    """The kept states of each agent, for a step of a simulation.

    Args:
        valid: bool [W, N], of the states kept.
        now: bool [N], the agents simulated.
        dim: see `tabulate`.

    Returns:
        Targets are rows of [N], sources rows of [W * N].
    """
    n = valid.shape[1]
    row, source = (valid & now).T.nonzero().unbind(1)
    return tabulate(row, source * n + row, n, dim)


def _near(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Whether points [..., 2] are nearer than a radius, from squares summed in float32."""
    square = (a[..., 0] - b[..., 0]).square_()
    square += (a[..., 1] - b[..., 1]).square_()
    return square < radius * radius


def _first(near: Tensor, cap: int, dim: int) -> Tensor:
    """Of each line along `dim`, the first `cap` that are near."""
    if near.shape[dim] <= cap or not (near.sum(dim) > cap).any():
        return near
    return near & (near.cumsum(dim) <= cap)


def _stack(pairs: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    none = torch.zeros(0, 2, dtype=torch.long, device=device)
    target, source = torch.cat([none, *pairs]).unbind(1)
    return target, source


def _sorted(pairs: Sequence[Tensor], n_targets: int, dim: int, device: torch.device) -> Neighbours:
    """Tables of pairs whose targets ascend scene by scene only."""
    target, source = _stack(pairs, device)
    if len(pairs) > 1:
        target, order = target.sort(stable=True)
        source = source[order]
    return tabulate(target, source, n_targets, dim)
