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
    return (
        a.scenario_id == b.scenario_id
        and np.array_equal(a.object_ids, b.object_ids)
        and np.array_equal(a.states, b.states, equal_nan=True)
    )
