"""A workspace: settings, registry and store opened together. The only room that imports from every noun.

- `workspace`    the class `Workspace`, which notebooks, commands and Dagster open
- `resources`    models, tokenizers, embedders, language models and vectors, each opened on first use
- `recipes`      everything that decides the content of a stage for a partition
- `states`       whether a partition is fresh, stale, missing or failed
- `preflight`    what would stop a run, found before anything runs
- `materialise`  runs a stage over partitions
- `search`       opens the search index of a workspace, compares it with the store, and rebuilds it
"""

from latentgloss.workspace.states import State
from latentgloss.workspace.workspace import Workspace

__all__ = ["State", "Workspace"]
