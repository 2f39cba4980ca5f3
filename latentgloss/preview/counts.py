"""Counts the requests and tokens of planned queries, and extrapolates from some latents to all.

What belongs here: counting prompts with the model's tokenizer, recognising requests whose replies are in the reply
cache, choosing the latents to count, and extrapolating. Which queries are planned is in `planned.py`, what they cost
in `estimate.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from latentgloss import schema
from latentgloss.llm.as_sent import as_sent
from latentgloss.llm.asking import to_send
from latentgloss.llm.engines.bounds import more_prompt_tokens
from latentgloss.llm.payments import allowed_reply_tokens, most_prompt_tokens
from latentgloss.llm.reply_cache import request_key
from latentgloss.statistics.counter_rng import counter_hash
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64, UInt32

    from latentgloss.llm.asking import Planned
    from latentgloss.protocols import LanguageModel, Request
    from latentgloss.workspace import Workspace


BLOCKS = 16
"""Most blocks of latents from which a sample is taken. In a wide SAE, reading blocks takes most of the time."""
_SALT = 0xE571

REQUESTS, CACHED, PROMPT, COMPLETION, AGAIN = range(5)
"""Indices of the quantities that are counted per latent: requests, and those already answered; then for the others the
prompt tokens, the most tokens of their replies, and the prompt tokens of a second request for each of them."""

Counts = dict[str, "Float64[np.ndarray, ' quantities']"]
"""Quantities per language model."""


class Counter:
    """Counts planned queries by model, apart from those that the reply cache answers."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.uncounted: set[str] = set()
        """Notes about models whose prompt tokens were not counted but bounded."""
        self._identities: dict[str, str] = {}

    def count(self, planned: list[Planned]) -> Counts:
        """The quantities of one latent, whose queries are given. Equal requests count once, because they are sent once.

        The tokens of an explanation that does not exist yet count at their upper bound.
        """
        found: Counts = {}
        to_send: dict[str, list[tuple[Request, Planned]]] = {}
        seen: set[bytes] = set()
        for item in planned:
            name = item.model.name
            sums = found.setdefault(name, np.zeros(5))
            key = self._key(item.model, item.query.request)
            if not item.unwritten and key in seen:
                continue
            seen.add(key)
            sums[REQUESTS] += 1
            request = item.query.request if item.unwritten else self._to_send(item)
            if request is None:
                sums[CACHED] += 1
            else:
                to_send.setdefault(name, []).append((request, item))
        for name, several in to_send.items():
            self._add_tokens(found[name], several)
        return found

    def _add_tokens(self, sums: Float64[np.ndarray, " quantities"], to_send: list[tuple[Request, Planned]]) -> None:
        """Adds the tokens of one model's requests to `sums`."""
        model = to_send[0][1].model
        prompts = self._tokens(model, [request for request, _ in to_send])
        # A repair adds the reply and a message, which has about the same length whatever was wrong with the reply.
        first = to_send[0][1].query
        repaired = replace(first.request, messages=first.repair(first.request.messages, "", "x" * 100))
        with_repair, without = self._tokens(model, [repaired, first.request])
        spec = self.workspace.registry.language_models.get(model.name)
        more = more_prompt_tokens(spec.parameters) if spec is not None else 0
        for (request, item), tokens in zip(to_send, prompts, strict=True):
            prompt = tokens + item.unwritten + more
            reply = request.max_tokens if spec is None else allowed_reply_tokens(spec, as_sent(spec, request))
            sums[PROMPT] += prompt
            sums[COMPLETION] += reply
            sums[AGAIN] += prompt + with_repair - without + reply

    def _to_send(self, planned: Planned) -> Request | None:
        """The request of a query that is still to be sent: the first one, the repair, or None.

        Where the replies in the cache cannot be used, it is the first request of another attempt.
        """
        return to_send(
            planned.query,
            lambda request: self.workspace.replies.get(self._key(planned.model, request)),
            repeats=bool(getattr(planned.model, "repeats", False)),
        )

    def _key(self, model: LanguageModel, request: Request) -> bytes:
        """The key of a request in the reply cache."""
        if model.name not in self._identities:
            self._identities[model.name] = json_sha256(model.identity())
        return request_key(self._identities[model.name], request)

    def _tokens(self, model: LanguageModel, requests: list[Request]) -> list[int]:
        """Prompt tokens of each request; an upper bound if the model has no tokenizer, and then `uncounted` says so."""
        counted = model.count_tokens(requests)
        if counted is not None:
            return counted
        self.uncounted.add(
            f"{model.name} has no `tokenizer` in its registry entry, so two bytes of prompt count as a token"
        )
        return [most_prompt_tokens(request) for request in requests]


def sample_of(latents: UInt32[np.ndarray, " latents"], most: int) -> tuple[UInt32[np.ndarray, " few"], int]:
    """At most `most` latents, ascending, and the number of blocks they were taken from.

    If there are more latents than `most`, the sample is taken from at most `BLOCKS` blocks; blocks and latents with the
    lowest hashes are chosen.
    """
    blocks = np.unique(latents // schema.BLOCK)
    if len(latents) <= most:
        return latents, len(blocks)
    order = np.argsort(counter_hash(_SALT, blocks), kind="stable")
    within = latents[np.isin(latents // schema.BLOCK, blocks[order[:BLOCKS]])]
    few = within[np.argsort(counter_hash(_SALT, within), kind="stable")[:most]]
    return np.sort(few), min(len(blocks), BLOCKS)


def extrapolated(
    each: Float64[np.ndarray, "few quantities"],
    block: Int64[np.ndarray, " few"] | UInt32[np.ndarray, " few"],
    n: int,
    *,
    whole_blocks: bool,
) -> tuple[Float64[np.ndarray, " quantities"], float]:
    """Totals over `n` latents, extrapolated from some of them, and half the width of a 95 % interval of prompt tokens.

    `each`: quantities of the counted latents; `block`: the block of each. `whole_blocks`: whether latents of every
    block were counted. If so, or if there is only one block, the counted latents are a simple random sample without
    replacement. Otherwise blocks were sampled, and the interval is that of a ratio estimate over blocks (Cochran,
    Sampling Techniques, chapter 9). Both intervals use Student's t.
    """
    from scipy import stats

    few = len(each)
    if few == 0:
        return np.zeros(each.shape[1]), 0.0
    sums = each.sum(axis=0) * (n / few)
    if few >= n:
        return sums, 0.0
    values = each[:, PROMPT]
    if whole_blocks or len(np.unique(block)) < 2:
        units, error = few, float(values.std(ddof=1)) * np.sqrt((1 - few / n) / few) if few > 1 else np.inf
    else:
        _, at = np.unique(block, return_inverse=True)
        residual = np.bincount(at, values) - values.mean() * np.bincount(at)
        units = len(residual)
        error = float(np.sqrt(units / (units - 1) * (residual**2).sum())) / few
    half = float(stats.t.ppf(0.975, units - 1)) * n * error if units > 1 else float(sums[PROMPT])
    return sums, min(half, float(sums[PROMPT])) if np.isfinite(half) else float(sums[PROMPT])
