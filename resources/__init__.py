"""Thin Dagster resources around the core."""

from resources.progress import Progress
from resources.workspace import WorkspaceResource

__all__ = ["Progress", "WorkspaceResource"]
