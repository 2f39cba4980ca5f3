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
    from latentgloss.protocols import Request
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
    from latentgloss.llm.transformers_engine import CAPABILITIES, TransformersEngine, chat_tokens

    if spec.engine == "vllm":
        raise LanguageModelError(f"{spec.name}: engine vllm is not built in", todo="serve it: engine openai_compatible")
    engine = TransformersEngine(model_of(spec, spec.model), cache_dir, device=machine.device, threads=machine.threads)
    return Client(
        spec,
        lambda: Batches(engine, spec.in_flight),
        replies,
        ledger,
        identity=engine.identity(),
        capabilities=CAPABILITIES,
        count=lambda requests: [len(chat_tokens(engine.tokenizer, request)) for request in requests],
    )


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
