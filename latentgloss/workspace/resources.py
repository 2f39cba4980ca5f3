"""What stages use beside their inputs: models, tokenizers, embedders, language models, corpora, vectors.

What belongs here: opening each from settings and registry; models, tokenizers and databases are opened on first use and
kept for the process. Each noun's `stages.py` declares in a Protocol the part that it needs; `Resources` provides all of
them. Heavy imports are inside the methods.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from latentgloss.config import Registry
from latentgloss.config.toml import user_path
from latentgloss.errors import MissingInput, SettingsError
from latentgloss.pipeline.graph import NEIGHBOUR_VERSION
from latentgloss.store import LocalFiles, Store
from latentgloss.store.digests import DigestCache

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from jaxtyping import UInt32

    from latentgloss.config import Settings
    from latentgloss.config.entries import SaeSpec
    from latentgloss.corpus.reader import Corpus
    from latentgloss.embeddings.lance import LanceTables
    from latentgloss.embeddings.vectors import ContextVectors, Progress, TextVectors
    from latentgloss.explanations.explainers.base import JudgeThatReads, Tools
    from latentgloss.llm.ledger import Ledger
    from latentgloss.llm.reply_cache import ReplyCache
    from latentgloss.models.embedder import SentenceEmbedder
    from latentgloss.models.subject import Subject
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import LanguageModel, Vectors
    from latentgloss.saes.coder import SparseCoder
    from latentgloss.store import Version


class Resources:
    """Settings, registry and store, and everything opened from them. Can be used from several threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(LocalFiles(settings.store_root))
        self._loading = threading.RLock()
        """Held while something is loaded, so that stages that run concurrently (`concurrency.interleave`) load it once.
        """
        self._subjects: dict[str, Subject] = {}
        self._vocabularies: dict[str, Vocabulary] = {}
        self._embedders: dict[str, SentenceEmbedder] = {}
        self._language_models: dict[str, LanguageModel] = {}

    @cached_property
    def registry(self) -> Registry:
        """The registry of the settings, read once. Raises RegistryError if its folder does not exist."""
        return Registry.open(self.settings.registry_root)

    @cached_property
    def digests(self) -> DigestCache:
        """Remembered digests of files outside the store."""
        return DigestCache(self.model_cache / "digests.json")

    @property
    def model_cache(self) -> Path:
        """Folder for converted model weights and remembered digests (setting `machine.model_cache`)."""
        return self.settings.folder / user_path(self.settings.machine.model_cache, SettingsError)

    def subject(self, model: str) -> Subject:
        """The subject model, kept until another one is loaded. Raises InputError for an unknown name, SubjectError."""
        with self._loading:
            if model not in self._subjects:
                from latentgloss.models.subject import load_subject

                if self.settings.machine.threads is not None:
                    import torch

                    torch.set_num_threads(self.settings.machine.threads)
                self._subjects.clear()  # one at a time, because two models rarely fit on one device
                self._subjects[model] = load_subject(
                    self.registry.model(model), self.model_cache, device=self.settings.machine.device
                )
            return self._subjects[model]

    def vocabulary(self, model: str) -> Vocabulary:
        """The vocabulary of the model's tokenizer, kept for the process. Raises SubjectError."""
        with self._loading:
            if model not in self._vocabularies:
                from latentgloss.models.tokenizer import load_tokenizer, token_bytes
                from latentgloss.models.vocabulary import Vocabulary

                tokenizer = load_tokenizer(self.registry.model(model), self.model_cache)
                strings = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
                self._vocabularies[model] = Vocabulary(
                    strings, token_bytes(tokenizer, strings), tokenizer.all_special_ids
                )
            return self._vocabularies[model]

    def tools(self, partition: str) -> Tools:
        """What explainers of an SAE's latents may use beside their evidence; loads no model."""
        from latentgloss.explanations.explainers.base import Tools
        from latentgloss.scores.judges.opening import language_judge

        model = self.registry.sae(partition).model

        def judge(name: str) -> JudgeThatReads:
            return language_judge(self, name, "detection", model, self.settings.detection.llm)

        return Tools(partition, self.settings.folder, self.language_model, judge)

    def embedder(self, name: str) -> SentenceEmbedder:
        """An embedder of the registry, loaded when it first embeds. Raises InputError for an unknown name."""
        with self._loading:
            if name not in self._embedders:
                from latentgloss.models.embedder import SentenceEmbedder

                spec, machine = self.registry.embedder(name), self.settings.machine
                self._embedders[name] = SentenceEmbedder(
                    spec, self.model_cache, device=machine.device, threads=machine.threads
                )
            return self._embedders[name]

    def language_model(self, name: str) -> LanguageModel:
        """A language model of the registry, started at the first request whose reply is not in the cache.

        Raises InputError for an unknown name, RegistryError, and LanguageModelError if it runs in this process and its
        files are missing.
        """
        with self._loading:
            if name not in self._language_models:
                from latentgloss.llm.opening import open_model

                spec = self.registry.language_model(name)
                self._language_models[name] = open_model(
                    spec, self.replies, self.ledger, self.model_cache, self.settings.machine
                )
            return self._language_models[name]

    @cached_property
    def replies(self) -> ReplyCache:
        """The reply cache of all language models, kept beside the versions in the store."""
        from latentgloss.llm.database import Database
        from latentgloss.llm.reply_cache import ReplyCache

        return ReplyCache(Database(self.settings.store_root))

    @cached_property
    def ledger(self) -> Ledger:
        """Tokens and costs of all requests to language models, checked against the budget of the settings."""
        from latentgloss.llm.ledger import Ledger

        budget = self.settings.budget
        return Ledger(self.replies.database, tokens=budget.tokens, usd=budget.usd)

    @cached_property
    def lance(self) -> LanceTables:
        """The LanceDB tables (vectors and search index), kept beside the versions in the store."""
        from latentgloss.embeddings.lance import FOLDER, LanceTables

        return LanceTables(self.settings.store_root / FOLDER)

    def context_vectors(
        self, model: str, corpus: Corpus, embedder: str, progress: Progress | None = None
    ) -> ContextVectors:
        """Vectors of contexts of a model's corpus, `contexts.length` tokens each; a missing one is made on use."""
        from latentgloss.embeddings.vectors import ContextVectors
        from latentgloss.models.identity import tokenizer_identity
        from latentgloss.models.tokenizer import load_tokenizer

        spec = self.registry.model(model)
        tokenizer: list[Any] = []

        def decode(tokens: UInt32[np.ndarray, "n length"]) -> list[str]:
            if not tokenizer:
                tokenizer.append(load_tokenizer(spec, self.model_cache))
            options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
            texts: list[str] = tokenizer[0].batch_decode(tokens.tolist(), **options)
            return texts

        return ContextVectors(
            self.lance,
            self.embedder(embedder),
            corpus,
            self.settings.contexts.length,
            decode,
            tokenizer_identity(spec, self.model_cache),
            batch=self.settings.machine.embedding_batch,
            progress=progress,
        )

    def text_vectors(
        self, embedder: str, role: Literal["query", "document"], progress: Progress | None = None
    ) -> TextVectors:
        """Vectors of texts such as explanations, embedded as queries or as documents; a missing one is made on use."""
        from latentgloss.embeddings.vectors import TextVectors

        spec = self.registry.embedder(embedder)
        prefix = spec.query_prefix if role == "query" else spec.document_prefix
        batch = self.settings.machine.embedding_batch
        return TextVectors(self.lance, self.embedder(embedder), role, prefix, batch=batch, progress=progress)

    def sae(self, spec: SaeSpec) -> SparseCoder:
        """Opens the SAE with its weights. Raises SaeError."""
        from latentgloss.saes.opening import open_sae

        return open_sae(spec)

    def negatives_embedder(self) -> dict[str, Any]:
        """Name and identity of the embedder that chooses `similar` negatives. Raises InputError, EmbedderError.

        The setting `negatives.embedder` if it is set; else the first by name that does not judge, because an embedder
        should not judge negatives that it has chosen; else the first that judges. An embedder that judges and chooses
        is not asked about `similar` negatives (`detection.plan_of_vectors`).
        """
        judging = self.settings.embedding.embedders
        others = sorted(set(self.registry.embedders) - set(judging))
        name = self.settings.negatives.embedder or (others or judging)[0]
        return {"name": name, "identity": self.embedder(name).identity()}

    def harder_negatives(self) -> dict[str, Any]:
        """What decides the optional strata `similar` and `neighbour`: an entry for each that the settings enable."""
        strata = self.settings.negatives.strata
        found: dict[str, Any] = {"embedder": self.negatives_embedder()} if "similar" in strata else {}
        return found | ({"neighbour_version": NEIGHBOUR_VERSION} if "neighbour" in strata else {})

    def negative_vectors(self, resolved: Version) -> Vectors:
        """Vectors by the embedder that chooses `similar` negatives, for the contexts of the corpus `resolved` pins."""
        model = self.registry.sae(resolved.manifest.partition).model
        return self.context_vectors(model, self.corpus(resolved), self.negatives_embedder()["name"])

    def corpus(self, resolved: Version) -> Corpus:
        """The corpus that a `resolved_saes` version pins. Raises MissingInput if it is no longer in the store."""
        pin = resolved.json("resolved.json")["corpus"]
        version = self.store.version(pin["stage"], pin["partition"], pin["fingerprint"])
        if version is None:
            raise MissingInput(
                f"corpus {pin['fingerprint']} of {pin['partition']} is no longer in the store",
                expected="the version that resolved_saes pins",
                todo="materialise tokenized_corpus and resolved_saes again",
            )
        return self.corpus_of(version)

    def corpus_of(self, version: Version) -> Corpus:
        """The corpus of a `tokenized_corpus` version. Raises StoreError if one of its files is damaged."""
        from latentgloss.corpus.reader import Corpus

        for name in version.manifest.files:
            version.path(name)
        return Corpus.open(self.store.files.path(version.key))
