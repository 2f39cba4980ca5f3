"""Lineage: from a score back to documents and weights, every hop a stored key.

- `trace`         the walk over tables
- `sources`       the walk from SAE and tokens on
- `nodes`         nodes of the tree, and opening what they name
- `checks`, `score_checks`  what `--verify` recomputes
"""
