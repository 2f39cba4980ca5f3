"""An engine that runs a small language model in this process with transformers, without a server and free.

What belongs here: prompts in the model's chat template, batched decoding, choices, log probabilities. `grammars.py`
decides which tokens lead to a match; `base.Batches` forms batches and runs them in a thread.

**A reply does not depend on its batch.** Prompts are padded on the left to a multiple of `STEP` tokens. Prompts of
equal padded length are computed in tiles of a fixed number of rows (`tile_rows`), and the last tile is filled up. The
shape of every matrix product therefore depends only on the request (its padded length and the decoding step), and
random numbers are drawn per request. Measured: the bits are the same in any order and batch, on one thread and on two
(tests/llm/engines/test_transformers.py). On another kind of device or with another version of torch, the last digits
may differ, and a word of greedy decoding with them.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from latentgloss.errors import LanguageModelError, SubjectError
from latentgloss.llm.as_sent import in_user_turn
from latentgloss.llm.engines.base import Failure
from latentgloss.llm.engines.grammars import Grammars
from latentgloss.models.devices import chosen_device
from latentgloss.protocols import Capability, Reply, Request, TokenLogprobs
from latentgloss.store.digests import text_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from latentgloss.config.entries import ModelSpec
    from latentgloss.protocols import Message


VERSION = "2"
"""Part of every identity. Raise it when the same files can give other replies to the same request.

