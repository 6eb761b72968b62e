"""Corners of boxes (`box_utils.get_upright_3d_box_corners`)."""

from __future__ import annotations

from wosac_toolkit.kernels.float32 import HALF, sin_cos
from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.kernels.layout import size_at
from wosac_toolkit.scenario import Float32Array


@inlined
def corners_of_box(
    x: float, y: float, sine: float, cosine: float, length: float, width: float
) -> tuple[float, float, float, float, float, float, float, float]:
    """The four corners of a box, counter-clockwise from the front left: four x, then four y.

    The official code rotates by a batched matrix product. With oneDNN on a processor with AVX-512
    TensorFlow fuses the second product into the sum, elsewhere it does not, so the official
    corners differ from machine to machine in their last bit. This is the unfused sum.

    Args:
        x, y: float32, the centre.
        sine, cosine: float32, of the heading.
        length, width: float32.
    """
    l2, w2 = length * HALF, width * HALF
    # Opposite corners are mirror images, and rounding is symmetric.
    front_x, back_x = cosine * l2 - sine * w2, -(cosine * l2) - sine * w2
    front_y, back_y = sine * l2 + cosine * w2, cosine * w2 - sine * l2
    return (
        front_x + x, back_x + x, x - front_x, x - back_x,
        front_y + y, back_y + y, y - front_y, y - back_y,
    )  # fmt: skip


@kernel
def box_corners(
    x: Float32Array,
    y: Float32Array,
    heading: Float32Array,
    length: Float32Array,
    width: Float32Array,
    corners: Float32Array,
) -> None:
    """Fill `corners` of the first M of N agents.

    Args:
        x, y: float32 [R, H + T, N]; the H steps of history are not used.
        heading: float32 [R, T, N].
        length, width: float32 [N], or [R, T, N] where they change, in metres.
        corners: float32 [R, T, M, 8], written: four x, then four y.
    """
    n_rollouts, n_steps, n_agents = corners.shape[:3]
    n_history = x.shape[1] - n_steps
    for r in range(n_rollouts):
        for t in range(n_steps):
            s = n_history + t
            for n in range(n_agents):
                sine, cosine = sin_cos(heading[r, t, n])
                box = corners_of_box(
                    x[r, s, n], y[r, s, n], sine, cosine,
                    size_at(length, r, t, n), size_at(width, r, t, n),
                )  # fmt: skip
                for k in range(8):
                    corners[r, t, n, k] = box[k]
