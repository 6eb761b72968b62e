"""From states as they are stored to the layouts that the other kernels read."""

from __future__ import annotations

from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.scenario import Float32Array, Int64Array


@inlined
def size_at(sizes: Float32Array, r: int, t: int, n: int) -> float:
    """The size of agent `n` at step `t` of rollout `r`.

    Args:
        sizes: float32 [N] where they do not change, or [R, T, N]. Numba compiles one of the two
            branches for each.
        r, t, n: rollout, step, agent.
    """
    if sizes.ndim == 1:
        return sizes[n]
    return sizes[r, t, n]


@kernel
def unpack_states(
    states: Float32Array,
    columns: Int64Array,
    history: Float32Array,
    x: Float32Array,
    y: Float32Array,
    heading: Float32Array,
    evaluated: Float32Array,
) -> None:
    """Put the history before the simulated states, reorder the agents, and split the coordinates.

    Args:
        states: float32 [R, N, T, 4], agents in any order.
        columns: int64 [N], where each agent of the metric's order stands in `states`.
        history: float32 [N, H, 4], the last H logged steps, in the metric's order.
        x, y: float32 [R, H + T, N], written.
        heading: float32 [R, T, N], written.
        evaluated: float32 [4, R, E, H + T], written: x, y, z, heading of the first E agents.
    """
    n_rollouts, n_agents, n_steps = states.shape[:3]
    n_history = history.shape[1]
    n_evaluated = evaluated.shape[2]
    for r in range(n_rollouts):
        for t in range(n_history):
            for n in range(n_agents):
                x[r, t, n] = history[n, t, 0]
                y[r, t, n] = history[n, t, 1]
        # Of a transposition either reads or writes jump; it is faster if the reads do.
        for t in range(n_steps):
            for n in range(n_agents):
                column = columns[n]
                x[r, n_history + t, n] = states[r, column, t, 0]
                y[r, n_history + t, n] = states[r, column, t, 1]
                heading[r, t, n] = states[r, column, t, 3]
        for e in range(n_evaluated):
            column = columns[e]
            for k in range(4):
                for t in range(n_history):
                    evaluated[k, r, e, t] = history[e, t, k]
                for t in range(n_steps):
                    evaluated[k, r, e, n_history + t] = states[r, column, t, k]
