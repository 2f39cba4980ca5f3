"""Every error that latentgloss raises on purpose.

An error addresses the person who can fix its cause: the message says what was found, what was expected and
what to do. Code that catches one handles a *partition* that failed, while the other partitions continue. It never
handles a single row, because a row that failed is data, with a status and a reason (see `latentgloss.schema`).
"""

from __future__ import annotations

from latentgloss.machine.printable import printable


class LatentglossError(Exception):
    """Base class of all errors here. `found`, `expected` and `todo` stay separate for `--json` output and pages.

    The message holds no control characters, whatever the file that it quotes holds.
    """

    def __init__(self, found: str, *, expected: str = "", todo: str = "") -> None:
        self.found, self.expected, self.todo = found, expected, todo
        parts = [found.rstrip(".") + "."]
        if expected:
            parts.append(f"Expected: {expected.rstrip('.')}.")
        if todo:
            parts.append(f"What to do: {todo.rstrip('.')}.")
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
