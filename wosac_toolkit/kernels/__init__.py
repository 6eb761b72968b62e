"""The hot path: numba kernels, one file a feature; arrays in, arrays out, no objects."""
