"""A workspace: settings, registry and store opened together. The only room that knows all nouns.

- `workspace`    the class that people and commands open
- `resources`    models, tokenizers, embedders, language models, vectors: opened when first asked for
- `recipes`      everything that decides the content of a stage for a partition
- `states`       fresh, stale, missing, failed
- `materialise`  running a stage over partitions
- `search`       the search index seen from a workspace
"""

from latentgloss.workspace.states import State
from latentgloss.workspace.workspace import Workspace

__all__ = ["State", "Workspace"]
