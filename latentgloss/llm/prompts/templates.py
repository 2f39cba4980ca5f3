"""Prompts: read from `prompts/`, filled in, and told apart by hash.

What belongs here: the form of a prompt's file and how it becomes the messages of a request. A file has sections, each
begun by a line `=== NAME`:

    system                what is the same for every request
    user, assistant …     worked examples, in turns
    user                  what is asked: the only section with variables, beside
    repair                what is said once when a reply cannot be read

What differs between requests thus comes last, after everything they share, so that a server computes the shared part
once. Variables are `$name` (`string.Template`); one that is missing, or given and not used, is an error. Values are
put in as they are and not read again: whoever gives corpus text has quoted it (`quoting.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from latentgloss.errors import PromptError
from latentgloss.llm.prompts.quoting import readable
from latentgloss.protocols import Message
from latentgloss.store.digests import json_sha256, text_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence


PACKAGE = "latentgloss.llm.prompts"


@dataclass(frozen=True)
class Prompt:
    """One prompt. `sha256` is of the file: whatever in it changes makes what was made with it stale."""

    name: str
    sha256: str
    shared: tuple[Message, ...]
    """System and examples."""
    asked: str
    repair: str

    def messages(self, **values: str) -> tuple[Message, ...]:
        """The messages of a request. Raises PromptError unless `values` are exactly the variables of the prompt."""
        return (*self.shared, Message("user", self._filled(self.asked, "user", values)))

    def repaired(self, messages: tuple[Message, ...], reply: str, **values: str) -> tuple[Message, ...]:
        """The same request with a reply that could not be read, and what is wrong with it."""
        again = Message("user", self._filled(self.repair, "repair", values))
        # Servers refuse empty messages; a reply without end need not be read again, and what shows what it is not
        # cannot be taken for a message of its own.
        return (*messages, Message("assistant", harmless(reply.strip()[:LONGEST_QUOTED_REPLY]) or "(nothing)"), again)

    def _filled(self, text: str, section: str, values: dict[str, str]) -> str:
        wanted = set(Template(text).get_identifiers())
        if wanted != values.keys():
            raise PromptError(
                f"prompt {self.name!r}, section {section!r}, was given {sorted(values)}",
                expected=f"exactly its variables {sorted(wanted)}",
                todo=f"correct latentgloss/prompts/{self.name}.txt or whoever fills it in",
            )
        return Template(text).substitute(values)


def harmless(reply: str) -> str:
    """A reply line by line, without what is not seen and without control tokens."""
    return "\n".join(readable(line) for line in reply.splitlines())


LONGEST_QUOTED_REPLY = 1000
"""Characters of a reply that is shown to the model again."""


@cache
def prompt(name: str) -> Prompt:
    """The prompt of that name. Raises PromptError if there is none, or its file is not of the form above."""
    path = files(PACKAGE) / f"{name}.txt"
    if not path.is_file():
        raise PromptError(f"there is no prompt {name!r}", expected=f"one of {', '.join(names())}")
    return parsed(name, path.read_text("utf-8"))


def names() -> list[str]:
    """All prompts there are."""
    return sorted(path.name.removesuffix(".txt") for path in files(PACKAGE).iterdir() if path.name.endswith(".txt"))


def parsed(name: str, text: str) -> Prompt:
    """A prompt from the text of its file. Raises PromptError."""
    sections: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("=== "):
            sections.append((line[4:].strip(), []))
        elif sections:
            sections[-1][1].append(line)
        elif line.strip():
            raise _malformed(name, f"text before the first section: {line!r}")
    roles = [role for role, _ in sections]
    turns = roles[1:-2]
    if len(roles) < 3 or roles[0] != "system" or roles[-2:] != ["user", "repair"]:
        raise _malformed(name, f"sections {roles}")
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise _malformed(name, f"sections {roles}")
    bodies = ["\n".join(lines).strip("\n") for _, lines in sections]
    if not all(body.strip() for body in bodies):
        raise _malformed(name, "an empty section")
    for body in bodies[-2:]:
        if not Template(body).is_valid():
            raise _malformed(name, "a '$' that begins no variable")
    shared = [Message(role, body) for role, body in zip(roles[:-2], bodies, strict=False)]  # type: ignore[arg-type]
    return Prompt(name, text_sha256(text), tuple(shared), bodies[-2], bodies[-1])


def _malformed(name: str, found: str) -> PromptError:
    return PromptError(
        f"prompts/{name}.txt has {found}",
        expected="sections system, then user and assistant in turns, then user, then repair",
        todo="correct the file",
    )


def messages_sha256(messages: Sequence[Message]) -> str:
    """Hash of what a model is shown."""
    return json_sha256([[message.role, message.content] for message in messages])


def as_text(messages: Sequence[Message]) -> str:
    """Messages for a person to read."""
    return "\n\n".join(f"=== {message.role}\n{message.content}" for message in messages)
