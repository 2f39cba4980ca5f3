"""An engine that runs vLLM in this process, on a GPU or a CPU, without a server.

What belongs here: passing prompts and sampling parameters to vLLM, and reading its outputs. `vllm` is not a
dependency, because it brings its own PyTorch; it is imported when the first request is sent. A server in its own
environment (engine `openai_compatible`) does the same and outlives a run. This engine is for a single process that owns
the device.

As always with vLLM, the last digits of a reply depend on the rest of its batch. The reply cache makes a run repeatable.
"""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import TYPE_CHECKING, Any

from latentgloss.errors import LanguageModelError, SubjectError
from latentgloss.llm.engines.base import Failure
from latentgloss.llm.engines.transformers import TransformersEngine, chat_tokens
from latentgloss.protocols import Capability, Reply, Request, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from latentgloss.config.entries import LanguageModelSpec, ModelSpec


CAPABILITIES: frozenset[Capability] = frozenset({"choice", "json_schema", "regex", "logprobs", "seed"})

VERSION = "1"
"""Part of every identity. Raise it when the same files can give other replies."""


class VllmEngine:
    """A `BatchEngine` over vLLM. It reads the same files as `TransformersEngine`."""

    def __init__(self, spec: LanguageModelSpec, model: ModelSpec, cache_dir: Path) -> None:
        self.spec, self.model, self.cache_dir = spec, model, cache_dir
        self._files = TransformersEngine(model, cache_dir)
        self._numbers = itertools.count()

    def identity(self) -> dict[str, Any]:
        """The identity of the same files in transformers, with this engine's name. Raises LanguageModelError."""
        return {**self._files.identity(), "engine": "vllm", "version": VERSION}

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer. Raises LanguageModelError if it cannot be loaded."""
        return self._files.tokenizer

    @cached_property
    def _llm(self) -> Any:
        from latentgloss.models.files import ready_folder

        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as e:
            raise LanguageModelError(
                f"{self.spec.name}: vllm is not installed in this environment ({e})",
                expected="vllm in this environment",
                todo="install it, or serve the model with `vllm serve` and engine openai_compatible",
            ) from e
        try:
            folder = ready_folder(self.model, self.cache_dir)
        except SubjectError as e:
            raise LanguageModelError(e.found, expected=e.expected, todo=e.todo) from e
        options: dict[str, Any] = {"max_model_len": self.spec.context_length} if self.spec.context_length else {}
        return LLM(
            model=str(folder),
            dtype=self.model.dtype,
            max_num_seqs=self.spec.in_flight,
            enable_prefix_caching=True,
            max_logprobs=20,
            seed=0,
            disable_log_stats=True,
            enforce_eager=current_platform.is_cpu(),  # compiling for a CPU takes minutes and needs a compiler
            **options,
        )

    def answer_all(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Failure]]:
        """Yields the index of each request with its reply or failure, as they finish."""
        engine = self._llm.llm_engine
        # Request numbers are never reused, so replies to requests of an interrupted batch are recognised and ignored.
        places: dict[str, int] = {}
        for place, request in enumerate(requests):
            number = str(next(self._numbers))
            prompt = {"prompt_token_ids": chat_tokens(self.tokenizer, request, self.spec.name)}
            try:
                engine.add_request(number, prompt, self._parameters(request))
                places[number] = place
            except Exception as e:  # the classes of its validation errors change between releases
                if "Dead" in type(e).__name__:
                    raise
                yield place, Failure("rejected", str(e))
        while places and engine.has_unfinished_requests():
            for output in engine.step():
                found = places.pop(output.request_id, None) if output.finished else None
                if found is not None:
                    yield found, self._reply(output)
        for place in places.values():
            yield place, Failure("failed", "the engine ended without a reply")

    @staticmethod
    def _parameters(request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        structured = None
        if request.choice is not None:
            structured = StructuredOutputsParams(choice=list(request.choice))
        elif request.json_schema is not None:
            structured = StructuredOutputsParams(json=dict(request.json_schema))
        elif request.regex is not None:
            structured = StructuredOutputsParams(regex=request.regex)
        return SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=list(request.stop) or None,
            logprobs=request.logprobs or None,
            structured_outputs=structured,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _reply(self, output: Any) -> Reply | Failure:
        (completion,) = output.outputs
        if completion.finish_reason not in ("stop", "length"):
            return Failure("failed", f"ended with {completion.finish_reason!r}")
        logprobs = tuple(
            self._token(token, found)
            for token, found in zip(completion.token_ids, completion.logprobs or (), strict=False)
        )
        return Reply(
            "truncated" if completion.finish_reason == "length" else "ok",
            "",
            completion.text,
            logprobs,
            prompt_tokens=len(output.prompt_token_ids),
            cached_prompt_tokens=output.num_cached_tokens or 0,
            completion_tokens=len(completion.token_ids),
        )

    @staticmethod
    def _token(token: int, found: dict[int, Any]) -> TokenLogprobs:
        named = sorted(((str(p.decoded_token), float(p.logprob)) for p in found.values()), key=lambda t: -t[1])
        chosen = found[token]
        top = tuple(t for t in named if t[1] > float("-inf"))
        return TokenLogprobs(str(chosen.decoded_token), float(chosen.logprob), top)
