"""Slow float64 twins of the kernels, which a reader believes at a glance."""
