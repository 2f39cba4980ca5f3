"""A workspace: one settings file, its registry and its store; and what follows from the three.

What belongs here: recipes (what decides the content of a stage for a partition), states (fresh, stale, missing,
failed), and running a stage over partitions so that one failure never stops the others. What a stage computes is
in the module of its noun; it is handed to `materialise`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from latentgloss import settings as settings_module
from latentgloss.errors import MissingInput, StoreError
from latentgloss.files import LocalFiles
from latentgloss.hashing import DigestCache
from latentgloss.recipes import ATTEMPT, UNANSWERED, Recipe, asked_again, differences
from latentgloss.registry import Registry, SaeSpec
from latentgloss.stages import NEIGHBOUR_VERSION, STAGES, Stage
from latentgloss.store import Store, Version
from latentgloss.work import Outcome, Runner, Work, as_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from jaxtyping import UInt32

    from latentgloss.corpus import Corpus
    from latentgloss.embedder import SentenceEmbedder
    from latentgloss.explainers.base import JudgeThatReads, Tools
    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.lance import LanceTables
    from latentgloss.llm.ledger import Ledger
    from latentgloss.llm.reply_cache import ReplyCache
    from latentgloss.protocols import LanguageModel, Vectors
    from latentgloss.saes.coder import SparseCoder
    from latentgloss.settings import Settings
    from latentgloss.subject import Subject
    from latentgloss.vectors import ContextVectors, Progress, TextVectors


@dataclass(frozen=True)
class State:
    """Where one partition of one stage stands."""

    asset: str
    partition: str
    state: Literal["fresh", "stale", "missing", "failed"]
    because: str


class Workspace:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(LocalFiles(settings.store_root))
        self._loading = threading.RLock()
        """Stages may run side by side (`ahead.abreast`): what they share is loaded once."""
        self._subjects: dict[str, Subject] = {}
        self._vocabularies: dict[str, Vocabulary] = {}
        self._embedders: dict[str, SentenceEmbedder] = {}
        self._language_models: dict[str, LanguageModel] = {}

    @classmethod
    def open(cls, path: Path | None = None) -> Workspace:
        """From a settings file, by default the one `settings.find` finds. Raises SettingsError."""
        return cls(settings_module.load(path))

    @cached_property
    def registry(self) -> Registry:
        return Registry.open(self.settings.registry_root)

    @cached_property
    def digests(self) -> DigestCache:
        return DigestCache(self.model_cache / "digests.json")

    @property
    def model_cache(self) -> Path:
        return self.settings.folder / self.settings.machine.model_cache.expanduser()

    # -- what stages read that is not in the store ---------------------------------------------------------

    def subject(self, model: str) -> Subject:
        """The subject model, loaded once per process. Raises SubjectError."""
        with self._loading:
            if model not in self._subjects:
                from latentgloss.subject import load_subject

                if self.settings.machine.threads is not None:
                    import torch

                    torch.set_num_threads(self.settings.machine.threads)
                self._subjects.clear()  # one at a time: two models rarely fit one device
                self._subjects[model] = load_subject(
                    self.registry.model(model), self.model_cache, device=self.settings.machine.device
                )
            return self._subjects[model]

    def vocabulary(self, model: str) -> Vocabulary:
        """What each token id reads as, by the model's tokenizer. Raises SubjectError."""
        with self._loading:
            if model not in self._vocabularies:
                from latentgloss.explainers.windows import Vocabulary
                from latentgloss.subject_files import load_tokenizer, token_bytes

                tokenizer = load_tokenizer(self.registry.model(model), self.model_cache)
                strings = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
                self._vocabularies[model] = Vocabulary(
                    strings, token_bytes(tokenizer, strings), tokenizer.all_special_ids
                )
            return self._vocabularies[model]

    def tools(self, partition: str) -> Tools:
        """What explainers of a SAE's latents may use."""
        from latentgloss.explainers.base import Tools
        from latentgloss.scorers import language_judge

        model = self.registry.sae(partition).model

        def judge(name: str) -> JudgeThatReads:
            return language_judge(self, name, "detection", model, self.settings.detection.llm)

        return Tools(partition, self.settings.folder, self.language_model, judge)

    def embedder(self, name: str) -> SentenceEmbedder:
        """An embedder of the registry, loaded when it first embeds. Raises InputError if there is none of that name."""
        with self._loading:
            if name not in self._embedders:
                from latentgloss.embedder import SentenceEmbedder

                spec, machine = self.registry.embedder(name), self.settings.machine
                self._embedders[name] = SentenceEmbedder(
                    spec, self.model_cache, device=machine.device, threads=machine.threads
                )
            return self._embedders[name]

    def language_model(self, name: str) -> LanguageModel:
        """A language model of the registry, started when it is first asked what the cache
        does not know. Raises InputError, RegistryError; LanguageModelError if its files are not here."""
        with self._loading:
            if name not in self._language_models:
                from latentgloss.llm.models import open_model

                spec = self.registry.language_model(name)
                self._language_models[name] = open_model(
                    spec, self.replies, self.ledger, self.model_cache, self.settings.machine
                )
            return self._language_models[name]

    @cached_property
    def replies(self) -> ReplyCache:
        """Replies of all language models, kept beside the versions of the store."""
        from latentgloss.llm.database import Database
        from latentgloss.llm.reply_cache import ReplyCache

        return ReplyCache(Database(self.settings.store_root))

    @cached_property
    def ledger(self) -> Ledger:
        """What language models have cost, and the budget."""
        from latentgloss.llm.ledger import Ledger

        budget = self.settings.budget
        return Ledger(self.replies.database, tokens=budget.tokens, usd=budget.usd)

    @cached_property
    def lance(self) -> LanceTables:
        """Tables of vectors beside the versions of the store."""
        from latentgloss.lance import FOLDER, LanceTables

        return LanceTables(self.settings.store_root / FOLDER)

    def context_vectors(
        self, model: str, corpus: Corpus, embedder: str, progress: Progress | None = None
    ) -> ContextVectors:
        """Vectors of the contexts of a model's corpus, of `contexts.length` tokens each; made when asked for."""
        from latentgloss.subject_files import load_tokenizer, tokenizer_identity
        from latentgloss.vectors import ContextVectors

        spec = self.registry.model(model)
        tokenizer: list[Any] = []

        def decode(tokens: UInt32[np.ndarray, "n length"]) -> list[str]:
            if not tokenizer:
                tokenizer.append(load_tokenizer(spec, self.model_cache))
            options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
            texts: list[str] = tokenizer[0].batch_decode(tokens.tolist(), **options)
            return texts

        return ContextVectors(
            self.lance, self.embedder(embedder), corpus, self.settings.contexts.length, decode,
            tokenizer_identity(spec, self.model_cache), batch=self.settings.machine.embedding_batch, progress=progress,
        )  # fmt: skip

    def text_vectors(
        self, embedder: str, role: Literal["query", "document"], progress: Progress | None = None
    ) -> TextVectors:
        """Vectors of texts (explanations), as what is searched for or what is searched in; made when asked for."""
        from latentgloss.vectors import TextVectors

        spec = self.registry.embedder(embedder)
        prefix = spec.query_prefix if role == "query" else spec.document_prefix
        batch = self.settings.machine.embedding_batch
        return TextVectors(self.lance, self.embedder(embedder), role, prefix, batch=batch, progress=progress)

    def sae(self, spec: SaeSpec) -> SparseCoder:
        """The SAE's weights. Raises SaeError."""
        from latentgloss.saes import open_sae

        return open_sae(spec)

    def negatives_embedder(self) -> dict[str, Any]:
        """Name and identity of the embedder that says which negatives are `similar`. Raises InputError, EmbedderError.

        Other than the scorers', if there is another: what is hard for an embedder must not be chosen by itself. If
        there is none, the first of the scorers' own, which is not asked about them (`detection.plan_of_vectors`).
        """
        scorers = self.settings.embedding.embedders
        others = sorted(set(self.registry.embedders) - set(scorers))
        name = self.settings.negatives.embedder or (others or scorers)[0]
        return {"name": name, "identity": self.embedder(name).identity()}

    def _harder_negatives(self) -> dict[str, Any]:
        """What decides the strata that are not always asked for: in the recipe only where they are."""
        strata = self.settings.negatives.strata
        found: dict[str, Any] = {"embedder": self.negatives_embedder()} if "similar" in strata else {}
        return found | ({"neighbour_version": NEIGHBOUR_VERSION} if "neighbour" in strata else {})

    def negative_vectors(self, resolved: Version) -> Vectors:
        """Its vectors of the contexts of the corpus that `resolved` pins."""
        model = self.registry.sae(resolved.manifest.partition).model
        return self.context_vectors(model, self.corpus(resolved), self.negatives_embedder()["name"])

    def check_resolved(self, resolved: Version) -> None:
        """Raises MissingInput if weights, model or mask are no longer those that `resolved` was made from.

        What is computed is stored under hashes taken earlier: it must not be computed from something else.
        """
        partition = resolved.manifest.partition
        now = self._external(STAGES["resolved_saes"], partition)
        now.pop("latents")  # which of them are explained is `windows.selected_latents`' to say
        changed = differences({key: resolved.json("resolved.json")[key] for key in now}, now)
        if changed:
            raise MissingInput(
                f"{partition} changed since resolved_saes was materialised ({'; '.join(changed)})",
                expected="resolved_saes as things are now",
                todo="materialise resolved_saes, then this stage",
            )

    def corpus(self, resolved: Version) -> Corpus:
        """The corpus that a `resolved_saes` version pins."""
        pin = resolved.json("resolved.json")["corpus"]
        version = self.store.version(pin["stage"], pin["partition"], pin["fingerprint"])
        if version is None:
            raise MissingInput(
                f"corpus {pin['fingerprint']} of {pin['partition']} is gone from the store",
                expected="the version that resolved_saes pins",
                todo="materialise tokenized_corpus and resolved_saes again",
            )
        return self.corpus_of(version)

    def corpus_of(self, version: Version) -> Corpus:
        """The corpus of a `tokenized_corpus` version. Raises StoreError if a file of it is damaged."""
        from latentgloss.corpus import Corpus

        for name in version.manifest.files:
            version.path(name)
        return Corpus.open(self.store.files.path(version.key))

    # -- recipes ---------------------------------------------------------------------------------------------

    def partitions(self, stage: Stage) -> list[str]:
        """Every partition the registry declares for a stage."""
        return sorted(self.registry.models if stage.grain == "model" else self.registry.saes)

    def recipe(self, stage: Stage, partition: str) -> Recipe:
        """Everything that decides the content, from what is current now.

        Raises MissingInput if an input has no version, InputError if the partition is not in the registry, and
        whatever reading a declared file raises.
        """
        inputs: dict[str, dict[str, Version]] = {}
        contents: dict[str, Any] = {}
        settings = stage.settings_used(self.settings)
        for upstream in stage.inputs:
            if not upstream.used(settings):
                continue
            try:
                versions = self._inputs(stage, STAGES[upstream.stage], partition)
            except MissingInput:
                if upstream.optional:
                    continue
                raise
            inputs[upstream.stage] = versions
            parts = upstream.parts_used(settings)
            hashes = {key: version.content(parts) for key, version in versions.items()}
            contents[upstream.stage] = hashes[partition] if list(hashes) == [partition] else hashes
        optional = [i.stage for i in stage.inputs if i.optional]
        # A scorer without judges makes a version that holds nothing.
        if optional and not any(v.manifest.parts for name in optional for v in inputs.get(name, {}).values()):
            raise MissingInput(
                f"none of {', '.join(optional)} of {partition} has been materialised, or holds anything",
                expected=f"one of them before {stage.name}",
                todo=f"materialise {optional[0]} first",
            )
        content = {
            "stage": stage.name,
            "version": stage.version,
            "settings": settings,
            "inputs": contents,
            "external": self._external(stage, partition),
        }
        try:
            current = self.store.current(stage.name, partition) if self.settings.asks(stage.name) else None
        except StoreError:  # damaged: it is made anew
            current = None
        return Recipe(asked_again(content, current), inputs)

    def _inputs(self, stage: Stage, upstream: Stage, partition: str) -> dict[str, Version]:
        if stage.grain == upstream.grain:
            wanted = [partition]
        elif upstream.grain == "model":
            wanted = [self.registry.sae(partition).model]
        else:
            wanted = [sae.partition for sae in self.registry.saes_of(partition)]
        found = {key: self.store.current(upstream.name, key) for key in wanted}
        complete = {key: version for key, version in found.items() if version is not None}
        if not complete or (len(wanted) == 1 and None in found.values()):
            raise MissingInput(
                f"{upstream.name} of {', '.join(wanted) or partition} has not been materialised",
                expected=f"it before {stage.name}",
                todo=f"materialise {upstream.name} first",
            )
        return complete

    def _external(self, stage: Stage, partition: str) -> dict[str, Any]:
        """What a stage depends on outside the store: files, and explainers and judges as they are here."""
        if stage.name == "tokenized_corpus":
            from latentgloss.corpus_sources import source_identity
            from latentgloss.subject_files import tokenizer_identity

            model = self.registry.model(partition)
            return {
                "corpus": model.corpus.model_dump(mode="json", exclude={"source"}),  # its identity is beside it
                "source": source_identity(model.corpus.source, model.folder, self.digests),
                "tokenizer": tokenizer_identity(model, self.model_cache),
            }
        if stage.name == "resolved_saes":
            from latentgloss.saes import sae_digest
            from latentgloss.subject_files import model_identity

            sae = self.registry.sae(partition)
            model = self.registry.model(sae.model)
            return {
                "sae": sae.declared(),
                "weights": sae_digest(sae, self.digests.sha256),
                "model": model_identity(model, self.model_cache),
                "mask": model.mask.model_dump(mode="json"),
                "latents": sae.model_dump(mode="json", include={"latents"})["latents"],
            }
        if stage.name == "sampled_negatives":
            return self._harder_negatives()
        if stage.name == "explanations":
            from latentgloss.explainers import identities as explainer_identities

            return {"explainers": explainer_identities(self.settings.explanations, self.tools(partition))}
        if stage.noun == "scores":
            from latentgloss.scorers import identities as judge_identities

            return {"judges": judge_identities(self, stage.name.removesuffix("_scores"))}
        if stage.name in ("context_embeddings", "explanation_embeddings"):
            return {"embedders": {e: self.embedder(e).identity() for e in self.settings.embedding.embedders}}
        if stage.name == "search_index":
            return {"embedder": self.embedder(self.settings.search.embedder).identity()}
        if stage.name == "score_report":
            return {"control": {sae.partition: sae.control for sae in self.registry.saes_of(partition)}}
        return {}

    # -- states ----------------------------------------------------------------------------------------------

    def states(self, partitions: Iterable[str] | None = None) -> list[State]:
        """State of every stage for every declared partition (or those named), in stage order."""
        chosen = set(partitions) if partitions is not None else None
        known: dict[tuple[str, str], State] = {}
        for stage in STAGES.values():
            for partition in self.partitions(stage):
                known[stage.name, partition] = self._state(stage, partition, known)
        return [s for (_, partition), s in known.items() if chosen is None or partition in chosen]

    def _state(self, stage: Stage, partition: str, known: dict[tuple[str, str], State]) -> State:
        def state(name: Literal["fresh", "stale", "missing", "failed"], because: str = "") -> State:
            return State(stage.name, partition, name, because)

        try:
            current = self.store.current(stage.name, partition)
            failure = self.store.failure(stage.name, partition)
            recipe = self.recipe(stage, partition)
        except MissingInput as e:
            return state("missing", e.found)
        except Exception as e:
            return state("failed", str(as_error(e)))
        if failure and failure["fingerprint"] == recipe.fingerprint:
            return state("failed", failure["message"])
        if current is None:
            return state("missing", "never materialised")
        changes = differences(current.manifest.recipe, recipe.content)
        if changes and ATTEMPT in recipe.content:
            return state("stale", f"{current.manifest.facts[UNANSWERED]:,} without a reply of the language model")
        if changes:
            return state("stale", "; ".join(changes))
        for upstream, versions in recipe.inputs.items():
            for key in versions:
                above = known.get((upstream, key))
                if above and above.state != "fresh":
                    return state("stale", f"input {upstream} of {key} is {above.state}")
        return state("fresh")

    # -- running ---------------------------------------------------------------------------------------------

    def materialise(
        self,
        stage_name: str,
        partitions: Sequence[str],
        run: Runner,
        *,
        run_id: str = "",
        progress: Callable[[str], Callable[[int, int | None, str], None]] | None = None,
    ) -> Iterator[Outcome]:
        """Brings partitions of a stage up to date, yielding each as soon as it is finished.

        `run` gets the works that are stale and yields each when done, with `work.error` set if it failed (see
        `one_by_one`). What is fresh computes nothing. No exception of one partition stops another.
        """
        stage = STAGES[stage_name]
        works: list[Work] = []
        together = run_id or object()
        # Sorted: two runs that take several locks take them in the same order.
        for partition in sorted(set(partitions)):
            began = time.monotonic()
            try:
                recipe = self.recipe(stage, partition)
                version = self.store.version(stage.name, partition, recipe.fingerprint)
                if version is not None:
                    self.store.adopt(version)
                    yield Outcome(stage.name, partition, "reused", version, seconds=time.monotonic() - began,
                                  blocks_reused=len(version.manifest.blocks), facts=version.manifest.facts)  # fmt: skip
                    continue
                works.append(Work(self, stage, partition, recipe, run=together, progress=progress))
            except Exception as e:  # an unreadable file of one partition must not stop the others
                error = as_error(e)
                self.store.fail(stage.name, partition, "", error)
                yield Outcome(stage.name, partition, "failed", error=error)
        try:
            for work in run(works):
                yield work.finish(run_id)
        finally:
            for work in works:
                work.close()
