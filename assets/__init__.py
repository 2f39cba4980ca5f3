"""Dagster assets, one module per noun. They only wire the core into Dagster; `latentgloss` computes everything.

- `corpus`, `activations`, `contexts`, `explanations`, `scores`, `report`, `embeddings`: the assets of each noun. The
  docstring of an asset says what it means if the asset is not healthy, and what to do.
- `stage_asset`  turns a stage of the core into an asset
- `partitions`   partitions for the models and SAEs of the registry
- `automation`   the conditions under which Dagster runs an asset by itself
- `checks`       asset checks
- `configuration`  the checks of the registry and the settings
- `pictures`     charts and tables that the Dagster UI shows for each partition
- `drawing`      bars and lines as SVG, for the charts
- `records`      the events that Dagster stores for each finished partition
"""
