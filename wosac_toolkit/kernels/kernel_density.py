"""Kernel density estimates of features (`estimators.kernel_density_estimate`).

No published version of the metric uses one, but its configuration allows for it.
"""

from __future__ import annotations

import numpy as np

from wosac_toolkit.kernels.jit import kernel
from wosac_toolkit.scenario import Float32Array, Float64Array


@kernel
def log_densities(
    values: Float32Array, at: Float32Array, bandwidth: float, densities: Float64Array
) -> None:
    """Log-density of logged values under a Gaussian at each simulated one.

    Scaled so that a rollout that repeats the logged value at every step has density 1. In float64
    and by logarithms, since a value may lie many bandwidths from all samples. NaN where a simulated
    value is, as it makes the official code fail.

    Args:
        values: float32 [R, E, T], simulated.
        at: float32 [E, T], logged.
        bandwidth: standard deviation of the Gaussian, in the feature's unit.
        densities: float64 [R, E, T], written: of each logged step under each rollout.
    """
    n_rollouts, n_agents, n_steps = values.shape
    exponents = np.empty(n_steps, np.float64)
    for r in range(n_rollouts):
        for e in range(n_agents):
            for t in range(n_steps):
                largest = -np.inf
                for i in range(n_steps):
                    z = (np.float64(at[e, t]) - np.float64(values[r, e, i])) / bandwidth
                    exponents[i] = -0.5 * z * z
                    largest = max(largest, exponents[i])
                total = 0.0
                for i in range(n_steps):
                    total += np.exp(exponents[i] - largest)
                densities[r, e, t] = largest + np.log(total / n_steps)
