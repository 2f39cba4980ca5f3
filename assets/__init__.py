"""Dagster assets: one module per noun. Wiring only; what an asset computes is in `latentgloss`."""
