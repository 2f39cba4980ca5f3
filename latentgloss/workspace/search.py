"""The search index seen from a workspace: query, whether it is behind, rebuilding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentgloss.embeddings.search_index import STAGE, SearchIndex
from latentgloss.embeddings.search_writer import explanation_rows, rebuilding
from latentgloss.embeddings.vectors import KINDS, refusal
from latentgloss.errors import MissingInput

if TYPE_CHECKING:
    from latentgloss.models.embedder import SentenceEmbedder
    from latentgloss.store import Version
    from latentgloss.workspace.workspace import Workspace


def open_index(workspace: Workspace) -> tuple[SearchIndex, SentenceEmbedder]:
    """The index and the embedder of the settings, which loads when it first embeds."""
    embedder = workspace.embedder(workspace.settings.search.embedder)
    return SearchIndex(workspace.lance, embedder.identity()), embedder


def behind(workspace: Workspace, index: SearchIndex) -> list[str]:
    """Models whose rows are not those of their current `search_index` version, or not all of them, sorted."""
    there = index.counts()
    found = []
    for model in {*workspace.store.partitions(STAGE), *there}:
        version = workspace.store.current(STAGE, model)
        rows = {} if version is None else version.json("index.json")["rows"]
        wanted = {(sae, version.manifest.fingerprint): n for sae, n in rows.items() if n and version is not None}
        if there.get(model, {}) != wanted:
            found.append(model)
    return sorted(found)


def rebuild(workspace: Workspace) -> tuple[dict[str, int], dict[str, str]]:
    """Makes the index anew from the current versions: (rows per SAE, why each table of vectors was removed).

    Removed are tables of vectors that nobody can use; vectors that are missing are made. Until all is written the
    present index stays. Raises MissingInput if no model has a `search_index`, or if what one was made from is gone.
    """
    removed = _remove_unusable(workspace)
    store = workspace.store
    versions = [v for model in store.partitions(STAGE) if (v := store.current(STAGE, model)) is not None]
    if not versions:
        raise MissingInput(
            "no model has a search_index" + (f"; removed unusable tables: {', '.join(removed)}" if removed else ""),
            todo="materialise it: `dagster asset materialize --select search_index --partition MODEL`",
        )
    index, _ = open_index(workspace)
    vectors = workspace.text_vectors(workspace.settings.search.embedder, "document")
    rows: dict[str, int] = {}
    with rebuilding(index) as table:
        for version in versions:
            pinned = _pinned(workspace, version)
            for partition in version.json("index.json")["rows"]:
                frame = explanation_rows(partition, pinned[partition])
                texts = frame["explanation"].to_list()
                table.put(partition, frame, vectors.get(texts), version.manifest.fingerprint)
                rows[partition] = frame.height
    return rows, removed


def _remove_unusable(workspace: Workspace) -> dict[str, str]:
    tables, removed = workspace.lance, {}
    embedders = [workspace.embedder(name) for name in workspace.registry.embedders]
    for name in tables.names():
        if name.startswith(KINDS) and (error := refusal(tables, name, embedders)) is not None:
            with tables.lock(name):
                tables.drop(name)
            removed[name] = error.found
    return removed


def _pinned(workspace: Workspace, version: Version) -> dict[str, dict[str, Version]]:
    """Per SAE and stage the versions a `search_index` was made from. Raises MissingInput if one is gone."""
    found: dict[str, dict[str, Version]] = {}
    for pin in version.manifest.inputs:
        stage, partition, model = pin["stage"], pin["partition"], version.manifest.partition
        pinned = workspace.store.version(stage, partition, pin["fingerprint"])
        if pinned is None:
            raise MissingInput(
                f"the search_index of {model} was made from {stage} of {partition}, version {pin['fingerprint']}, "
                "which is gone",
                expected="every version it was made from, in the store; the index that is there stays as it is",
                todo=f"materialise it again: `dagster asset materialize --select search_index --partition {model}`; or "
                f"delete {workspace.store.files.path(f'{STAGE}/{model}')} if that model is not wanted any more",
            )
        found.setdefault(partition, {})[stage] = pinned
    return found
