"""A language model of the registry, ready to be asked.

What belongs here: which engine an entry names, and what each engine adds to the entry's identity and capabilities.
Opening loads nothing: servers are asked and weights are read with the first request that the cache cannot answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.config.entries import ModelSpec
from latentgloss.errors import LanguageModelError, SubjectError
from latentgloss.llm.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.config.settings import MachineSettings
    from latentgloss.llm.engines.base import Engine
    from latentgloss.llm.engines.transformers import TransformersEngine
    from latentgloss.llm.engines.vllm import VllmEngine
    from latentgloss.llm.ledger import Ledger
    from latentgloss.llm.reply_cache import ReplyCache
    from latentgloss.protocols import Capability, Request


def open_model(
    spec: LanguageModelSpec, replies: ReplyCache, ledger: Ledger, cache_dir: Path, machine: MachineSettings
) -> Client:
    """The model behind `spec`. Raises LanguageModelError if it runs here and its files are not to be found."""
    if spec.engine == "openai_compatible":

        def served() -> Engine:
            from latentgloss.llm.engines.openai_compatible import OpenAICompatible

            return OpenAICompatible(spec)

        return Client(spec, served, replies, ledger, count=_counter(spec, cache_dir) if spec.tokenizer else None)
    from latentgloss.llm.engines.base import Batches
    from latentgloss.llm.engines.transformers import chat_tokens

    engine = _local(spec, cache_dir, machine)
    return Client(
        spec,
        lambda: Batches(engine, spec.in_flight),
        replies,
        ledger,
        identity=engine.identity(),
        capabilities=capabilities_of(spec),
        count=lambda requests: [len(chat_tokens(engine.tokenizer, request)) for request in requests],
    )


def capabilities_of(spec: LanguageModelSpec) -> frozenset[Capability]:
    """What a model can do: as declared of a server, as known of an engine."""
    if spec.engine == "vllm":
        from latentgloss.llm.engines.vllm import CAPABILITIES

        return CAPABILITIES
    if spec.engine == "transformers":
        from latentgloss.llm.engines import transformers

        return transformers.CAPABILITIES
    return frozenset(spec.capabilities)


def _local(spec: LanguageModelSpec, cache_dir: Path, machine: MachineSettings) -> TransformersEngine | VllmEngine:
    files = model_of(spec, spec.model)
    if spec.engine == "vllm":
        from latentgloss.llm.engines.vllm import VllmEngine

        return VllmEngine(spec, files, cache_dir)
    from latentgloss.llm.engines.transformers import TransformersEngine

    return TransformersEngine(files, cache_dir, device=machine.device, threads=machine.threads)


def model_of(spec: LanguageModelSpec, source: str) -> ModelSpec:
    """The entry as a source of files, for what resolves subject models."""
    dtype: Any = spec.dtype or "bfloat16"
    return ModelSpec(name=spec.name, source=source, dtype=dtype, folder=spec.folder)


def _counter(spec: LanguageModelSpec, cache_dir: Path) -> Callable[[Sequence[Request]], list[int]]:
    """Counts prompt tokens by the model's own tokenizer and chat template."""
    tokenizer: list[Any] = []

    def count(requests: Sequence[Request]) -> list[int]:
        from latentgloss.llm.engines.transformers import chat_tokens
        from latentgloss.models.tokenizer import load_tokenizer

        if not tokenizer:
            try:
                tokenizer.append(load_tokenizer(model_of(spec, spec.tokenizer or spec.model), cache_dir))
            except SubjectError as e:
                raise LanguageModelError(e.found, expected=e.expected, todo=e.todo) from e
        return [len(chat_tokens(tokenizer[0], request)) for request in requests]

    return count
