"""The hops from sampled contexts to the activations, mask, SAE and tokens behind them.

    contexts ---+
                +--> activations --> masked, SAE, tokens
    negatives --+

What belongs here: contexts that were shown to an explainer or judged, and the activation cache's rows in them.
`sources.py` walks on from the SAE and the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from latentgloss import schema
from latentgloss.errors import LatentglossError
from latentgloss.lineage.checks import Check
from latentgloss.lineage.context_checks import activation_checks
from latentgloss.lineage.nodes import Node, counts, of_latent
from latentgloss.lineage.sources import Sources
from latentgloss.store.digests import frame_sha256

if TYPE_CHECKING:
    from latentgloss.corpus.reader import Corpus
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.store import Version


_SAMPLES = {"contexts": schema.CONTEXTS, "negatives": schema.NEGATIVES}
"""Tables of sampled contexts, by the ending of the stage `sampled_<ending>`."""


@dataclass(frozen=True)
class TracedContexts:
    """Contexts of one latent that were shown or judged, and what they come from. None: not read, or damaged."""

    activating: pl.DataFrame | None
    """Rows of `schema.CONTEXTS`."""
    negatives: pl.DataFrame | None
    """Rows of `schema.NEGATIVES`."""
    corpus: Corpus | None
    length: int
    """Tokens per context."""
    masked: pl.Series | None
    """Masked positions of the whole corpus."""
    strata: pl.DataFrame | None
    """Shares of the strata of non-activating contexts (`schema.STRATA_SHARES`)."""


class Samples(Sources):
    """The walk from the sampled contexts of one SAE's latents on."""

    def contexts(self, into: Node, owner: Version, latent: int, wanted: pl.DataFrame, role: str) -> TracedContexts:
        """Adds nodes for the `wanted` contexts of a latent (split, context), and for what they come from, to `into`.

        `owner`: the version that showed or judged them. `role`: `shown` or `judged`.
        """
        wanted = wanted.unique()
        frames: dict[str, pl.DataFrame | None] = dict.fromkeys(_SAMPLES)
        strata: pl.DataFrame | None = None
        opened: list[Version] = []
        read = {pin["stage"] for pin in owner.manifest.inputs}  # some scorers read no negatives
        kinds = [kind for kind in _SAMPLES if f"sampled_{kind}" in read]
        for kind in kinds:
            node = Node(kind, f"{self.partition}#{latent} {role}")
            into.inputs.append(node)
            version = self.pinned(owner, f"sampled_{kind}", node)
            opened += [version] if version else []
            frames[kind], shares = self._sample(version, kind, latent, wanted, node)
            strata = shares if kind == "negatives" else strata
        activating, negatives = frames["contexts"], frames["negatives"]
        if not opened:
            return TracedContexts(activating, negatives, None, 0, None, strata)
        settings = opened[0].manifest.recipe["settings"]
        length = int(settings["contexts"]["length"] if "contexts" in settings else settings["contexts.length"])
        silent = negatives
        if activating is not None and "negatives" not in kinds:  # wanted contexts that are another latent's
            others = wanted.join(activating, on=["split", "context"], how="anti")
            silent = others if others.height else None
        node, corpus, masked = self.activations(opened[0], (activating, silent), latent, length, wanted, role)
        for number, sample in enumerate(into.inputs[-len(kinds) :]):
            sample.inputs.append(node.reference() if number else node)
        return TracedContexts(activating, negatives, corpus, length, masked, strata)

    def _sample(
        self, version: Version | None, kind: str, latent: int, wanted: pl.DataFrame, node: Node
    ) -> tuple[pl.DataFrame | None, pl.DataFrame | None]:
        """The wanted rows of one kind of sampled contexts; for negatives also the strata's shares."""
        block = f"{latent // schema.BLOCK:06d}"
        frame = of_latent(self.rows(version, _SAMPLES[kind], block, node), latent)
        shares = None
        if kind == "negatives":
            shares = of_latent(self.rows(version, schema.STRATA_SHARES, block, node), latent)
        if frame is not None:
            frame = frame.join(wanted, on=["split", "context"], how="semi", maintain_order="left")
            node.sha256 = frame_sha256(frame)
            node.facts = {"windows": frame.height, **counts(frame, "split")}
        return frame, shares

    def activations(
        self,
        sample: Version,
        frames: tuple[pl.DataFrame | None, pl.DataFrame | None],
        latent: int,
        length: int,
        wanted: pl.DataFrame,
        role: str,
    ) -> tuple[Node, Corpus | None, pl.Series | None]:
        """The node of the cache's rows of the latent in the wanted contexts, the corpus, and the masked positions.

        `sample`: the version that pins the cache. `frames`: contexts in which the latent is active, and in which it is
        silent. Below the node are the mask, the SAE and the tokens.
        """
        node = Node("activations", f"{self.partition}#{latent} {role}")
        cache = self.pinned(sample, "activation_cache", node)
        mask = Node("masked", self.partition)
        shards = [name for name in cache.manifest.blocks if name.startswith("shard-")] if cache else []
        rows = [of_latent(self.rows(cache, schema.ACTIVATIONS, name, node), latent) for name in shards]
        masked = [self.rows(cache, schema.MASKED, name, mask) for name in shards]
        complete = [frame for frame in rows if frame is not None]
        known = [frame["position"] for frame in masked if frame is not None]
        all_masked = pl.concat(known) if known and len(known) == len(shards) else None
        if complete and len(complete) == len(rows):
            inside = pl.col("position") // length
            own = pl.concat(complete).filter(inside.is_in(wanted["context"].implode()))
            node.sha256 = frame_sha256(own)
            node.facts = {"rows": own.height}
            mask.facts = {"positions": sum(map(len, known))}
            mask.sha256 = frame_sha256(pl.concat(known).to_frame()) if known else ""
            if self.verify:
                node.checks += activation_checks(*frames, own, all_masked, length)
        node.inputs.append(self.once(f"masked/{cache.key if cache else ''}", lambda: mask))
        resolved = self.pinned(cache, "resolved_saes", node)
        if resolved is None:
            resolved = self.pinned(sample, "resolved_saes", node)
        if resolved is None:
            return node, None, all_masked
        sae, declared = self.sae(resolved)
        node.inputs.append(sae)
        if declared is None:
            return node, None, all_masked
        tokens, corpus = self.tokens(declared, resolved, wanted, length, role)
        node.inputs.append(tokens)
        return node, corpus, all_masked

    def vocabulary(self, into: Node) -> Vocabulary | None:
        """The vocabulary of the model's tokenizer; if it cannot be loaded, None and a failed check of `into`."""
        try:
            return self.workspace.vocabulary(self.partition.partition("/")[0])
        except LatentglossError as e:
            into.checks.append(Check("vocabulary of the tokenizer", False, e.found))
            return None
