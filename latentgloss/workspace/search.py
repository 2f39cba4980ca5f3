"""Opens the search index of a workspace, compares it with the current versions, and rebuilds it.

What belongs here: the operations that need the index and the store together. Searching is in
`embeddings/search_index.py`, writing rows in `embeddings/search_writer.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentgloss.embeddings.search_index import STAGE, SearchIndex
from latentgloss.embeddings.search_writer import explanation_rows, rebuilding
from latentgloss.embeddings.vector_table import KINDS, refusal
from latentgloss.errors import MissingInput

if TYPE_CHECKING:
    from latentgloss.models.embedder import SentenceEmbedder
    from latentgloss.store import Version
    from latentgloss.workspace.workspace import Workspace


def open_index(workspace: Workspace) -> tuple[SearchIndex, SentenceEmbedder]:
    """The search index and the embedder named in the settings; the embedder is loaded when it first embeds."""
    embedder = workspace.embedder(workspace.settings.search.embedder)
    return SearchIndex(workspace.lance, embedder.identity()), embedder


def behind(workspace: Workspace, index: SearchIndex) -> list[str]:
    """Models whose rows in the index differ from their current `search_index` version; sorted.

    Compares the number of rows of each SAE and the version they were written for. Raises MissingInput if there is no
    index, StoreError if it cannot be read.
    """
    stored = index.counts()
    found = []
    for model in {*workspace.store.partitions(STAGE), *stored}:
        version = workspace.store.current(STAGE, model)
        rows = {} if version is None else version.json("index.json")["rows"]
        wanted = {(sae, version.manifest.fingerprint): n for sae, n in rows.items() if n and version is not None}
        if stored.get(model, {}) != wanted:
            found.append(model)
    return sorted(found)


def rebuild(workspace: Workspace) -> tuple[dict[str, int], dict[str, str]]:
    """Builds the index again from the current versions: (rows per SAE, reason per removed table of vectors).

    Removes tables of vectors that cannot be used, and makes missing vectors. The present index is replaced only after
    all rows are written. Raises MissingInput if no model has a `search_index` version, or if a version that one was
    made from is no longer in the store.
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
    """Removes tables of vectors that cannot be used (`refusal`) and returns the reason for each, by table name."""
    tables, removed = workspace.lance, {}
    embedders = [workspace.embedder(name) for name in workspace.registry.embedders]
    for name in tables.names():
        if name.startswith(KINDS) and (error := refusal(tables, name, embedders)) is not None:
            with tables.lock(name):
                tables.drop(name)
            removed[name] = error.found
    return removed


def _pinned(workspace: Workspace, version: Version) -> dict[str, dict[str, Version]]:
    """The versions that a `search_index` was made from, by SAE and stage. Raises MissingInput if one is missing."""
    found: dict[str, dict[str, Version]] = {}
    for pin in version.manifest.inputs:
        stage, partition, model = pin["stage"], pin["partition"], version.manifest.partition
        pinned = workspace.store.version(stage, partition, pin["fingerprint"])
        if pinned is None:
            raise MissingInput(
                f"the search_index of {model} was made from {stage} of {partition}, version {pin['fingerprint']}, "
                "which is no longer in the store",
                expected="every version that it was made from, in the store; the present index was not changed",
                todo=f"materialise it again: `dagster asset materialize --select search_index --partition {model}`; or "
                f"delete {workspace.store.files.path(f'{STAGE}/{model}')} if you no longer need that model",
            )
        found.setdefault(partition, {})[stage] = pinned
    return found
