"""An engine for any server with OpenAI's chat completions API, such as vLLM's server or a vendor's.

What belongs here: one attempt at one request through the `openai` client, and reading the answer. The client's own
retries are disabled, and redirects are refused. The key is read from the environment when the first request is sent
(`keys.py`), and is removed from every text that leaves this module.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from latentgloss.errors import without_secrets
from latentgloss.llm.engines.answers import decoded, ended_of, logprobs_of, quoted, text_of
from latentgloss.llm.engines.base import Failure
from latentgloss.llm.engines.keys import read_key
from latentgloss.llm.engines.refusals import error_in, kind_of, redirected, retry_after
from latentgloss.llm.engines.usage import read_usage
from latentgloss.llm.reply_text import said, unwrapped
from latentgloss.protocols import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    import openai
    from openai import AsyncOpenAI

    from latentgloss.config.entries import LanguageModelSpec

PER_CLIENT = 32
"""Connections per HTTP client. A client's work per request grows with them, so more requests use more clients."""

CONNECT_S = 10.0
"""Longest time to wait for a connection."""
LONG_KEY = 16
"""A key of so many characters is in no text by chance, so that it is removed from replies as well as from errors."""


class OpenAICompatible:
    """An `Engine` over HTTP. The constructor raises LanguageModelError if the variable of the key holds none."""

    def __init__(self, spec: LanguageModelSpec, *, key: str | None = None) -> None:
        """Without `key`, it is read from the environment; `body` needs none."""
        self.spec = spec
        self._key = read_key(spec) if key is None else key
        self._clients: list[AsyncOpenAI] = []
        self._turn = 0

    def __repr__(self) -> str:
        return f"OpenAICompatible({self.spec.name})"

    async def answer(self, request: Request) -> Reply:
        """Sends a request once and reads the answer. Raises Failure."""
        import httpx2
        import openai

        client = self._client()
        try:
            # This low-level call saves the half millisecond that the typed one spends on unused classes.
            response = await client.post("/chat/completions", body=self.body(request), cast_to=httpx2.Response)
        except (openai.APIError, httpx2.HTTPError) as e:
            failure = self._failure(e)
        else:
            content = response.content
            if len(self._key) >= LONG_KEY:
                content = content.replace(self._key.encode(), b"[key]")
            return _reply(content, request, response.headers)
        raise failure  # outside the handler, because the client's exception carries a request with the key

    async def close(self) -> None:
        """Closes the connections. The next request opens new ones."""
        clients, self._clients = self._clients, []
        await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)

    def body(self, request: Request) -> dict[str, Any]:
        """The body of the HTTP request. Parameters of the registry entry override all others."""
        body: dict[str, Any] = {
            "model": self.spec.model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            self.spec.max_tokens_parameter: request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        if request.seed is not None and "seed" in self.spec.capabilities:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        if request.choice is not None:
            body["structured_outputs"] = {"choice": list(request.choice)}  # vLLM 0.12 and later
        if request.regex is not None:
            body["structured_outputs"] = {"regex": request.regex}
        if request.json_schema is not None:
            schema = {"name": "reply", "schema": dict(request.json_schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.logprobs:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        for name in self.spec.leave_out:
            body.pop(name, None)
        return body | self.spec.parameters

    def _client(self) -> AsyncOpenAI:
        if not self._clients:
            import httpx2
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient

            logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line per request otherwise
            limits = httpx2.Limits(max_connections=PER_CLIENT, max_keepalive_connections=PER_CLIENT)
            timeout = httpx2.Timeout(self.spec.timeout_s, connect=min(CONNECT_S, self.spec.timeout_s))
            for _ in range(-(-self.spec.in_flight // PER_CLIENT)):
                http = DefaultAsyncHttpxClient(
                    limits=limits, timeout=timeout, base_url=self.spec.base_url or "", follow_redirects=False
                )
                client = AsyncOpenAI(
                    api_key=self._key, base_url=self.spec.base_url, max_retries=0, timeout=timeout, http_client=http
                )
                self._clients.append(client)
        self._turn += 1
        return self._clients[self._turn % len(self._clients)]

    def _failure(self, error: Exception) -> Failure:
        import httpx2
        import openai

        if isinstance(error, openai.APIStatusError):
            status, headers = error.status_code, error.response.headers
            if 300 <= status < 400:
                return redirected(status, headers.get("location"), self.spec.base_url or "")
            return Failure(
                kind_of(status, frozenset({str(error.code), str(error.type)})),
                self._clean(f"HTTP {status}: {_message(error)}"),
                wait_s=retry_after(headers.get("retry-after")),
            )
        if isinstance(error, openai.APITimeoutError) and not isinstance(error.__cause__, httpx2.ConnectTimeout):
            return Failure("timeout", f"no answer in {self.spec.timeout_s:g} s")
        cause = error.__cause__ or error
        refused = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
        return Failure("unreachable" if refused else "dropped", self._clean(f"{type(cause).__name__}: {cause}"))

    def _clean(self, text: str) -> str:
        """A text without the key, which servers quote in errors, cut to 500 characters."""
        text = without_secrets(text)
        return text if len(text) <= 500 else text[:500] + "…"


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return quoted(error.response.content)


def _reply(content: bytes, request: Request, headers: Mapping[str, str]) -> Reply:
    """The reply in the body of an answer, the first if there are several. Raises Failure."""
    data = decoded(content)
    if (error := error_in(data, headers)) is not None:
        raise error
    try:
        choice = data["choices"][0]
        text, thinking, refusal = text_of(choice)
        counts: dict[str, Any] = {**vars(read_usage(data.get("usage"))), "model": _name(data.get("model"))}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as e:
        why = f"{type(e).__name__}: {e}"
        raise Failure("malformed", f"an answer that cannot be read ({why}): {quoted(content)}") from None
    ended = ended_of(choice, data.get("usage"), request.max_tokens)
    if refusal or ended == "refused":
        return Reply(
            "refused",
            without_secrets(refusal) or f"content filter (finish_reason {choice['finish_reason']!r})",
            text,
            **counts,
        )
    if not text.strip() and not thinking.strip() and not choice.get("finish_reason"):
        raise Failure("malformed", "an answer without text and without a reason for its end")
    where = ""
    if not text.strip() and thinking.strip():
        where = "" if ended == "length" else "the message had no content, only thinking"
        text = f"<think>{thinking}" if ended == "length" else thinking  # the whole reply may be there
    logprobs = logprobs_of(choice)
    if request.logprobs and not logprobs and text:
        form = "no log probabilities" if logprobs == () else "log probabilities without their tokens"
        raise Failure("misdeclared", f"{form} in the answer, which the registry says it can give")
    if request.choice is not None and ended == "stop" and (answer := unwrapped(said(text))) not in request.choice:
        # A server that lacks this parameter ignores it silently, and every reply would have to be requested twice.
        wrong = f"an answer outside the choice it was given, which the registry says it keeps to: {answer[:100]!r}"
        raise Failure("misdeclared", wrong)
    return Reply("truncated" if ended == "length" else "ok", where, text, logprobs or (), **counts)


def _name(model: Any) -> str:
    """The name of the model that answered; empty if the server gives none."""
    return without_secrets(model)[:200] if isinstance(model, str) else ""
