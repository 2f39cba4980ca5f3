"""Makes a language model that can be asked from an entry of the registry.

What belongs here: the choice of the engine that an entry names, and the identity and capabilities that come with it.
Opening a model hashes its local files, if it has any, but loads no weights and sends nothing. Both happen at the first
request whose reply is not in the cache.
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
    """The model that `spec` declares. Raises LanguageModelError if it runs in this process and has no files."""
    if spec.engine == "openai_compatible":

        def served() -> Engine:
            from latentgloss.llm.engines.openai_compatible import OpenAICompatible

            return OpenAICompatible(spec)

        count = _counter(spec, cache_dir) if spec.tokenizer else None
        return Client(spec, served, replies, ledger, capabilities=capabilities_of(spec), count=count)
    from latentgloss.llm.engines.base import Batches
    from latentgloss.llm.engines.transformers import chat_tokens

    engine = _local(spec, cache_dir, machine)
    return Client(
        spec,
        lambda: Batches(engine, spec.in_flight),
        replies,
        ledger,
        identity={**engine.identity(), **spec.sent_otherwise()},
        capabilities=capabilities_of(spec),
        count=lambda requests: [len(chat_tokens(engine.tokenizer, request, spec.name)) for request in requests],
    )


def capabilities_of(spec: LanguageModelSpec) -> frozenset[Capability]:
    """What a model can do: for a server, what its entry declares; otherwise, what the engine supports."""
    thinks: frozenset[Capability] = frozenset({"reasoning"} if spec.reasoning_tokens else ())
    if spec.engine == "vllm":
        from latentgloss.llm.engines.vllm import CAPABILITIES

        return CAPABILITIES | thinks
    if spec.engine == "transformers":
        from latentgloss.llm.engines import transformers

        return transformers.CAPABILITIES | thinks
    return frozenset(spec.capabilities) | thinks


def _local(spec: LanguageModelSpec, cache_dir: Path, machine: MachineSettings) -> TransformersEngine | VllmEngine:
    files = model_of(spec, spec.model)
    if spec.engine == "vllm":
        from latentgloss.llm.engines.vllm import VllmEngine

        return VllmEngine(spec, files, cache_dir)
    from latentgloss.llm.engines.transformers import TransformersEngine

    return TransformersEngine(files, cache_dir, device=machine.device, threads=machine.threads)


def model_of(spec: LanguageModelSpec, source: str) -> ModelSpec:
    """The entry as a `ModelSpec` with the files at `source`, for the functions that resolve subject models' files."""
    dtype: Any = spec.dtype or "bfloat16"
    return ModelSpec(name=spec.name, source=source, dtype=dtype, folder=spec.folder)


def _counter(spec: LanguageModelSpec, cache_dir: Path) -> Callable[[Sequence[Request]], list[int]]:
    """A function that counts prompt tokens with the model's own tokenizer and chat template."""
    tokenizer: list[Any] = []

    def count(requests: Sequence[Request]) -> list[int]:
        from latentgloss.llm.engines.transformers import chat_tokens
        from latentgloss.models.tokenizer import load_tokenizer

        if not tokenizer:
            try:
                tokenizer.append(load_tokenizer(model_of(spec, spec.tokenizer or spec.model), cache_dir))
            except SubjectError as e:
                raise LanguageModelError(e.found, expected=e.expected, todo=e.todo) from e
        return [len(chat_tokens(tokenizer[0], request, spec.name)) for request in requests]

    return count
