"""What the text of a reply says: without thinking, leaked control tokens and markup around the answer.

What belongs here: removing what models and servers put around an answer, in the forms that are known. What the answer
must look like is up to explainers and judges. The text of a reply is kept as it arrived; it is cleaned whenever it is
read. Nothing is guessed: only thinking before the answer, control tokens at its two ends and markup around all of it
are removed.
"""

from __future__ import annotations

import re

_NAMES = r"(?:[\w-]+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
_OPEN = re.compile(
    rf"<{_NAMES}\s*>|\[THINK(?:ING)?\]|<\|(?:begin_of_thought|start_thinking|think(?:ing)?|inner_prefix)\|>|◁think▷"
    r"|<\|channel\|>\s*(?:analysis|commentary)|<\|channel>\s*thought|Here(?: i|['’])s my thought process:",
    re.IGNORECASE,
)
"""Begins thinking, if it stands at the beginning of a reply."""
_CLOSE = re.compile(
    rf"</{_NAMES}\s*>|\[/THINK(?:ING)?\]|<\|(?:end_of_thought|end_thinking|/think(?:ing)?|inner_suffix)\|>|◁/think▷"
    r"|<\|channel\|>\s*final\b[^<\n]*(?:<\|constrain\|>[^<\n]*)?<\|message\|>|<channel\|>",
    re.IGNORECASE,
)
"""Ends thinking. Many chat templates write the opening tag into the prompt, so that a reply has this one alone."""
_UNTAGGED = re.compile(
    r"\A\s*analysis(?=\S).*?assistantfinal(?:json)?"
    r"|\A\s*Here(?: i|['’])s my thought process:.*\bHere(?: i|['’])s my response:",
    re.DOTALL | re.IGNORECASE,
)
"""Thinking without tags: gpt-oss where its control tokens are not shown, and Granite."""

_TOKEN = (
    r"(?:<[|｜][^<>|｜\s]{1,40}[|｜]>|</?s>|<(?:bos|eos|eot|eod|pad|end_of_turn|start_of_turn|end_of_utterance|turn\|)>"
    r"|\[/?INST\])"
)
"""A control token of a chat template."""
_END = re.compile(rf"{_TOKEN}(?=\s*(?:\Z|\n|{_TOKEN}))", re.IGNORECASE)
"""A control token that ends a reply. One in the middle of a line is a part of the text."""
_TURN_END = re.compile(
    r"(?:<\|(?:im_end|eot_id|eom_id|endoftext|end_of_text|return)\|>|</s>|<(?:eos|end_of_turn)>"
    rf"|<[|｜]end[▁_]of[▁_]sentence[|｜]>)(?=\s*(?:\Z|\n|{_TOKEN}))",
    re.IGNORECASE,
)
"""Of these tokens, those that never stand between thinking and the answer."""
_HEADER = re.compile(
    r"\A(?:\s*(?:<s>|<bos>|<\|(?:begin_of_text|startoftext|endoftext)\|>))*"
    r"(?:\s*(?:<\|(?:im_start|start_header_id|start|start_of_role)\|>|<start_of_turn>)\s*(?:assistant|model)"
    r"(?:\s*<\|(?:end_header_id|message|im_sep|end_of_role)\|>)?|\s*<[|｜]assistant[|｜]>|\s*\[/INST\])?",
    re.IGNORECASE,
)
"""The beginning of the reply's own turn, which some servers return with it."""
_ANSWER_TOKEN = re.compile(r"\A\s*<\|(?:begin_of_(?:solution|box)|start_(?:response|text))\|>", re.IGNORECASE)
"""Begins the answer after thinking, in models that have a control token for it."""
_ANSWER_TAG = re.compile(r"<(answer|response|output|final)>(?P<inside>.*)</\1>", re.DOTALL | re.IGNORECASE)
"""Tags around the answer."""

_FENCE = re.compile(r"(`{3,}|~{3,})(?:[A-Za-z][\w+-]*(?=\s))?(?P<inside>.*?)\1", re.DOTALL)
_EMPHASIS = re.compile(r"(\*{1,3}|_{1,3}|`{1,2})(?P<inside>.+?)\1", re.DOTALL)
_BOXED = re.compile(r"\$*\\boxed\{(?P<inside>.*)\}\$*", re.DOTALL)
_QUOTES = "\"'`“”‘’‹›«»"


def said(text: str) -> str:
    """The answer in a reply: what remains without thinking, control tokens and white space around it.

    Empty if the reply is empty or holds nothing but thinking. Lone surrogates become question marks.
    """
    text = without_thoughts(_ended(_without_header(storable(text)), _TURN_END))
    text = _ended(_ANSWER_TOKEN.sub("", _without_header(text)))
    tagged = _ANSWER_TAG.fullmatch(text)
    return _ended(tagged["inside"]) if tagged else text


def without_thoughts(text: str) -> str:
    """A reply without the thinking before the answer; empty if the thinking does not end.

    All text before the last closing tag is thinking, whether there is an opening tag or not. A tag in quotation marks
    is a part of the text.
    """
    ends = [found.end() for found in _CLOSE.finditer(text) if not _quoted(text, found)]
    if not ends and (untagged := _UNTAGGED.match(text)):
        ends = [untagged.end()]
    if ends:
        return text[ends[-1] :]
    return "" if _OPEN.match(text.lstrip()) else text


def only_thoughts(text: str) -> bool:
    """Whether a reply holds thinking and no answer."""
    return not said(text) and bool(_OPEN.search(text) or _CLOSE.search(text))


def unwrapped(text: str) -> str:
    """A text without the code fence, emphasis or box around all of it."""
    while True:
        text = text.strip()
        found = _FENCE.fullmatch(text) or _EMPHASIS.fullmatch(text)
        if found is not None and found[1] in found["inside"]:
            return text  # two marked parts with something between them
        found = found or _BOXED.fullmatch(text)
        if found is None:
            return text
        text = found["inside"]


def storable(text: str) -> str:
    """Text that UTF-8 can encode: lone surrogates, which a reply may contain, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _without_header(text: str) -> str:
    found = _HEADER.match(text)
    return text[found.end() :] if found else text


def _ended(text: str, end: re.Pattern[str] = _END) -> str:
    """The text up to the first control token that ends it. A model whose server does not stop there writes on."""
    text = text.strip()
    found = end.search(text)
    return text[: found.start()].strip() if found else text


def _quoted(text: str, found: re.Match[str]) -> bool:
    before, after = text[: found.start()][-1:], text[found.end() :][:1]
    return bool(before and after) and before in _QUOTES and after in _QUOTES
