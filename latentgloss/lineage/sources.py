"""The end of a lineage: the SAE and its model, tokens, documents, and the source that these were read from.

    activations <- SAE <- model
         ^-------- tokens <- documents <- source

What belongs here: hops that hold files instead of rows. With `verify` the files are hashed, and documents are read from
their source and tokenised again. `read_sources` does this last, and reads each source once for all hops that need it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss.errors import LatentglossError
from latentgloss.lineage import context_checks, manifest_checks, source_checks
from latentgloss.lineage.checks import Check
from latentgloss.lineage.nodes import Node, Reader
from latentgloss.store.digests import frame_sha256, json_sha256

if TYPE_CHECKING:
    from latentgloss.corpus.reader import Corpus
    from latentgloss.store import Version
    from latentgloss.workspace import Workspace


class Sources(Reader):
    """The walk over SAE, tokens, documents and source of one SAE."""

    def __init__(self, workspace: Workspace, partition: str, verify: bool) -> None:
        super().__init__(workspace.store, verify)
        self.workspace, self.partition = workspace, partition
        self._corpora: dict[str, tuple[Corpus | None, list[Check], list[Check]]] = {}
        self._pending: dict[str, _PendingSource] = {}

    def sae(self, resolved: Version) -> tuple[Node, dict[str, Any] | None]:
        """The node of the SAE's files, with its model below, and the content of `resolved.json` (None if damaged)."""
        file = manifest_checks.file_check(resolved, "resolved.json") if self.verify else None
        if file is not None and not file.ok:
            return self.once(f"sae/{resolved.key}", lambda: Node("sae", self.partition, checks=[file])), None
        declared: dict[str, Any] = resolved.json("resolved.json")

        def make() -> Node:
            weights, model = declared["weights"], declared["model"]
            name = self.partition.partition("/")[0]
            own = Node("model", name, model["weights_sha256"], dict(model))
            digest = weights if isinstance(weights, str) else json_sha256(weights)
            node = Node("sae", self.partition, digest, {**declared["sae"], "n_latents": declared["n_latents"]}, [own])
            if self.verify and file is not None:
                node.checks = [file, *manifest_checks.resolved_checks(resolved, declared)]
                node.checks.append(source_checks.sae_check(self.workspace, self.partition, weights))
                own.checks.append(source_checks.model_check(self.workspace, name, model))
            return node

        return self.once(f"sae/{resolved.key}", make), declared

    def tokens(
        self, declared: dict[str, Any], resolved: Version, wanted: pl.DataFrame, length: int, role: str
    ) -> tuple[Node, Corpus | None]:
        """The node of the wanted contexts' tokens, with their documents below, and the corpus (None if damaged)."""
        node = Node("tokens", f"{declared['corpus']['partition']} {role}")
        version = self.open(declared["corpus"], node)
        corpus = self.corpus(version, resolved, node)
        if version is None or corpus is None:
            return node, None
        ids = np.sort(wanted["context"].unique().to_numpy())
        tokens = corpus.contexts(ids, length)
        node.sha256 = hashlib.sha256(tokens.tobytes()).hexdigest()
        node.facts = {"windows": len(ids), "tokens": int(tokens.size)}
        if self.verify:
            for (split,), group in wanted.group_by("split"):
                node.checks += context_checks.split_checks(group["context"], str(split), corpus, length)
        node.inputs.append(self.documents(version, corpus, ids, length, role, node))
        return node, corpus

    def corpus(self, version: Version | None, resolved: Version, into: Node) -> Corpus | None:
        """The corpus; with `verify` None if one of its files is damaged. Adds the checks to `into`.

        A damaged `documents.parquet` is reported at a hop of its own.
        """
        if version is None:
            return None
        if not self.verify:
            return self.workspace.corpus(resolved)
        if version.key not in self._corpora:
            files = {name: manifest_checks.file_check(version, name) for name in version.manifest.files}
            sound = all(check.ok for check in files.values())
            parts = [manifest_checks.part_check(version, name) for name in files if files[name].ok]
            of_documents = [files.pop("documents.parquet")] if "documents.parquet" in files else []
            corpus = self.workspace.corpus(resolved) if sound else None
            self._corpora[version.key] = corpus, [*files.values(), *parts], of_documents
        corpus, found, of_documents = self._corpora[version.key]
        into.checks += found
        if any(check.ok is False for check in of_documents):
            into.inputs.append(Node("documents", version.manifest.partition, checks=of_documents))
        return corpus

    def documents(
        self, version: Version, corpus: Corpus, ids: np.ndarray, length: int, role: str, tokens: Node
    ) -> Node:
        """The node of every document that the contexts touch. With `verify`, `read_sources` reads them again.

        `ids`: context numbers. `tokens`: the node of their tokens.
        """
        model = version.manifest.partition
        numbers = context_checks.touched_documents(ids, corpus, length)
        table = corpus.documents.filter(pl.col("document").is_in(numbers)).sort("document").collect()
        stored = version.manifest.recipe["external"]
        node = Node("documents", f"{model} {role}", frame_sha256(table), {"documents": table.height})
        source = self.once(
            f"source/{version.key}",
            lambda: Node(
                "source", str(stored["source"]["kind"]), json_sha256(stored["source"]), dict(stored["source"])
            ),
        )
        node.inputs.append(source)
        rows: dict[int, tuple[dict[str, Any], Node]] = {}
        for row in table.iter_rows(named=True):
            facts = {"document": row["document"], "split": row["split"], "n_tokens": row["n_tokens"]}
            rows[row["document"]] = row, Node("document", row["name"], row["content_sha256"], facts)
        node.inputs += [document for _, document in rows.values()]
        if self.verify:
            pending = self._pending.setdefault(version.key, _PendingSource(model, stored["source"], corpus, source))
            pending.tokens.append((tokens, numbers))
            pending.rows.append(rows)
        return node

    def read_sources(self) -> None:
        """Reads and tokenises the documents again, and adds the checks to their hops. Reads each source once."""
        for pending in self._pending.values():
            try:
                spec = self.workspace.registry.model(pending.model)
            except LatentglossError as e:
                pending.source.checks.append(Check("model in the registry", False, e.found))
                continue
            pending.source.checks.append(source_checks.source_check(spec, pending.identity))
            wanted = {number for _, numbers in pending.tokens for number in numbers}
            texts, why = source_checks.read_again(spec, wanted)
            for rows in pending.rows:
                for number, (row, node) in rows.items():
                    node.checks.append(source_checks.document_check(row, texts.get(number), why))
            for node, numbers in pending.tokens:
                found = {number: texts[number] for number in numbers if number in texts}
                node.checks.append(source_checks.tokens_check(self.workspace, pending.model, pending.corpus, found))


@dataclass
class _PendingSource:
    """Documents to be read again from one corpus's source, and the hops whose checks need them."""

    model: str
    identity: dict[str, Any]
    """The source's identity as stored in the corpus's recipe."""
    corpus: Corpus
    source: Node
    tokens: list[tuple[Node, list[int]]] = field(default_factory=list)
    """Nodes of tokens, each with the numbers of its documents."""
    rows: list[dict[int, tuple[dict[str, Any], Node]]] = field(default_factory=list)
    """By document number: the stored row and the node."""
