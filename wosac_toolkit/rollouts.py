"""R joint futures of one scene, as a simulator produces them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wosac_toolkit.errors import RolloutsError
from wosac_toolkit.scenario import Float32Array, Int64Array


@dataclass(frozen=True, eq=False, slots=True)
class Rollouts:
    """R joint rollouts of the N simulated agents of a scene over T future steps at 10 Hz.

    Attributes:
        scenario_id: the scene's id.
        object_ids: int64 [N]; any integer dtype is accepted.
        states: float32 [R, N, T, 4]: x, y, z of the box centre in metres and heading in radians,
            in the scenario's global frame; step 0 is the one after the scene's current step.

    Raises:
        RolloutsError: arrays whose shapes do not fit together, or ids that are not integers.
    """

    scenario_id: str
    object_ids: Int64Array
    states: Float32Array

    def __post_init__(self) -> None:
        where = f"scenario {self.scenario_id}"
        ids = np.asarray(self.object_ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise RolloutsError(
                f"object_ids must be a list of integers, not {ids.dtype} {list(ids.shape)}",
                where=where,
            )
        states = np.asarray(self.states)
        if states.dtype.kind != "f":
            raise RolloutsError(f"states must be float32, not {states.dtype}", where=where)
        if states.ndim != 4 or states.shape[1] != len(ids) or states.shape[3] != 4:
            raise RolloutsError(
                f"states must be [rollouts, {len(ids)} objects, steps, 4], "
                f"not {list(states.shape)}",
                where=where,
            )
        object.__setattr__(self, "object_ids", ids.astype(np.int64, copy=False))
        object.__setattr__(self, "states", np.ascontiguousarray(states, dtype=np.float32))

    @property
    def n_rollouts(self) -> int:
        """R, the number of joint rollouts."""
        return int(self.states.shape[0])

    @property
    def n_steps(self) -> int:
        """T, the number of simulated steps."""
        return int(self.states.shape[2])
