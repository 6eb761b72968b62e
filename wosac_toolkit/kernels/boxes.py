"""Corners of the boxes of all agents (`box_utils.get_upright_3d_box_corners`)."""

from __future__ import annotations

from wosac_toolkit.kernels.float32 import HALF, sin_cos
from wosac_toolkit.kernels.jit import kernel
from wosac_toolkit.scenario import Float32Array


@kernel
def box_corners(
    x: Float32Array,
    y: Float32Array,
    heading: Float32Array,
    length: Float32Array,
    width: Float32Array,
    corners: Float32Array,
) -> None:
    """Fill `corners` with the four corners of each box, counter-clockwise from the front left.

    The official code rotates by a batched matrix product. With oneDNN on a processor with AVX-512
    TensorFlow fuses the second product into the sum, elsewhere it does not, so the official
    corners differ from machine to machine in their last bit. This is the unfused sum.

    Args:
        x, y: float32 [R, H + T, N]; the H steps of history are not used.
        heading: float32 [R, T, N].
        length, width: float32 [N], in metres.
        corners: float32 [R, T, M, 8] of the first M agents, written: four x, then four y.
    """
    n_rollouts, n_steps, n_agents = corners.shape[:3]
    n_history = x.shape[1] - n_steps
    for r in range(n_rollouts):
        for t in range(n_steps):
            for n in range(n_agents):
                sine, cosine = sin_cos(heading[r, t, n])
                l2 = length[n] * HALF
                w2 = width[n] * HALF
                cx, cy = x[r, n_history + t, n], y[r, n_history + t, n]
                # Half the opposite corners are mirror images, and rounding is symmetric.
                front_x = cosine * l2 - sine * w2
                front_y = sine * l2 + cosine * w2
                back_x = -(cosine * l2) - sine * w2
                back_y = cosine * w2 - sine * l2
                corners[r, t, n, 0] = front_x + cx
                corners[r, t, n, 1] = back_x + cx
                corners[r, t, n, 2] = cx - front_x
                corners[r, t, n, 3] = cx - back_x
                corners[r, t, n, 4] = front_y + cy
                corners[r, t, n, 5] = back_y + cy
                corners[r, t, n, 6] = cy - front_y
                corners[r, t, n, 7] = cy - back_y
