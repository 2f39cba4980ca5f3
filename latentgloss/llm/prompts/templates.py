"""Prompts: reads their files, fills in their variables, and identifies them by hash.

What belongs here: the format of a prompt file and how it becomes the messages of a request. Reads `*.txt` of this
folder. A file has sections, each of which starts with a line `=== NAME`:

    system                instructions, the same for every request
    user, assistant …     worked examples, in turns
    user                  the question; together with `repair` the only section with variables
    repair                the message that follows a reply that cannot be parsed

The part that differs between requests thus comes last, after everything that they share, so that a server computes the
shared part once. Variables are `$name` (`string.Template`); a variable that is missing, or given but not used, is an
error. Values are inserted as they are and not searched for variables. The caller quotes corpus text (`quoting.py`).
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
    """One prompt. `sha256` is the hash of its file, so that any change to the file makes results made with it stale."""

    name: str
    sha256: str
    shared: tuple[Message, ...]
    """The messages that all requests share: instructions and examples."""
    asked: str
    """The question, with variables."""
    repair: str
    """The message after a reply that cannot be parsed, with variables."""

    def messages(self, **values: str) -> tuple[Message, ...]:
        """The messages of a request. Raises PromptError unless `values` are exactly the question's variables."""
        return (*self.shared, Message("user", self._filled(self.asked, "user", values)))

    def repaired(self, messages: tuple[Message, ...], reply: str, **values: str) -> tuple[Message, ...]:
        """The messages of the second request: the first one's, its unparsable reply, and the message `repair`.

        Raises PromptError unless `values` are exactly the variables of `repair`.
        """
        again = Message("user", self._filled(self.repair, "repair", values))
        # Servers refuse empty messages. A very long reply need not be shown in full. Control tokens in a reply must not
        # look like another message.
        return (*messages, Message("assistant", harmless(reply.strip()[:LONGEST_QUOTED_REPLY]) or "(nothing)"), again)

    def _filled(self, text: str, section: str, values: dict[str, str]) -> str:
        wanted = set(Template(text).get_identifiers())
        if wanted != values.keys():
            raise PromptError(
                f"prompt {self.name!r}, section {section!r}, was given the variables {sorted(values)}",
                expected=f"exactly its variables {sorted(wanted)}",
                todo=f"correct latentgloss/llm/prompts/{self.name}.txt or the code that fills it in",
            )
        return Template(text).substitute(values)


def harmless(reply: str) -> str:
    """A reply, line by line, in which invisible characters and control tokens are replaced by visible text."""
    return "\n".join(readable(line) for line in reply.splitlines())


LONGEST_QUOTED_REPLY = 1000
"""Characters of an unparsable reply that the model is shown again."""


@cache
def prompt(name: str) -> Prompt:
    """The prompt with this name. Raises PromptError if there is none, or if its file does not have the format above."""
    path = files(PACKAGE) / f"{name}.txt"
    if not path.is_file():
        raise PromptError(f"there is no prompt {name!r}", expected=f"one of {', '.join(names())}")
    return parsed(name, path.read_text("utf-8"))


def names() -> list[str]:
    """The names of all prompts, sorted."""
    return sorted(path.name.removesuffix(".txt") for path in files(PACKAGE).iterdir() if path.name.endswith(".txt"))


def parsed(name: str, text: str) -> Prompt:
    """The prompt in the text of a file. Raises PromptError if the text does not have the format above."""
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
            raise _malformed(name, "a '$' that starts no variable")
    shared = [Message(role, body) for role, body in zip(roles[:-2], bodies, strict=False)]  # type: ignore[arg-type]
    return Prompt(name, text_sha256(text), tuple(shared), bodies[-2], bodies[-1])


def _malformed(name: str, found: str) -> PromptError:
    return PromptError(
        f"latentgloss/llm/prompts/{name}.txt has {found}",
        expected="sections system, then user and assistant in turns, then user, then repair",
        todo="correct the file",
    )


def messages_sha256(messages: Sequence[Message]) -> str:
    """Hash of the roles and contents of messages."""
    return json_sha256([[message.role, message.content] for message in messages])


def as_text(messages: Sequence[Message]) -> str:
    """Messages as text for people."""
    return "\n\n".join(f"=== {message.role}\n{message.content}" for message in messages)
