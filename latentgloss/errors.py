"""Every error that latentgloss raises on purpose.

An error addresses the person who can fix its cause: the message says what was found, what was expected and
what to do. Code that catches one handles a *partition* that failed, while the other partitions continue. It never
handles a single row, because a row that failed is data, with a status and a reason (see `latentgloss.schema`).

Errors are written to the store, to Dagster's event log and to the terminal, so no error contains a key or a password:
`without_secrets` removes those that were read in this process (`hide`), and whatever has the form of one.
"""

from __future__ import annotations

import base64
import html
import json
import re
from urllib.parse import quote, quote_plus

from latentgloss.machine.printable import printable

SHORTEST_SECRET = 5
"""Characters of the shortest secret that is removed; a shorter one would be found inside ordinary words."""
_HIDDEN: set[str] = set()
_FORMS = (
    (re.compile(r"(?<=://)[^/\s'\"<>]*@"), "[hidden]@"),  # a login in an address
    (  # a header or an assignment that holds a key
        re.compile(
            r"(?i)\b((?:proxy-)?authorization|x-api-key|api[-_]?key|(?:set-)?cookie)"
            r"(['\"]?\s*[:=]\s*(?:b(?=['\"]))?['\"]?|['\"],\s*b?['\"])(?!b?['\"])"
            r"(?:(?:bearer|basic|token)\s+)?[^\s'\",;)}\]…\[]+"
        ),
        r"\1\2[hidden]",
    ),
    (re.compile(r"(?i)\b(bearer)\s+[a-z0-9._~+/=-]{8,}"), r"\1 [hidden]"),
    (  # a key in the query of an address
        re.compile(r"(?i)([?&](?:[a-z-]*key|[a-z_-]*token|sig|signature|password|secret|x-amz-[a-z-]+)=)[^&\s'\"]+"),
        r"\1[hidden]",
    ),
    (re.compile(r"\b(?:sk-|gsk_|hf_|ghp_|xai-|AIza)[A-Za-z0-9_-]{16,}"), "[key]"),  # keys of known vendors
)


def hide(secret: str) -> None:
    """Removes a secret from the text of every later error of this process, however a library quotes it."""
    for text in (secret, secret.strip()):
        if len(text.strip()) < SHORTEST_SECRET:
            continue
        raw = text.encode("utf-8", "surrogateescape")
        _HIDDEN.update((text, repr(text)[1:-1], repr(raw)[2:-1], html.escape(text), base64.b64encode(raw).decode()))
        _HIDDEN.update((quote(raw, safe=""), quote_plus(raw), json.dumps(text)[1:-1], text.replace("/", "\\/")))


def without_secrets(text: str) -> str:
    """A text without keys and passwords."""
    for secret in sorted(_HIDDEN, key=len, reverse=True):
        text = text.replace(secret, "[key]")
    for form, shown in _FORMS:
        text = form.sub(shown, text)
    return text


class LatentglossError(Exception):
    """Base class of all errors here. `found`, `expected` and `todo` stay separate for `--json` output and pages.

    The message holds no control characters, whatever the file that it quotes holds.
    """

    def __init__(self, found: str, *, expected: str = "", todo: str = "") -> None:
        self.found, self.expected, self.todo = (without_secrets(text) for text in (found, expected, todo))
        parts = [self.found if self.found.endswith("?") else self.found.rstrip(".") + "."]
        if self.expected:
            parts.append(f"Expected: {self.expected.rstrip('.')}.")
        if self.todo:
            parts.append(f"What to do: {self.todo.rstrip('.')}.")
        super().__init__(printable(" ".join(parts), lines=True))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not pickle by default, and errors cross process boundaries.
        return (_rebuild, (type(self), self.found, self.expected, self.todo))


def _rebuild(kind: type[LatentglossError], found: str, expected: str, todo: str) -> LatentglossError:
    return kind(found, expected=expected, todo=todo)


class SettingsError(LatentglossError):
    """The settings file `latentgloss.toml` is missing or invalid."""


class RegistryError(LatentglossError):
    """A registry entry is invalid or names a model that is not declared, or the registry folder does not exist."""


class StoreError(LatentglossError):
    """A file in the store is missing, altered or truncated, or data cannot be written to the store."""


class CorpusError(LatentglossError):
    """The corpus cannot be read or contains no usable text."""


class SubjectError(LatentglossError):
    """The subject model cannot be loaded, or does not have the given hookpoint."""


class SaeError(LatentglossError):
    """An SAE's files are missing, corrupt or of an unsupported format, or do not fit the model."""


class EmbedderError(LatentglossError):
    """An embedder cannot be loaded, or stored vectors come from another embedder."""


class LanguageModelError(LatentglossError):
    """A language model cannot be reached, lacks a capability that a request needs, or has no budget left."""


class PromptError(LatentglossError):
    """A prompt file is missing or malformed, or is filled in with variables other than its own."""


class ExplainerError(LatentglossError):
    """An explainer, or the reader of a stored or imported explanation, was given input that it cannot use."""


class ScorerError(LatentglossError):
    """A scorer or judge was given a question that it cannot answer."""


class MissingInput(LatentglossError):
    """A stage cannot run because one of its inputs has not been materialised."""


class InputError(LatentglossError):
    """A request from the command line or a page names something that does not exist or is out of range."""
