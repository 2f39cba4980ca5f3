"""Lineage: from a score back to documents and weights, every hop a stored key.

    score <- judgements <- contexts judged <- activations <- tokens <- documents <- source
      ^---- explanation <- contexts shown <-----'   ^---- SAE <- model

What belongs here: the walk over tables; from the SAE and the tokens on it is in `lineage_sources.py`. It starts at the
pointer of the scores and from there follows only what is stored: the versions that manifests pin, the context ids in
the rows, the corpus in `resolved.json`. With `verify`, everything on the way is recomputed (`lineage_checks.py`); a hop
that fails is marked and the walk goes on where it can.
Reads the store, and with `verify` the sources; writes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.errors import InputError, LatentglossError, MissingInput, StoreError
from latentgloss.explanations.explainers import NULL, base_of, block_name, explainer_of
from latentgloss.lineage import checks, score_checks
from latentgloss.lineage.checks import Check
from latentgloss.lineage.nodes import Node
from latentgloss.lineage.sources import Sources
from latentgloss.pipeline.graph import STAGES
from latentgloss.store.digests import frame_sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentgloss.corpus.reader import Corpus
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.store import Version
    from latentgloss.workspace import Workspace


_SAMPLES = {"contexts": schema.CONTEXTS, "negatives": schema.NEGATIVES}
"""What is asked about, by the noun of the stage `sampled_<noun>`."""


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

    `explainer` defaults to the first of the settings that was scored. Raises MissingInput if nothing was scored,
    InputError if there is no such latent or explainer and, unless `verify`, StoreError for the first damaged file;
    with `verify`, damage is a failed check of the hop it is at.
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
        if not verify:  # otherwise the hop itself is going to say so
            raise
    block = _block_of(workspace, version, latent, explainer)
    root = walk.score(version, block, latent, scorer)
    walk.read_sources()
    return root


def check_latent(workspace: Workspace, version: Version, latent: int) -> None:
    """Raises InputError unless the SAE that a version was computed from has this latent."""
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
    number = f"{latent // schema.BLOCK:06d}"
    names = [name for name in version.manifest.blocks if name.startswith(f"{number}-")]
    if not names:
        raise _not_asked_for(version, latent)
    if explainer is not None:
        if block_name(number, explainer) not in names:
            raise InputError(
                f"explainer {explainer!r} was not scored for {version.manifest.partition}",
                expected="one of " + ", ".join(map(explainer_of, names)),
                todo="name one of these, or add it to `explanations.explainers` and materialise",
            )
        return block_name(number, explainer)
    first = [block_name(number, name) for name in workspace.settings.explanations.explainers]
    return next((name for name in first if name in names), names[0])


def _not_asked_for(version: Version, latent: int) -> InputError:
    return InputError(
        f"latent {latent} of {version.manifest.partition} was not asked for",
        expected="a latent that `latents` of the registry entry selects",
        todo="add it there and materialise again",
    )


class _Walk(Sources):
    """One walk over one SAE: from rows to rows, down to where `Sources` goes on."""

    def score(self, version: Version, block: str, latent: int, scorer: str) -> Node:
        """The root: all scores of one explanation by one scorer."""
        explainer = explainer_of(block)
        node = Node("score", f"{self.partition}#{latent} {scorer} of {explainer}", inputs=[self.version(version)])
        scores = _of_latent(self.rows(version, schema.SCORES, block, node), latent)
        if scores is not None and scores.is_empty():
            raise _not_asked_for(version, latent)
        judged = Node("judgements", f"{self.partition}#{latent} {scorer} of {explainer}")
        judgements = _of_latent(self.rows(version, schema.JUDGEMENTS, block, judged), latent)
        of_trials = schema.TRIALS in STAGES[f"{scorer}_scores"].tables  # those judge no explanation
        told = _Told(judged)
        if not of_trials:
            told = self.explanation(lambda into: self.pinned(version, "explanations", into), block, latent)
            node.inputs.append(told.node)
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
        judged.facts = {"rows": judgements.height, **_counts(judgements, "status")}
        if judgements.is_empty():
            return node
        seen = self.evidence(judged, version, latent, judgements.select("split", "context"), "judged")
        if self.verify:
            judged.checks += checks.membership_checks(judgements, seen.contexts, seen.negatives)
            trials = self.trials(judged, version, block, judgements) if of_trials else None
            if scores is not None and trials is not None:
                node.checks += score_checks.accuracy_checks(scores, judgements, trials)
            elif scores is not None and not of_trials:
                nulls = self._nulls(version, block, node)
                mine = None if nulls is None else _of_latent(nulls, latent)
                node.checks += score_checks.score_checks(scores, judgements, mine, seen.strata)
            if seen.corpus is not None:
                vocabulary = self.vocabulary(judged)
                if vocabulary is not None:
                    wrong = None
                    if scorer == "fuzzing" and seen.contexts is not None and seen.masked is not None:
                        seed = version.manifest.recipe["settings"]["fuzzing"]["seed"]
                        wrong = checks.Marked(seen.contexts, seen.masked, seed)
                    judged.checks += checks.evidence_checks(
                        scores, judgements, told.program, vocabulary, seen.corpus, seen.length, wrong
                    )
                if told.seen is not None:
                    judged.checks.append(_disjoint(told.seen, judgements, seen))
        return node

    def _nulls(self, version: Version, block: str, node: Node) -> pl.DataFrame | None:
        """Scores with the nulls of what a block has been explained by; None if there are none."""
        number, explainer = block.partition("-")[0], explainer_of(block)
        found = [
            self.rows(version, schema.SCORES, name, node)
            for name in sorted(version.manifest.blocks)
            if name.startswith(f"{number}-")
            and explainer_of(name).startswith(NULL)
            and not explainer.startswith(NULL)
            and base_of(explainer_of(name)) == explainer
        ]
        there = [frame for frame in found if frame is not None]
        return pl.concat(there) if there else None

    def trials(self, judged: Node, version: Version, block: str, judgements: pl.DataFrame) -> pl.DataFrame | None:
        """Trials of one latent (intruder detection), checked against what was judged and what was sampled."""
        trials = _of_latent(self.rows(version, schema.TRIALS, block, judged), judgements["latent"][0])
        sampled = self.pinned(version, "sampled_contexts", judged)
        if trials is not None:
            blocks = (trials["intruder_latent"].drop_nulls() // schema.BLOCK).unique().sort()
            read = (self.rows(sampled, schema.CONTEXTS, f"{of:06d}", judged) for of in blocks)
            judged.checks += checks.trial_checks(trials, judgements, [rows for rows in read if rows is not None])
        return trials

    def explanation(self, opened: Callable[[Node], Version | None], block: str, latent: int) -> _Told:
        node = Node("explanation", f"{self.partition}#{latent} {explainer_of(block)}")
        version = opened(node)
        row = _of_latent(self.rows(version, schema.EXPLANATIONS, block, node), latent)
        if version is None or row is None or row.is_empty():
            return _Told(node)
        (told,) = row.iter_rows(named=True)
        node.sha256 = frame_sha256(row)
        shown = ("explanation", "status", "reason", "model", "prompt_sha256", "source_latent", "program")
        node.facts = {key: told[key] for key in shown if told[key] not in (None, "")}
        if self.verify and _is_pattern(told) and (vocabulary := self.vocabulary(node)) is not None:
            node.checks.append(checks.round_trip_check(told, vocabulary))
        source = told["source_latent"]
        if source is not None:  # a null: the text of another latent
            own = self.explanation(lambda into: version, _own(block, source), source)
            node.inputs.append(own.node)
            cache = self.pinned(version, "activation_cache", node)
            self.rows(cache, schema.LATENTS, f"{latent // schema.BLOCK:06d}", node)  # whose twin it may not be
            if self.verify:
                node.checks.append(checks.equal("text of the other latent", own.text, told["explanation"]))
            return _Told(node, told["explanation"], told["program"], own.seen)
        node.inputs.append(self.eligibility(version, latent))
        ids = told["context_ids"]
        seen = None
        if ids:
            wanted = pl.DataFrame({"split": "explain", "context": pl.Series(ids, dtype=pl.UInt32)})
            seen = self.evidence(node, version, latent, wanted, "shown")
            if self.verify and seen.contexts is not None and seen.negatives is not None:
                known = {*seen.contexts["context"], *seen.negatives["context"]}
                stray = [i for i in ids if i not in known]
                node.checks.append(checks.none_of("contexts shown are sampled ones of explain", stray, f"{len(ids)}"))
        return _Told(node, told["explanation"], told["program"], seen)

    def eligibility(self, owner: Version, latent: int) -> Node:
        """Why the latent may, or may not, be explained."""
        node = Node("eligibility", f"{self.partition}#{latent}")
        version = self.pinned(owner, "sampled_contexts", node)
        row = _of_latent(self.rows(version, schema.ELIGIBILITY, f"{latent // schema.BLOCK:06d}", node), latent)
        if row is not None and row.height:
            node.sha256 = frame_sha256(row)
            node.facts = {key: value for key, value in row.row(0, named=True).items() if key != "latent"}
        return node

    def evidence(self, into: Node, owner: Version, latent: int, wanted: pl.DataFrame, role: str) -> _Seen:
        """Nodes of the contexts of a latent that `owner` showed or judged, and of what they come from."""
        block = f"{latent // schema.BLOCK:06d}"
        wanted = wanted.unique()
        found: dict[str, pl.DataFrame | None] = dict.fromkeys(_SAMPLES)
        strata: pl.DataFrame | None = None
        opened: list[Version] = []
        read = {pin["stage"] for pin in owner.manifest.inputs}  # not every scorer asks about negatives
        kinds = {k: t for k, t in _SAMPLES.items() if f"sampled_{k}" in read}
        for kind, table in kinds.items():
            node = Node(kind, f"{self.partition}#{latent} {role}")
            into.inputs.append(node)
            version = self.pinned(owner, f"sampled_{kind}", node)
            opened += [version] if version else []
            frame = _of_latent(self.rows(version, table, block, node), latent)
            if table is schema.NEGATIVES:  # what weights them back to their population
                strata = _of_latent(self.rows(version, schema.STRATA_SHARES, block, node), latent)
            if frame is not None:
                frame = frame.join(wanted, on=["split", "context"], how="semi", maintain_order="left")
                node.sha256 = frame_sha256(frame)
                node.facts = {"windows": frame.height, **_counts(frame, "split")}
            found[kind] = frame
        if not opened:
            return _Seen(found["contexts"], found["negatives"], None, 0, None, strata)
        settings = opened[0].manifest.recipe["settings"]
        length = int(settings["contexts"]["length"] if "contexts" in settings else settings["contexts.length"])
        rows = dict(found)
        if (
            found["contexts"] is not None and "negatives" not in kinds
        ):  # other latents' windows, where this one is silent
            others = wanted.join(found["contexts"], on=["split", "context"], how="anti")
            rows["negatives"] = others if others.height else None
        node, corpus, masked = self.activations(opened[0], rows, latent, length, wanted, role)
        for number, context in enumerate(into.inputs[-len(kinds) :]):
            context.inputs.append(node.reference() if number else node)
        return _Seen(found["contexts"], found["negatives"], corpus, length, masked, strata)

    def activations(
        self,
        given: Version,
        found: dict[str, pl.DataFrame | None],
        latent: int,
        length: int,
        wanted: pl.DataFrame,
        role: str,
    ) -> tuple[Node, Corpus | None, pl.Series | None]:
        """The cache's rows of the latent in the windows, the mask, the SAE and the tokens; with corpus and mask."""
        node = Node("activations", f"{self.partition}#{latent} {role}")
        cache = self.pinned(given, "activation_cache", node)
        mask = Node("masked", self.partition)
        shards = [name for name in cache.manifest.blocks if name.startswith("shard-")] if cache else []
        rows = [_of_latent(self.rows(cache, schema.ACTIVATIONS, name, node), latent) for name in shards]
        masked = [self.rows(cache, schema.MASKED, name, mask) for name in shards]
        complete = [frame for frame in rows if frame is not None]
        known = [frame["position"] for frame in masked if frame is not None]
        all_masked = pl.concat(known) if known and len(known) == len(shards) else None
        if complete and len(complete) == len(rows):
            inside = pl.col("position") // length
            mine = pl.concat(complete).filter(inside.is_in(wanted["context"].implode()))
            node.sha256 = frame_sha256(mine)
            node.facts = {"rows": mine.height}
            mask.facts = {"positions": sum(map(len, known))}
            mask.sha256 = frame_sha256(pl.concat(known).to_frame()) if known else ""
            if self.verify:
                node.checks += checks.activation_checks(found["contexts"], found["negatives"], mine, all_masked, length)
        node.inputs.append(self.once(f"masked/{cache.key if cache else ''}", lambda: mask))
        resolved = self.pinned(cache, "resolved_saes", node)
        if resolved is None:
            resolved = self.pinned(given, "resolved_saes", node)
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
        try:
            return self.workspace.vocabulary(self.partition.partition("/")[0])
        except LatentglossError as e:
            into.checks.append(Check("vocabulary of the tokenizer", False, e.found))
            return None


