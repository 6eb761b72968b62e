"""Small rollouts for the tests of reading and writing them."""

from __future__ import annotations

import numpy as np

from wosac_toolkit.rollouts import Rollouts


def example(
    scenario_id: str = "637f20cafde22ff8", n_rollouts: int = 3, n_objects: int = 4, n_steps: int = 5
) -> Rollouts:
    """Every number is different, so that none can be mistaken for another."""
    shape = (n_rollouts, n_objects, n_steps, 4)
    states = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 8 - 40
    return Rollouts(scenario_id, np.arange(n_objects) * 100 + 7, states)


def same(a: Rollouts, b: Rollouts) -> bool:
    """Bit for bit, NaN and the sign of zero included."""
    return a.scenario_id == b.scenario_id and all(
        _same_bits(getattr(a, name), getattr(b, name))
        for name in ("object_ids", "states", "sizes", "object_types")
    )


def _same_bits(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
