"""Dagster resources, which are thin layers around the core.

- `workspace`  the settings, registry and store
- `processes`  the identity of the process of a run
- `progress`   progress lines in Dagster's log
"""

from resources.progress import Progress
from resources.workspace import WorkspaceResource

__all__ = ["Progress", "WorkspaceResource"]
