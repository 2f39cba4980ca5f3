"""A small language model in this process, on transformers: no server, nothing to pay.

What belongs here: prompts in the model's chat template, batched decoding, choices, log probabilities. Which tokens
lead to a match is `grammars.py`'s; batching and threads are `engine.Batches`'.

**The same whatever the batch.** Prompts are padded on the left to a multiple of `STEP` tokens; those of one padded
length are computed a fixed number at a time (`tile_rows`), the last tile filled up. Every product's shape then depends
on the request alone (its padded length, the step), not on what else is asked, and random numbers are drawn per
request. Measured: the same bits in any order and company, on one and on two threads (tests/test_llm_transformers.py).
Another kind of device or another version of torch may differ in the last digits, and greedy decoding then in a word.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from latentgloss.errors import LanguageModelError, SubjectError
from latentgloss.llm.engines.base import Failure
from latentgloss.llm.engines.grammars import Grammars
from latentgloss.protocols import Capability, Reply, Request, TokenLogprobs
from latentgloss.store.digests import text_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from latentgloss.config.entries import ModelSpec


VERSION = "2"
"""Part of every identity: raise it when the same files can give other replies to the same request.

A new capability is none: nothing that needs it was answered before, and who asks names in its recipe what it uses."""

CAPABILITIES: frozenset[Capability] = frozenset({"choice", "json_schema", "regex", "logprobs", "seed"})

STEP = 32
TILE = {"cpu": 8}
TILE_GPU = 32
TILE_TOKENS = {"cpu": 2048}
"""Prompt tokens in a tile, beyond which more rows save nothing: what fills up the last tile is computed, too."""


class TransformersEngine:
    """`BatchEngine` over a model's files, which are read with the first request."""

    def __init__(self, spec: ModelSpec, cache_dir: Path, *, device: str | None = None, threads: int | None = None):
        self.spec, self.cache_dir, self.device, self.threads = spec, cache_dir, device, threads
        self._loading = threading.Lock()

    def identity(self) -> dict[str, Any]:
        """Content of the model's files, chat template included. Loads nothing. Raises LanguageModelError."""
        from latentgloss.models.files import files_sha256, source_folder
        from latentgloss.models.identity import model_identity

        try:
            found = model_identity(self.spec, self.cache_dir)
            folder = source_folder(self.spec, ["*.json", "*.jinja"])
        except SubjectError as e:
            raise LanguageModelError(e.found, expected=e.expected, todo=e.todo) from e
        beside = [folder / name for name in ("chat_template.jinja", "generation_config.json")]
        files = files_sha256([path for path in beside if path.is_file()], self.cache_dir)
        return {"engine": "transformers", **found, "generation": files, "version": VERSION}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from latentgloss.models.tokenizer import load_tokenizer

        try:
            return load_tokenizer(self.spec, self.cache_dir)
        except SubjectError as e:
            raise LanguageModelError(e.found, expected=e.expected, todo=e.todo) from e

    @cached_property
    def _model(self) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM

        from latentgloss.models.cpu_linear import order_weights
        from latentgloss.models.files import quiet, readable, ready_folder

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            folder = ready_folder(self.spec, self.cache_dir)
            with quiet(), readable(self.spec, folder):
                model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=getattr(torch, self.spec.dtype), local_files_only=True
                )
        except SubjectError as e:
            raise LanguageModelError(e.found, expected=e.expected, todo=e.todo) from e
        device: Any = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model.to(device).eval().requires_grad_(False)
        if device == "cpu":
            order_weights(model)
        return model

    @cached_property
    def _ends(self) -> frozenset[int]:
        """Tokens that end a reply."""
        config: Any = self._model.generation_config
        ids = config.eos_token_id if config is not None else None
        found = set(ids) if isinstance(ids, list) else {ids}
        return frozenset(int(i) for i in {*found, self.tokenizer.eos_token_id} if i is not None)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self._ends)

    def answer_all(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Failure]]:
        """Replies tile by tile, the shortest prompts first."""
        prompts = [chat_tokens(self.tokenizer, request) for request in requests]
        most = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or 2**31
        by_length: dict[int, list[tuple[int, _Decoding]]] = {}
        for place, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            if len(prompt) + request.max_tokens > most:
                reason = f"{len(prompt)} tokens of prompt and {request.max_tokens} of reply; the model takes {most}"
                yield place, Failure("rejected", reason)
                continue
            try:
                one = _Decoding(self, request, prompt)
            except Failure as e:
                yield place, e
            else:
                by_length.setdefault(-(-len(prompt) // STEP) * STEP, []).append((place, one))
        for length in sorted(by_length):
            same, rows = by_length[length], tile_rows(self._model.device.type, length)
            for first in range(0, len(same), rows):
                tile = same[first : first + rows]
                self._decode([one for _, one in tile], length, rows)
                for place, one in tile:
                    yield place, one.reply()

    def _decode(self, tile: list[_Decoding], length: int, rows: int) -> None:
        """Runs the model until every reply of the tile has ended."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from transformers import DynamicCache

        def attention(width: int) -> AbstractContextManager[None]:
            # The fused kernel of a CPU, for one query in float32, gives a row other last digits in another place.
            plain = width == 1 and self._model.device.type == "cpu"
            return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

        filler = self.tokenizer.eos_token_id or 0
        ids = torch.full((rows, length), int(filler), dtype=torch.int64)
        mask = torch.zeros((rows, length), dtype=torch.int64)
        mask[:, -1] = 1  # rows that fill up the tile attend to something, too
        for row, one in enumerate(tile):
            ids[row, length - len(one.prompt) :] = torch.tensor(one.prompt)
            mask[row, length - len(one.prompt) :] = 1
        device, cache = self._model.device, DynamicCache()
        ids, mask = ids.to(device), mask.to(device)
        with torch.inference_mode():
            while True:
                positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                with attention(ids.shape[1]):
                    out = self._model(
                        input_ids=ids,
                        attention_mask=mask,
                        position_ids=positions,
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=1,
                    )
                logits = out.logits[:, -1].float().cpu()
                chosen = [one.next(logits[row]) for row, one in enumerate(tile)]
                if all(one.ended for one in tile):
                    return
                chosen += [int(filler)] * (rows - len(tile))
                ids = torch.tensor(chosen, dtype=torch.int64, device=device)[:, None]
                mask = torch.cat([mask, torch.ones((rows, 1), dtype=torch.int64, device=device)], dim=1)


def tile_rows(device: str, length: int) -> int:
    """Prompts of one padded length that are computed together: it follows from nothing but that length."""
    most = TILE.get(device, TILE_GPU)
    return min(most, max(1, TILE_TOKENS[device] // length)) if device in TILE_TOKENS else most


class _Decoding:
    """One reply in the making."""

    def __init__(self, engine: TransformersEngine, request: Request, prompt: list[int]) -> None:
        """Raises Failure if the reply cannot be held to what the request demands."""
        self.engine, self.request, self.prompt = engine, request, prompt
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.ended = ""
        self.failure: Failure | None = None
        self._draws: Any = None
        self._choices: list[tuple[int, ...]] = []
        if request.choice is not None:
            end = min(engine._ends)
            for choice in request.choice:
                self._choices.append((*engine.tokenizer(choice, add_special_tokens=False)["input_ids"], end))
        held = request.choice is None and (request.json_schema is not None or request.regex is not None)
        self._matcher = engine._grammars.matcher(request) if held else None

    def next(self, logits: Tensor) -> int:
        """Takes and returns the next token, from the model's logits over the vocabulary."""
        if not self.ended:
            try:
                return self._next(logits)
            except Failure as e:
                self.ended, self.failure = "failed", e
        return min(self.engine._ends, default=0)

    def _next(self, logits: Tensor) -> int:
        logits = self._allowed(logits)
        token = self._pick(logits)
        ends = token in self.engine._ends
        if not ends:
            self.tokens.append(token)
            if self._matcher is not None:
                self._matcher.take(token)
            if self.request.logprobs:
                self.logprobs.append(self._logprobs(logits, token))
        if ends or self._stopped():
            self.ended = "stop"
        elif len(self.tokens) >= self.request.max_tokens:
            self.ended = "stop" if self._complete() else "length"
        return token

    def _complete(self) -> bool:
        """Whether what is demanded is there, although the model has not ended the reply."""
        if self._matcher is not None:
            return self._matcher.complete
        return tuple(self.tokens) in {choice[:-1] for choice in self._choices}

    def reply(self) -> Reply | Failure:
        if self.failure is not None:
            return self.failure
        text = self._text()
        for stop in self.request.stop:
            text = text.partition(stop)[0]
        status: Any = "truncated" if self.ended == "length" else "ok"
        return Reply(
            status, "", text, tuple(self.logprobs), prompt_tokens=len(self.prompt), completion_tokens=len(self.tokens)
        )

    def _text(self) -> str:
        text = self.engine.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _stopped(self) -> bool:
        return bool(self.request.stop) and any(stop in self._text() for stop in self.request.stop)

    def _allowed(self, logits: Tensor) -> Tensor:
        """Minus infinity for tokens that lead to none of the choices, or to no match."""
        import torch

        if self._matcher is not None:
            return logits.masked_fill(~torch.from_numpy(self._matcher.allowed(len(logits))), float("-inf"))
        if not self._choices:
            return logits
        at = len(self.tokens)
        allowed = sorted({c[at] for c in self._choices if len(c) > at and list(c[:at]) == self.tokens})
        masked = torch.full_like(logits, float("-inf"))
        masked[allowed] = logits[allowed]
        return masked

    def _pick(self, logits: Tensor) -> int:
        """Greedy at temperature 0, else a draw from the nucleus."""
        import torch

        if self.request.temperature <= 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / self.request.temperature, dim=0)
        if self.request.top_p < 1:
            ordered, places = probabilities.sort(descending=True, stable=True)
            probabilities[places[ordered.cumsum(0) - ordered >= self.request.top_p]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator()))

    def _generator(self) -> Any:
        """Draws that depend on the prompt and the seed alone."""
        if self._draws is None:
            import torch

            digest = text_sha256(f"{self.request.seed or 0} {self.prompt}")
            self._draws = torch.Generator().manual_seed(int(digest[:15], 16))
        return self._draws

    def _logprobs(self, logits: Tensor, token: int) -> TokenLogprobs:
        """Before temperature and nucleus; among what is allowed, where a reply is held to something (as vLLM does)."""
        import torch

        logprobs = torch.log_softmax(logits, dim=0)
        best = logprobs.topk(self.request.logprobs)
        decode = self.engine.tokenizer.decode
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = tuple((str(decode([i])), p) for i, p in pairs if p > float("-inf"))
        return TokenLogprobs(str(decode([token])), float(logprobs[token]), top)


def chat_tokens(tokenizer: Any, request: Request) -> list[int]:
    """Token ids of the prompt: the messages in the tokenizer's chat template, ready for the reply.

    Raises LanguageModelError if the model has no template: it was not made to be asked.
    """
    if not tokenizer.chat_template:
        raise LanguageModelError("the tokenizer has no chat template", expected="a model made for instructions")
    messages = [{"role": m.role, "content": m.content} for m in request.messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
