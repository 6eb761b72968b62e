"""Single-precision arithmetic, rounded as the official TensorFlow package rounds it.

WOMD coordinates reach 40 km, where two neighbouring float32 numbers lie 4 mm apart, and a value
that falls on the other side of a histogram edge changes a score in the third decimal. So the
kernels repeat the official operations in their order and precision instead of better ones, and
these helpers repeat the two functions whose rounding is TensorFlow's own.
"""

from __future__ import annotations

import math

import numpy as np

from wosac_toolkit.kernels.jit import inlined, kernel

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
PI, TWO_PI = np.float32(np.pi), np.float32(2 * np.pi)

#: What the official code writes where a distance is undefined.
EXTREMELY_LARGE_DISTANCE = np.float32(1e10)

# Cody-Waite reduction by pi/2 in four parts and the two polynomials on [-pi/4, pi/4]: the constants
# of Eigen's `psincos_float` without fused multiply-add, which TensorFlow's CPU kernels run.
_TWO_OVER_PI = np.float32(0.636619746685028076171875)
_ROUND_TO_INTEGER = np.float32(12582912.0)  # 1.5 * 2**23: adding it drops the fraction bits
_HALF_PI_1 = np.float32(-1.5703125)
_HALF_PI_2 = np.float32(-0.000483989715576171875)
_HALF_PI_3 = np.float32(1.62865035235881805419921875e-07)
_HALF_PI_4 = np.float32(5.5644315544167710640977020375430583953857421875e-11)
_COS_4 = np.float32(2.4372266125283204019069671630859375e-05)
_COS_3 = np.float32(-0.00138865201734006404876708984375)
_COS_2 = np.float32(0.041666619479656219482421875)
_SIN_3 = np.float32(-0.0001959234114083702898469196984621021329076029360294342041015625)
_SIN_2 = np.float32(0.00833268736556168516937937998712843400426208972930908203125)
_SIN_1 = np.float32(-0.16666662039822982555037356178218033164739608764648437500)
# Beyond this the reduction loses its digits and Eigen calls the C library instead.
HUGE_ANGLE = np.float32(18838.0)


@inlined
def small_sin_cos(angle: float) -> tuple[float, float]:
    """`sin_cos` of an angle of less than `HUGE_ANGLE`, without a branch."""
    magnitude = abs(angle)
    turns = (magnitude * _TWO_OVER_PI + _ROUND_TO_INTEGER) - _ROUND_TO_INTEGER
    quadrant = np.int32(turns)
    x = turns * _HALF_PI_1 + magnitude
    x = turns * _HALF_PI_2 + x
    x = turns * _HALF_PI_3 + x
    x = turns * _HALF_PI_4 + x
    x2 = x * x
    even = (((_COS_4 * x2 + _COS_3) * x2 + _COS_2) * x2 - HALF) * x2 + ONE
    odd = ((_SIN_3 * x2 + _SIN_2) * x2 + _SIN_1) * x2
    odd = odd * x + x
    swap = (quadrant & 1) != 0
    sine = even if swap else odd
    cosine = odd if swap else even
    sine = -sine if ((quadrant & 2) != 0) != (angle < ZERO) else sine
    cosine = -cosine if ((quadrant + 1) & 2) != 0 else cosine
    return sine, cosine


@kernel
def sin_cos(angle: float) -> tuple[float, float]:
    """Sine and cosine of a float32 angle in radians, as `tf.sin` and `tf.cos` on the CPU."""
    if not abs(angle) < HUGE_ANGLE:
        return np.float32(math.sin(np.float64(angle))), np.float32(math.cos(np.float64(angle)))
    return small_sin_cos(angle)


@inlined
def wrap_angle(angle: float) -> float:
    """`angle` in [-pi, pi), as the official `_wrap_angle`: (angle + pi) % (2 pi) - pi, with the
    sign of the divisor as `tf.math.floormod` gives it.
    """
    shifted = angle + PI
    remainder = shifted
    if not abs(shifted) < TWO_PI:  # rare, and a slow library call
        remainder = np.fmod(shifted, TWO_PI)
    if remainder < ZERO:
        remainder = remainder + TWO_PI
    return remainder - PI
