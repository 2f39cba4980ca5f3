"""Lineage: from a score back to documents and weights; every step follows a stored key.

    score <- judgements <- contexts judged <- activations <- tokens <- documents <- source
      ^---- explanation <- contexts shown <-----'   ^---- SAE <- model

What belongs here: the walk from a score to judgements, explanation and eligibility. `samples.py` walks on from the
sampled contexts, `sources.py` from the SAE and the tokens. The walk starts at the pointer of the scores and then
follows only what is stored: the versions that manifests pin, the context ids in the rows, the corpus in
`resolved.json`. With `verify` everything on the way is recomputed (the `*_checks.py` modules); a hop that fails is
marked, and the walk continues where it can. Reads the store, and with `verify` the sources; writes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.errors import InputError, MissingInput, StoreError
from latentgloss.explanations.explainers import NULL, base_of, block_name, explainer_of
from latentgloss.lineage import judgement_checks, score_checks
from latentgloss.lineage.checks import Check, equal, none_of
from latentgloss.lineage.context_checks import touched_documents
from latentgloss.lineage.nodes import Node, counts, of_latent
from latentgloss.lineage.samples import Samples, TracedContexts
from latentgloss.lineage.vector_checks import cosine_checks
from latentgloss.pipeline.graph import STAGES
from latentgloss.scores.first_explained import first_explained
from latentgloss.scores.judges.cosine import CENTRE
from latentgloss.store.digests import frame_sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentgloss.store import Version
    from latentgloss.workspace import Workspace


def trace(
    workspace: Workspace,
    partition: str,
    latent: int,
    *,
    scorer: str = "detection",
    explainer: str | None = None,
    verify: bool = False,
) -> Node:
    """The tree from a latent's current scores to everything they come from.

    `explainer` defaults to the first in the settings that was scored. Raises MissingInput if nothing was scored and
    InputError for an unknown latent or explainer. A damaged file raises StoreError; with `verify` it is a failed check
    of its hop instead.
    """
    stage = f"{scorer}_scores"
    walk = _Walk(workspace, partition, verify)
    try:
        version = workspace.store.current(stage, partition)
    except StoreError as e:
        if not verify:
            raise
        return Node("version", f"{stage}/{partition}", checks=[Check("manifest", False, e.found)])
    if version is None:
        raise MissingInput(f"{stage} of {partition} has not been materialised", todo=f"materialise {stage} first")
    try:
        check_latent(workspace, version, latent)
    except StoreError:
        if not verify:  # with `verify` the damage is a failed check of its hop
            raise
    block = _block_of(workspace, version, latent, explainer)
    root = walk.score(version, block, latent, scorer)
    walk.read_sources()
    return root


def check_latent(workspace: Workspace, version: Version, latent: int) -> None:
    """Raises InputError if the SAE that a version was computed from has no such latent."""
    pin = next((p for p in version.manifest.inputs if p["stage"] == "resolved_saes"), None)
    resolved = workspace.store.version(pin["stage"], pin["partition"], pin["fingerprint"]) if pin else None
    if resolved is None:
        return
    n = resolved.json("resolved.json")["n_latents"]
    if not 0 <= latent < n:
        raise InputError(
            f"latent {latent} is out of range for {version.manifest.partition}",
            expected=f"0 to {n - 1}, since the SAE has {n} latents",
            todo="correct the latent's number",
        )


def _block_of(workspace: Workspace, version: Version, latent: int, explainer: str | None) -> str:
    """The block with the scores of a latent and explainer. Raises InputError if there is none."""
    number = f"{latent // schema.BLOCK:06d}"
    names = [name for name in version.manifest.blocks if name.startswith(f"{number}-")]
    if not names:
        raise _not_selected(version, latent)
    if explainer is not None:
        if block_name(number, explainer) not in names:
            raise InputError(
                f"explainer {explainer!r} was not scored for {version.manifest.partition}",
                expected="one of " + ", ".join(map(explainer_of, names)),
                todo="name one of these, or add the explainer to `explanations.explainers` and materialise",
            )
        return block_name(number, explainer)
    preferred = [block_name(number, name) for name in workspace.settings.explanations.explainers]
    return next((name for name in preferred if name in names), names[0])


def _not_selected(version: Version, latent: int) -> InputError:
    return InputError(
        f"latent {latent} of {version.manifest.partition} was not selected",
        expected="a latent that `latents` of the registry entry selects",
        todo="add it there and materialise again",
    )


@dataclass(frozen=True)
class TracedExplanation:
    """The node of an explanation, with what later checks need of it."""

    node: Node
    text: str = ""
    program: str | None = None
    contexts: TracedContexts | None = None
    """The contexts that the explainer was shown."""


class _Walk(Samples):
    """One walk over one SAE, from its scores down."""

    def score(self, version: Version, block: str, latent: int, scorer: str) -> Node:
        """The root: all scores of one explanation by one scorer. Raises InputError if the latent was not selected."""
        node_id = f"{self.partition}#{latent} {scorer} of {explainer_of(block)}"
        node, judged = Node("score", node_id, inputs=[self.version(version)]), Node("judgements", node_id)
        scores = of_latent(self.rows(version, schema.SCORES, block, node), latent)
        if scores is not None and scores.is_empty():
            raise _not_selected(version, latent)
        judgements = of_latent(self.rows(version, schema.JUDGEMENTS, block, judged), latent)
        explanation = None
        if not _has_trials(scorer):  # trials judge the latent itself
            explanation = self.explanation(lambda into: self.pinned(version, "explanations", into), block, latent)
            node.inputs.append(explanation.node)
        node.inputs.append(judged)
        if scores is not None:
            node.sha256 = frame_sha256(scores)
            node.facts |= {
                f"{r['judge']} on {r['negatives']}{_labelled(r['profile'])}": score_checks.in_words(r)
                for r in scores.iter_rows(named=True)
            }
            node.facts["rows"] = [score_checks.filled(row) for row in scores.iter_rows(named=True)]
        if judgements is None:
            return node
        judged.sha256 = frame_sha256(judgements)
        judged.facts = {"rows": judgements.height, **counts(judgements, "status")}
        if judgements.is_empty():
            return node
        contexts = self.contexts(judged, version, latent, judgements.select("split", "context"), "judged")
        if self.verify:
            judged.checks += judgement_checks.membership_checks(judgements, contexts.activating, contexts.negatives)
            if explanation is None:
                self._check_trials(node, judged, version, block, scores, judgements)
            elif scores is not None:
                nulls = of_latent(self._nulls(version, block, node), latent)
                node.checks += score_checks.score_checks(scores, judgements, nulls, contexts.strata)
            if contexts.corpus is not None:
                self._check_judgements(judged, version, block, scorer, scores, judgements, explanation, contexts)
        return node

    def _check_trials(
        self,
        node: Node,
        judged: Node,
        version: Version,
        block: str,
        scores: pl.DataFrame | None,
        judgements: pl.DataFrame,
    ) -> None:
        """Checks the trials of one latent against its judgements and the sampled contexts, and its scores."""
        trials = of_latent(self.rows(version, schema.TRIALS, block, judged), judgements["latent"][0])
        sampled = self.pinned(version, "sampled_contexts", judged)
        if trials is None:
            return
        blocks = (trials["intruder_latent"].drop_nulls() // schema.BLOCK).unique().sort()
        read = (self.rows(sampled, schema.CONTEXTS, f"{number:06d}", judged) for number in blocks)
        contexts = [rows for rows in read if rows is not None]
        judged.checks += judgement_checks.trial_checks(trials, judgements, contexts)
        if scores is not None:
            node.checks += score_checks.accuracy_checks(scores, judgements, trials)

    def _check_judgements(
        self,
        judged: Node,
        version: Version,
        block: str,
        scorer: str,
        scores: pl.DataFrame | None,
        judgements: pl.DataFrame,
        explanation: TracedExplanation | None,
        contexts: TracedContexts,
    ) -> None:
        """Checks that executing the program again gives the stored evidence, and that no document shown is judged."""
        assert contexts.corpus is not None
        vocabulary = self.vocabulary(judged)
        if vocabulary is not None:
            marks = None
            if scorer == "fuzzing" and contexts.activating is not None and contexts.masked is not None:
                seed = version.manifest.recipe["settings"]["fuzzing"]["seed"]
                marks = judgement_checks.FuzzingMarks(contexts.activating, contexts.masked, seed)
            judged.checks += judgement_checks.execution_checks(
                scores,
                judgements,
                explanation.program if explanation is not None else None,
                vocabulary,
                contexts.corpus,
                contexts.length,
                marks,
            )
        if explanation is not None:
            model = self.partition.partition("/")[0]
            ready = version.manifest.blocks[block].facts.get("ready", {})
            centre = partial(self._centre, version, explainer_of(block))
            judged.checks += cosine_checks(
                self.workspace, model, judgements, explanation.text, contexts.corpus, centre, ready
            )
        if explanation is not None and explanation.contexts is not None:
            judged.checks.append(_disjoint(explanation.contexts, judgements, contexts))

    def _centre(self, version: Version, explainer: str) -> list[str]:
        """The explanations by whose mean the embedding scores of an explainer or its nulls were centred."""
        into = Node("explanations", self.partition)  # found as sources of the explanation already
        explanations, resolved = (self.pinned(version, stage, into) for stage in ("explanations", "resolved_saes"))
        if explanations is None or resolved is None:
            return []
        sae = self.workspace.registry.sae(self.partition)
        first = first_explained(explanations, base_of(explainer), sae, resolved, CENTRE)
        return first["explanation"].to_list()

    def _nulls(self, version: Version, block: str, node: Node) -> pl.DataFrame | None:
        """Scores of the null explanations that belong to the block's explainer; None if there are none."""
        number, explainer = block.partition("-")[0], explainer_of(block)
        found = [
            self.rows(version, schema.SCORES, name, node)
            for name in sorted(version.manifest.blocks)
            if name.startswith(f"{number}-")
            and explainer_of(name).startswith(NULL)
            and not explainer.startswith(NULL)
            and base_of(explainer_of(name)) == explainer
        ]
        frames = [frame for frame in found if frame is not None]
        return pl.concat(frames) if frames else None

    def explanation(self, opened: Callable[[Node], Version | None], block: str, latent: int) -> TracedExplanation:
        """The explanation of a latent, its eligibility and the contexts shown; for a null, its source latent's.

        `opened`: given the explanation's node, opens the version of `explanations`.
        """
        node = Node("explanation", f"{self.partition}#{latent} {explainer_of(block)}")
        version = opened(node)
        frame = of_latent(self.rows(version, schema.EXPLANATIONS, block, node), latent)
        if version is None or frame is None or frame.is_empty():
            return TracedExplanation(node)
        (row,) = frame.iter_rows(named=True)
        node.sha256 = frame_sha256(frame)
        listed = ("explanation", "status", "reason", "model", "prompt_sha256", "source_latent", "program")
        node.facts = {key: row[key] for key in listed if row[key] not in (None, "")}
        if self.verify and _is_pattern(row) and (vocabulary := self.vocabulary(node)) is not None:
            node.checks.append(judgement_checks.round_trip_check(row, vocabulary))
        source = row["source_latent"]
        if source is not None:  # a null explanation: the text of another latent
            own = self.explanation(lambda into: version, _own_block(block, source), source)
            node.inputs.append(own.node)
            cache = self.pinned(version, "activation_cache", node)
            # The table that says which latents are its twins, which may not be its partners.
            self.rows(cache, schema.LATENTS, f"{latent // schema.BLOCK:06d}", node)
            if self.verify:
                node.checks.append(equal("text of the other latent", own.text, row["explanation"]))
            return TracedExplanation(node, row["explanation"], row["program"], own.contexts)
        node.inputs.append(self.eligibility(version, latent))
        ids = row["context_ids"]
        contexts = None
        if ids:
            wanted = pl.DataFrame({"split": "explain", "context": pl.Series(ids, dtype=pl.UInt32)})
            contexts = self.contexts(node, version, latent, wanted, "shown")
            if self.verify and contexts.activating is not None and contexts.negatives is not None:
                known = {*contexts.activating["context"], *contexts.negatives["context"]}
                stray = [i for i in ids if i not in known]
                node.checks.append(none_of("contexts shown are sampled ones of explain", stray, f"{len(ids)}"))
        return TracedExplanation(node, row["explanation"], row["program"], contexts)

    def eligibility(self, owner: Version, latent: int) -> Node:
        """The row that says whether the latent may be explained, and why not."""
        node = Node("eligibility", f"{self.partition}#{latent}")
        version = self.pinned(owner, "sampled_contexts", node)
        row = of_latent(self.rows(version, schema.ELIGIBILITY, f"{latent // schema.BLOCK:06d}", node), latent)
        if row is not None and row.height:
            node.sha256 = frame_sha256(row)
            node.facts = {key: value for key, value in row.row(0, named=True).items() if key != "latent"}
        return node