@dataclass(frozen=True)
class _Seen:
    """Contexts that were shown or judged."""

    contexts: pl.DataFrame | None
    negatives: pl.DataFrame | None
    corpus: Corpus | None
    length: int
    masked: pl.Series | None
    """Masked positions of the corpus."""
    strata: pl.DataFrame | None
    """Shares of the strata of non-activating contexts."""


@dataclass(frozen=True)
class _Told:
    """An explanation and what it was made from."""

    node: Node
    text: str = ""
    program: str | None = None
    seen: _Seen | None = None


def _own(block: str, latent: int) -> str:
    """Where the explanation stands that a null of a latent has: its own latent may be of another block."""
    return block_name(f"{latent // schema.BLOCK:06d}", base_of(explainer_of(block)))


def _of_latent(frame: pl.DataFrame | None, latent: int) -> pl.DataFrame | None:
    return None if frame is None else frame.filter(pl.col("latent") == latent)


def _counts(frame: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(frame[column].value_counts().sort(column).iter_rows())


def _disjoint(shown: _Seen, judgements: pl.DataFrame, judged: _Seen) -> Check:
    """No document is both shown and, on the test split, judged."""
    assert judged.corpus is not None
    frames = [f for f in (shown.contexts, shown.negatives) if f is not None]
    given = np.concatenate([f["context"].to_numpy() for f in frames]) if frames else np.empty(0, np.int64)
    test = judgements.filter(pl.col("split") == "test")["context"].unique().to_numpy()
    both = set(checks.touched_documents(given, judged.corpus, judged.length))
    both &= set(checks.touched_documents(test, judged.corpus, judged.length))
    return checks.none_of("no document is both shown and scored", sorted(both), "none")


def _is_pattern(told: dict[str, Any]) -> bool:
    return told["program"] is not None and json.loads(told["program"]).get("kind") == "pattern"


def _labelled(profile: str) -> str:
    return "" if profile == schema.DEFAULT_PROFILE else f" (profile {profile})"
