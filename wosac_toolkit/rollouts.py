"""R joint futures of one scene, as a simulator produces them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wosac_toolkit.errors import RolloutsError
from wosac_toolkit.scenario import Float32Array, Int8Array, Int64Array


@dataclass(frozen=True, eq=False, slots=True)
class Rollouts:
    """R joint rollouts of the N simulated agents of a scene over T steps at 10 Hz.

    Attributes:
        scenario_id: the scene's id.
        object_ids: int64 [N]; any integer dtype is accepted.
        states: float32 [R, N, T, 4]: x, y, z of the box centre in metres and heading in radians,
            in the scenario's global frame; step 0 is the one after the scene's current step, or,
            in scenario generation, the first of the record.
        sizes: float32 [R, N, T, 3], length, width and height in metres, which scenario generation
            simulates as well; None elsewhere. The Sim Agents metric does not look at them.
        object_types: int8 [R, N], see `ObjectType`; any integer dtype is accepted. Scenario
            generation may give an agent another type than the log's; None leaves it.

    Raises:
        RolloutsError: arrays whose shapes do not fit together, or ids that are not integers.
    """

    scenario_id: str
    object_ids: Int64Array
    states: Float32Array
    sizes: Float32Array | None = None
    object_types: Int8Array | None = None

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
        if self.sizes is not None:
            sizes, shape = np.asarray(self.sizes), (*states.shape[:3], 3)
            if sizes.dtype.kind != "f" or sizes.shape != shape:
                raise RolloutsError(
                    f"sizes must be float32 {list(shape)} to fit the states, "
                    f"not {sizes.dtype} {list(sizes.shape)}",
                    where=where,
                )
            object.__setattr__(self, "sizes", np.ascontiguousarray(sizes, dtype=np.float32))
        if self.object_types is not None:
            types, shape = np.asarray(self.object_types), states.shape[:2]
            if types.dtype.kind not in "iu" or types.shape != shape:
                raise RolloutsError(
                    f"object_types must be integers {list(shape)} to fit the states, "
                    f"not {types.dtype} {list(types.shape)}",
                    where=where,
                )
            object.__setattr__(self, "object_types", types.astype(np.int8, copy=False))

    def between(self, start: int, stop: int) -> Rollouts:
        """The rollouts `start` to `stop`, the last excluded."""
        part = slice(start, stop)
        return Rollouts(
            self.scenario_id,
            self.object_ids,
            self.states[part],
            sizes=None if self.sizes is None else self.sizes[part],
            object_types=None if self.object_types is None else self.object_types[part],
        )

    @property
    def n_rollouts(self) -> int:
        """R, the number of joint rollouts."""
        return int(self.states.shape[0])

    @property
    def n_steps(self) -> int:
        """T, the number of simulated steps."""
        return int(self.states.shape[2])