def _has_trials(scorer: str) -> bool:
    return schema.TRIALS in STAGES[f"{scorer}_scores"].tables


def _own_block(block: str, latent: int) -> str:
    """The block that holds the explanation behind a null of `block`: its latent may be of another block."""
    return block_name(f"{latent // schema.BLOCK:06d}", base_of(explainer_of(block)))


def _disjoint(shown: TracedContexts, judgements: pl.DataFrame, judged: TracedContexts) -> Check:
    """Checks that no document is both shown to the explainer and judged on the test split."""
    assert judged.corpus is not None
    frames = [f for f in (shown.activating, shown.negatives) if f is not None]
    given = np.concatenate([f["context"].to_numpy() for f in frames]) if frames else np.empty(0, np.int64)
    test = judgements.filter(pl.col("split") == "test")["context"].unique().to_numpy()
    both = set(touched_documents(given, judged.corpus, judged.length))
    both &= set(touched_documents(test, judged.corpus, judged.length))
    return none_of("no document is both shown and scored", sorted(both), "none")


def _is_pattern(row: dict[str, Any]) -> bool:
    return row["program"] is not None and json.loads(row["program"]).get("kind") == "pattern"


def _labelled(profile: str) -> str:
    return "" if profile == schema.DEFAULT_PROFILE else f" (profile {profile})"
