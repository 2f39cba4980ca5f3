"""A language model whose answers follow from the prompt's own text, and a judge that says yes to everything.

It is a whole `LanguageModel`: it reads requests ahead, replies in order, counts tokens. What it says is what a careful
reader who only matches words would say, so that explanations and scores of the tiny world come out as planted.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import replace

import numpy as np

from latentgloss.protocols import Answer, Reply, TokenLogprobs

PASSAGE = re.compile(r"^\d+\. ⟦(.*)⟧(?: \([\d, ]+\))?$", re.MULTILINE)


def asked_of(request):
    """The text of the request that is its own: the last thing the user says before any repair."""
    own = [m for m in request.messages if m.role == "user"]
    return own[-2].content if own[-1].content.startswith("That could not be read") else own[-1].content


def passages_of(text):
    return PASSAGE.findall(text)


def is_repair(request):
    return request.messages[-1].content.startswith("That could not be read")


def reader(request):
    """What it answers."""
    text = asked_of(request)
    if "Find the intruder." in request.messages[0].content:
        return odd_one_out(passages_of(text))
    described = re.match(r"Description: ⟦(.*)⟧$", text.split("\n")[0])
    if described is None:
        active = text.split("\nSilent:")[0]
        marked = [part.strip() for p in passages_of(active) for part in re.findall("<<(.*?)>>", p)]
        words = [word for word, _ in Counter(marked).most_common(2)]
        return f"EXPLANATION: The words {' and '.join(words)}."
    words = set(re.findall(r"[a-z]+", described[1].lower())) - {"the", "words", "and"}
    verdicts = []
    for passage in passages_of(text):
        looked_at = " ".join(re.findall("<<(.*?)>>", passage)) if "<<" in passage else passage
        verdicts.append(int(bool(words & set(looked_at.lower().split()))))
    return str(verdicts)


def odd_one_out(passages):
    """Number of the first passage whose marked words are in the fewest others."""
    marked = [{word.strip() for word in re.findall("<<(.*?)>>", passage)} for passage in passages]
    alike = [sum(bool(one & other) for other in marked) for one in marked]
    return str(int(np.argmin(alike)) + 1)


class Scripted:
    def __init__(self, answer=reader, *, name="scripted", capabilities=(), ahead=8):
        self._name, self._answer, self.ahead = name, answer, ahead
        self.capabilities = frozenset(capabilities)
        self.seen = []
        self.most_ahead = 0

    @property
    def name(self):
        return self._name

    def identity(self):
        return {"model": self._name}

    def count_tokens(self, requests):
        return [sum(len(m.content.split()) for m in request.messages) for request in requests]

    def complete(self, requests):
        coming, flying = iter(requests), deque()
        while True:
            while len(flying) < self.ahead and (request := next(coming, None)) is not None:
                self.seen.append(request)
                flying.append(request)
            self.most_ahead = max(self.most_ahead, len(flying))
            if not flying:
                return
            yield self._reply(flying.popleft())

    def _reply(self, request):
        said = self._answer(request)
        reply = said if isinstance(said, Reply) else Reply("ok", text=said)
        if reply.status == "ok" and request.choice is not None and reply.text not in request.choice:
            reply = replace(reply, text=request.choice[0])
        (tokens,) = self.count_tokens([request])
        return replace(reply, prompt_tokens=tokens, completion_tokens=len(reply.text.split()), cost_usd=0.001)


def with_logprobs(text, certainty=0.9):
    """A reply of one token per character, each digit with its twin at the rest of the probability."""
    sure, unsure = float(np.log(certainty)), float(np.log(1 - certainty))
    tokens = tuple(
        TokenLogprobs(c, sure, ((c, sure), ("10"[int(c)], unsure))) if c in "01" else TokenLogprobs(c, -0.01)
        for c in text
    )
    return Reply("ok", text=text, logprobs=tokens)


class Everything:
    """A judge that finds every latent active in every context."""

    name, embedder, decides = "everything", "", True

    def identity(self):
        return {"judge": self.name}

    def judge(self, questions):
        for question in questions:
            n = len(question.tokens)
            yield Answer(np.ones(n, np.float32), np.ones(n, bool), None, None)