A new capability is no reason to raise it: no request that needs the capability was answered before, and explainers and
judges list the capabilities that they use in their recipes."""

CAPABILITIES: frozenset[Capability] = frozenset({"choice", "json_schema", "regex", "logprobs", "seed"})

STEP = 32
"""Prompts are padded to a multiple of this many tokens."""
TILE = {"cpu": 8}
TILE_GPU = 32
"""Most prompts in a tile."""
TILE_TOKENS = {"cpu": 2048}
"""Prompt tokens per tile above which more rows save nothing, because rows that fill up the last tile cost time."""


class TransformersEngine:
    """A `BatchEngine` over a model's files, which are loaded at the first request."""

    def __init__(self, spec: ModelSpec, cache_dir: Path, *, device: str | None = None, threads: int | None = None):
        self.spec, self.cache_dir, self.device, self.threads = spec, cache_dir, device, threads
        self._loading = threading.Lock()

    def identity(self) -> dict[str, Any]:
        """Hashes of the model's files, including its chat template. Loads no weights. Raises LanguageModelError."""
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
        """The model's tokenizer. Raises LanguageModelError if it cannot be loaded."""
        from latentgloss.models.tokenizer import load_tokenizer

        try:
            return load_tokenizer(self.spec, self.cache_dir)
        except SubjectError as e:
            raise LanguageModelError(e.found, expected=e.expected, todo=e.todo) from e

    @cached_property
    def _model(self) -> PreTrainedModel:
        import torch

        from latentgloss.models.cpu_linear import order_weights
        from latentgloss.models.files import loading, quiet, ready_folder
        from latentgloss.models.weights import load_causal

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            folder = ready_folder(self.spec, self.cache_dir)
            with quiet(), loading(self.spec, folder):
                model = load_causal(self.spec, folder, head=True)
        except SubjectError as e:
            raise LanguageModelError(e.found, expected=e.expected, todo=e.todo) from e
        device: Any = chosen_device(self.device)
        model.to(device).eval().requires_grad_(False)
        if device == "cpu":
            with quiet(), torch.inference_mode():
                order_weights(model, lambda: _try_decoding(model))
        return model

    @cached_property
    def _ends(self) -> frozenset[int]:
        """Ids of the tokens that end a reply."""
        config: Any = self._model.generation_config
        ids = config.eos_token_id if config is not None else None
        found = set(ids) if isinstance(ids, list) else {ids}
        return frozenset(int(i) for i in {*found, self.tokenizer.eos_token_id} if i is not None)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self._ends)

    def answer_all(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Failure]]:
        """Yields the index of each request with its reply or failure, tile by tile, the shortest prompts first."""
        prompts = [chat_tokens(self.tokenizer, request, self.spec.name) for request in requests]
        most = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or 2**31
        by_length: dict[int, list[tuple[int, _Decoding]]] = {}
        for place, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            if len(prompt) + request.max_tokens > most:
                reason = f"{len(prompt)} tokens of prompt and {request.max_tokens} of reply; the model takes {most}"
                yield place, Failure("rejected", reason)
                continue
            try:
                decoding = _Decoding(self, request, prompt)
            except Failure as e:
                yield place, e
            else:
                by_length.setdefault(-(-len(prompt) // STEP) * STEP, []).append((place, decoding))
        for length in sorted(by_length):
            same, rows = by_length[length], tile_rows(self._model.device.type, length)
            for first in range(0, len(same), rows):
                tile = same[first : first + rows]
                self._decode([decoding for _, decoding in tile], length, rows)
                for place, decoding in tile:
                    yield place, decoding.reply()

    def _decode(self, tile: list[_Decoding], length: int, rows: int) -> None:
        """Runs the model until every reply of the tile has ended."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from transformers import DynamicCache

        def attention(width: int) -> AbstractContextManager[None]:
            # On a CPU, for a single query in float32, the last digits of the fused kernel depend on the row's position.
            plain = width == 1 and self._model.device.type == "cpu"
            return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

        filler = self.tokenizer.eos_token_id or 0
        ids = torch.full((rows, length), int(filler), dtype=torch.int64)
        mask = torch.zeros((rows, length), dtype=torch.int64)
        mask[:, -1] = 1  # rows that fill up the tile need something to attend to
        for row, decoding in enumerate(tile):
            ids[row, length - len(decoding.prompt) :] = torch.tensor(decoding.prompt)
            mask[row, length - len(decoding.prompt) :] = 1
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
                chosen = [decoding.next(logits[row]) for row, decoding in enumerate(tile)]
                if all(decoding.ended for decoding in tile):
                    return
                chosen += [int(filler)] * (rows - len(tile))
                ids = torch.tensor(chosen, dtype=torch.int64, device=device)[:, None]
                mask = torch.cat([mask, torch.ones((rows, 1), dtype=torch.int64, device=device)], dim=1)


def _try_decoding(model: PreTrainedModel) -> None:
    """Runs the model on a few tokens and on one more, as `_decode` does. Raises LanguageModelError if it cannot."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    try:
        for ids in ([0, 1, 2, 3], [0]):
            model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    except Exception as e:  # of any type, because the code of a model's class raised it
        raise LanguageModelError(
            f"{type(model).__name__} does not decode ({type(e).__name__}: {e})",
            expected="a causal language model that decodes with a cache of keys and values",
            todo="use another model, or ask this one through a server",
        ) from e


def tile_rows(device: str, length: int) -> int:
    """How many prompts of this padded length a tile holds. On one kind of device it depends on that length alone."""
    most = TILE.get(device, TILE_GPU)
    return min(most, max(1, TILE_TOKENS[device] // length)) if device in TILE_TOKENS else most


class _Decoding:
    """One reply that is being decoded."""

    def __init__(self, engine: TransformersEngine, request: Request, prompt: list[int]) -> None:
        """Raises Failure if the reply cannot be held to the request's expression or schema."""
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
        """Picks the next token from the model's logits over the vocabulary, appends it, and returns it.

        After the reply has ended, it returns a token that ends a reply.
        """
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
        """Whether the reply meets the request's demands although the model has not ended it."""
        if self._matcher is not None:
            return self._matcher.complete
        return tuple(self.tokens) in {choice[:-1] for choice in self._choices}

    def reply(self) -> Reply | Failure:
        """The finished reply, cut before the first stop text, or why there is none."""
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
        """The logits, with minus infinity for tokens that lead to no choice or no match."""
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
        """The most probable token at temperature 0, else a draw from the nucleus."""
        import torch

        if self.request.temperature <= 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / self.request.temperature, dim=0)
        if self.request.top_p < 1:
            ordered, places = probabilities.sort(descending=True, stable=True)
            probabilities[places[ordered.cumsum(0) - ordered >= self.request.top_p]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator()))

    def _generator(self) -> Any:
        """A generator whose draws depend only on the prompt and the seed."""
        if self._draws is None:
            import torch

            digest = text_sha256(f"{self.request.seed or 0} {self.prompt}")
            self._draws = torch.Generator().manual_seed(int(digest[:15], 16))
        return self._draws

    def _logprobs(self, logits: Tensor, token: int) -> TokenLogprobs:
        """Log probabilities before temperature and nucleus. As in vLLM, they are relative to the allowed tokens."""
        import torch

        logprobs = torch.log_softmax(logits, dim=0)
        best = logprobs.topk(self.request.logprobs)
        decode = self.engine.tokenizer.decode
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = tuple((str(decode([i])), p) for i, p in pairs if p > float("-inf"))
        return TokenLogprobs(str(decode([token])), float(logprobs[token]), top)


def chat_tokens(tokenizer: Any, request: Request, name: str = "the language model") -> list[int]:
    """Token ids of the prompt: the messages in the tokenizer's chat template, with the header of the reply.

    `name`: of the registry entry, for messages. Raises LanguageModelError if the tokenizer has no chat template, which
    means that the model is not made for chat, or if the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise LanguageModelError("the tokenizer has no chat template", expected="an instruction-tuned model")
    try:
        text = _in_template(tokenizer, request.messages)
    except Exception as e:  # a template is a program of the model's authors and may raise anything
        system = any(message.role == "system" for message in request.messages)
        try:
            _in_template(tokenizer, in_user_turn(request.messages))
        except Exception:
            system = False
        raise LanguageModelError(
            f"the chat template of {name} refuses the {'system message' if system else 'messages'} of a prompt "
            f"({type(e).__name__}: {e})",
            expected="a chat template for system, user and assistant messages",
            todo="declare `system_role = false` in the registry entry: the system text is then put into the first user "
            "message, which the template takes"
            if system
            else "use another model or another chat template",
        ) from None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _in_template(tokenizer: Any, messages: Sequence[Message]) -> str:
    shown = [{"role": m.role, "content": m.content} for m in messages]
    text: str = tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
    return text
