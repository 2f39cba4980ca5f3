"""Reads the API key of a server from the environment.

What belongs here: the one place where a key is read. A key is stripped, because mounted secrets usually end in a line
break, and checked, because an HTTP library quotes a header that it refuses. From then on, errors do not contain it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from latentgloss.errors import LanguageModelError, hide

if TYPE_CHECKING:
    from latentgloss.config.entries import LanguageModelSpec

NO_KEY = "none"
"""Sent to a server without keys, which ignores it; the client requires one."""
_AROUND = "\ufeff\u200b\x00"
"""Characters besides white space that editors and mounts leave around a key."""


def read_key(spec: LanguageModelSpec) -> str:
    """The key of a server. Raises LanguageModelError if its variable is not set or holds what no header can hold."""
    if not spec.api_key_env:
        return NO_KEY
    raw = os.environ.get(spec.api_key_env, "")
    hide(raw)
    key = raw.strip().strip(_AROUND).strip()
    hide(key)
    if not key:
        raise LanguageModelError(
            f"{spec.name}: the environment variable {spec.api_key_env} is {'empty' if raw else 'not set'}",
            expected="a variable that holds the key of this server",
            todo=f"export {spec.api_key_env}=… in the environment of the run",
        )
    wrong = next((place for place, letter in enumerate(key) if not "!" <= letter <= "~"), None)
    if wrong is not None:
        raise LanguageModelError(
            f"{spec.name}: the environment variable {spec.api_key_env} is no key: character {wrong + 1} of {len(key)} "
            f"is {_named(key[wrong])}",
            expected="printable ASCII characters without a space",
            todo="put the key alone into the variable, on one line, without a name or `Bearer` before it",
        )
    return key


def _named(letter: str) -> str:
    """What a character is, without showing it."""
    if letter in "\r\n":
        return "a line break"
    if letter.isspace():
        return "white space"
    return "a control character" if ord(letter) < 32 or ord(letter) == 127 else "not ASCII"
