"""A language model of the registry, ready to be asked.

What belongs here: which engine an entry names, and what each engine adds to the entry's identity and capabilities.
Opening loads nothing: servers are asked and weights are read with the first request that the cache cannot answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.errors import LanguageModelError, SubjectError
from latentgloss.llm.client import Client
from latentgloss.registry import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from latentgloss.llm.engine import Engine
    from latentgloss.llm.ledger import Ledger
    from latentgloss.llm.reply_cache import ReplyCache
    from latentgloss.llm.transformers_engine import TransformersEngine
    from latentgloss.llm.vllm_engine import VllmEngine
    from latentgloss.protocols import Capability, Request
    from latentgloss.registry import LanguageModelSpec
    from latentgloss.settings import MachineSettings


def open_model(
    spec: LanguageModelSpec, replies: ReplyCache, ledger: Ledger, cache_dir: Path, machine: MachineSettings
) -> Client:
    """The model behind `spec`. Raises LanguageModelError if it runs here and its files are not to be found."""
    if spec.engine == "openai_compatible":

        def served() -> Engine:
            from latentgloss.llm.openai_compatible import OpenAICompatible

            return OpenAICompatible(spec)

        return Client(spec, served, replies, ledger, count=_counter(spec, cache_dir) if spec.tokenizer else None)
    from latentgloss.llm.engine import Batches
    from latentgloss.llm.transformers_engine import chat_tokens

    engine, capabilities = _local(spec, cache_dir, machine)
    return Client(
        spec,
        lambda: Batches(engine, spec.in_flight),
        replies,
        ledger,
        identity=engine.identity(),
        capabilities=capabilities,
        count=lambda requests: [len(chat_tokens(engine.tokenizer, request)) for request in requests],
    )


def _local(
    spec: LanguageModelSpec, cache_dir: Path, machine: MachineSettings
) -> tuple[TransformersEngine | VllmEngine, frozenset[Capability]]:
    files = model_of(spec, spec.model)
    if spec.engine == "vllm":
        from latentgloss.llm.vllm_engine import CAPABILITIES, VllmEngine

        return VllmEngine(spec, files, cache_dir), CAPABILITIES
    from latentgloss.llm import transformers_engine

    engine = transformers_engine.TransformersEngine(files, cache_dir, device=machine.device, threads=machine.threads)
    return engine, transformers_engine.CAPABILITIES


def model_of(spec: LanguageModelSpec, source: str) -> ModelSpec:
    """The entry as a source of files, for what resolves subject models."""
    dtype: Any = spec.dtype or "bfloat16"
    return ModelSpec(name=spec.name, source=source, dtype=dtype, folder=spec.folder)


def _counter(spec: LanguageModelSpec, cache_dir: Path) -> Callable[[Sequence[Request]], list[int]]:
    """Counts prompt tokens by the model's own tokenizer and chat template."""
    tokenizer: list[Any] = []

    def count(requests: Sequence[Request]) -> list[int]:
        from latentgloss.llm.transformers_engine import chat_tokens
        from latentgloss.subject_files import load_tokenizer

        if not tokenizer:
            try:
                tokenizer.append(load_tokenizer(model_of(spec, spec.tokenizer or spec.model), cache_dir))
            except SubjectError as e:
                raise LanguageModelError(e.found, expected=e.expected, todo=e.todo) from e
        return [len(chat_tokens(tokenizer[0], request)) for request in requests]

    return count
