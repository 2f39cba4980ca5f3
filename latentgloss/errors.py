"""Every error latentgloss raises on purpose.

An error is for the person who can mend it: its message says what was found, what was expected and
what to do. Code that catches one handles a *partition* that failed (the others go on), never a row:
a row that failed is data, with a status and a reason (see `schema.py`).
"""

from __future__ import annotations


class LatentglossError(Exception):
    """Base of all errors here; `found`, `expected` and `todo` are kept apart for `--json` and pages."""

    def __init__(self, found: str, *, expected: str = "", todo: str = "") -> None:
        self.found, self.expected, self.todo = found, expected, todo
        parts = [found.rstrip(".") + "."]
        if expected:
            parts.append(f"Expected: {expected.rstrip('.')}.")
        if todo:
            parts.append(f"What to do: {todo.rstrip('.')}.")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not pickle by default; runs cross processes.
        return (_rebuild, (type(self), self.found, self.expected, self.todo))


def _rebuild(kind: type[LatentglossError], found: str, expected: str, todo: str) -> LatentglossError:
    return kind(found, expected=expected, todo=todo)


class SettingsError(LatentglossError):
    """`latentgloss.toml` cannot be used as it is."""


class RegistryError(LatentglossError):
    """A model or SAE in the registry is declared wrongly, or is not declared at all."""


class StoreError(LatentglossError):
    """Something in the store is missing, altered or truncated."""


class CorpusError(LatentglossError):
    """The corpus cannot be read, or holds nothing usable."""


class SubjectError(LatentglossError):
    """The subject model cannot be loaded, or has no such hookpoint."""


class SaeError(LatentglossError):
    """A SAE's files are missing, corrupt, of an unsupported kind, or do not fit the model."""


class EmbedderError(LatentglossError):
    """An embedder cannot be loaded, or stored vectors are another embedder's."""


class LanguageModelError(LatentglossError):
    """A language model cannot be reached, lacks what is asked of it, or its budget is spent."""


class PromptError(LatentglossError):
    """A prompt's file is malformed, or it is filled in with other variables than it has."""


class ExplainerError(LatentglossError):
    """An explainer was called with something no explainer can work from."""


class ScorerError(LatentglossError):
    """A scorer or judge was called with something it cannot answer."""


class MissingInput(LatentglossError):
    """A stage was asked to run before what it reads exists."""


class InputError(LatentglossError):
    """A request (command line, page) names something that does not exist or is out of range."""
