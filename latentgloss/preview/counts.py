"""Requests and tokens of what will be asked, and from some latents to all.

What belongs here: counting prompts with the model's tokenizer, telling apart what is answered already, extrapolating.
Which prompts, and what they cost, is `estimate.py`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from latentgloss import schema
from latentgloss.llm.asking import follow_up
from latentgloss.llm.client import most_prompt_tokens
from latentgloss.llm.reply_cache import request_key
from latentgloss.statistics.counter_rng import counter_hash
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64, UInt32

    from latentgloss.llm.asking import Planned
    from latentgloss.protocols import LanguageModel, Request
    from latentgloss.workspace import Workspace


BLOCKS = 16
"""Blocks of latents that a sample is taken from: reading them is most of the work in a wide SAE."""
_SALT = 0xE571

REQUESTS, CACHED, PROMPT, COMPLETION, AGAIN = range(5)
"""Quantities per latent: requests, those answered already; of the others prompt tokens, most tokens of replies, and
prompt tokens that asking each of them once more would take."""

Counts = dict[str, "Float64[np.ndarray, ' quantities']"]
"""Per model."""


class Counter:
    """Requests and tokens of what is planned, by model; what is answered already is told apart."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.uncounted: set[str] = set()
        self._identities: dict[str, str] = {}

    def count(self, planned: list[Planned]) -> Counts:
        """Of one latent. Equal requests are sent once."""
        found: Counts = {}
        todo: dict[str, list[tuple[Request, Planned]]] = {}
        seen: set[bytes] = set()
        for one in planned:
            name = one.model.name
            sums = found.setdefault(name, np.zeros(5))
            key = self._key(one.model, one.query.request)
            if not one.unwritten and key in seen:
                continue
            seen.add(key)
            sums[REQUESTS] += 1
            request = one.query.request if one.unwritten else self._to_send(one)
            if request is None:
                sums[CACHED] += 1
            else:
                todo.setdefault(name, []).append((request, one))
        for name, several in todo.items():
            sums, model = found[name], several[0][1].model
            requests = [request for request, _ in several]
            prompts = self._tokens(model, requests)
            # A repair adds the reply and a message; that message is about the same length whatever was wrong.
            first = several[0][1].query
            repaired = replace(first.request, messages=first.repair(first.request.messages, "", "x" * 100))
            with_repair, without = self._tokens(model, [repaired, first.request])
            for (request, one), tokens in zip(several, prompts, strict=True):
                prompt = tokens + one.unwritten
                sums[PROMPT] += prompt
                sums[COMPLETION] += request.max_tokens
                sums[AGAIN] += prompt + with_repair - without + request.max_tokens
        return found

    def _to_send(self, one: Planned) -> Request | None:
        """What of a query is still to be sent: itself, its repair, or nothing."""
        reply = self.workspace.replies.get(self._key(one.model, one.query.request))
        if reply is None:
            return one.query.request
        repair = follow_up(one.query, reply)
        known = repair is not None and self.workspace.replies.get(self._key(one.model, repair)) is not None
        return None if known else repair

    def _key(self, model: LanguageModel, request: Request) -> bytes:
        if model.name not in self._identities:
            self._identities[model.name] = json_sha256(model.identity())
        return request_key(self._identities[model.name], request)

    def _tokens(self, model: LanguageModel, requests: list[Request]) -> list[int]:
        counted = model.count_tokens(requests)
        if counted is not None:
            return counted
        self.uncounted.add(
            f"{model.name} has no `tokenizer` in its registry entry: two bytes of prompt count as a token"
        )
        return [most_prompt_tokens(request) for request in requests]


def sample_of(latents: UInt32[np.ndarray, " latents"], most: int) -> tuple[UInt32[np.ndarray, " few"], int]:
    """At most `most` latents, ascending, of at most `BLOCKS` blocks, by lowest hash; and how many blocks that are."""
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
    """Totals over `n` latents from those of some, and half the width of the 95 % interval of prompt tokens.

    `whole_blocks`: every block is in the sample. Then latents are the units of a simple random sample without
    replacement; otherwise blocks are, in a ratio estimate (Cochran, Sampling Techniques, chapter 9), with Student's t.
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
