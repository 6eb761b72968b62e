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
    own_x: Float32Array,
    own_y: Float32Array,
    own_z: Float32Array,
    own_heading: Float32Array,
) -> None:
    """Put the history before the simulated states, reorder the agents, and split the coordinates.

    Args:
        states: float32 [R, N, T, 4], agents in any order.
        columns: int64 [N], where each agent of the metric's order stands in `states`.
        history: float32 [N, H, 4], the last H logged steps, in the metric's order.
        x, y: float32 [R, H + T, N], written.
        heading: float32 [R, T, N], written.
        own_x, own_y, own_z, own_heading: float32 [R, E, H + T], written: of the first E agents.
    """
    n_rollouts, n_agents, n_steps = states.shape[:3]
    n_history = history.shape[1]
    n_evaluated = own_x.shape[1]
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
            for t in range(n_history):
                own_x[r, e, t], own_y[r, e, t] = history[e, t, 0], history[e, t, 1]
                own_z[r, e, t], own_heading[r, e, t] = history[e, t, 2], history[e, t, 3]
            for t in range(n_steps):
                i = n_history + t
                own_x[r, e, i], own_y[r, e, i] = states[r, column, t, 0], states[r, column, t, 1]
                own_z[r, e, i] = states[r, column, t, 2]
                own_heading[r, e, i] = states[r, column, t, 3]
