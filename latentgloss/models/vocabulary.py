"""The vocabulary of a subject model: the string, bytes, word, prefix and class of each token id.

What belongs here: grouping token ids in the ways in which explanations name them, and finding groups by name. It is
built in memory from the decoded token ids; nothing is read or written. Explainers, judges and prompts use it instead of
a tokenizer, so that they do not import transformers.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from latentgloss.errors import ExplainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jaxtyping import Int32, Int64, UInt32


UNREADABLE = chr(0xFFFD)
"""The character to which bytes that form no character by themselves are decoded."""

PREFIX = 4
"""Letters that two words must share at the start to count as related ("import", "imported")."""

KINDS = ("class", "prefix", "word", "token")
"""Ways to name a set of tokens, from the most general to the most specific."""

CLASSES = (
    "a line break",
    "blank space",
    "a number",
    "a word in capitals",
    "a capitalised word",
    "a lower-case word",
    "a capitalised piece of a word",
    "a lower-case piece of a word",
    "an opening bracket",
    "a closing bracket",
    "a quotation mark",
    "other punctuation",
    "any other symbol",
)
"""Classes of tokens; each token is in exactly one. A *word* starts with a space, a *piece* continues without one."""


class Vocabulary:
    """Token ids and their texts, grouped in the ways that `KINDS` lists.

    It is built once per tokenizer (about 0.2 s for 50,000 tokens) from the text to which each token id decodes.
    """

    def __init__(
        self, strings: Sequence[str], data: Sequence[bytes] | None = None, special: Iterable[int] = ()
    ) -> None:
        """`data` holds the bytes that each token adds to a text (`tokenizer.token_bytes`); by default, its string's."""
        self.strings = tuple(strings)
        self.data = tuple(text.encode("utf-8", "replace") for text in strings) if data is None else tuple(data)
        self.special = frozenset(special)
        """Ids of special tokens, which stand for no text."""
        folded = [_word(text) for text in self.strings]
        self._names: dict[str, tuple[str, ...]] = {"class": CLASSES}
        self._groups: dict[str, Int32[np.ndarray, " vocabulary"]] = {
            "class": np.array([_class(text) for text in self.strings], dtype=np.int32),
            "token": np.arange(len(self.strings), dtype=np.int32),
        }
        self._ids: dict[str, tuple[Int64[np.ndarray, " vocabulary"], Int64[np.ndarray, " groups"]]] = {}
        for kind, keys in (("word", folded), ("prefix", [_prefix(word) for word in folded])):
            self._names[kind], self._groups[kind] = _numbered(keys)

    def __len__(self) -> int:
        return len(self.strings)

    def groups(self, kind: str) -> Int32[np.ndarray, " vocabulary"]:
        """For each token id, the number of its group of this kind; -1 if it has none (blank space is not a word)."""
        return self._groups[kind]

    def ids(self, kind: str, group: int) -> Int64[np.ndarray, " ids"]:
        """The token ids in a group, ascending."""
        if kind == "token":
            return np.array([group])
        if kind not in self._ids:
            groups = self._groups[kind]
            self._ids[kind] = np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups + 1))
        order, before = self._ids[kind]
        return order[before[group] : before[group + 1]]

    def size(self, kind: str) -> int:
        """The number of groups of this kind."""
        return len(self.strings) if kind == "token" else len(self._names[kind])

    def name(self, kind: str, group: int) -> str | int:
        """The name that identifies a group outside this process: its text, or a token's id."""
        return group if kind == "token" else self._names[kind][group]

    def group(self, kind: str, name: str | int) -> int:
        """The number of the group with this name. Raises ExplainerError if the vocabulary has none."""
        found = name if isinstance(name, int) and 0 <= name < len(self) else self._numbers.get((kind, name))
        if found is None or (kind == "token") != isinstance(name, int):
            raise ExplainerError(
                f"the vocabulary has no {kind} {name!r}",
                expected="names from a pattern learnt with the same tokenizer",
                todo="use the vocabulary of the model on which the pattern was learnt",
            )
        return int(found)

    def check(self, tokens: UInt32[np.ndarray, "n length"]) -> None:
        """Raises ExplainerError if a token id is outside the vocabulary."""
        if tokens.size and int(tokens.max()) >= len(self):
            raise ExplainerError(
                f"token id {int(tokens.max())} is outside the vocabulary of {len(self)} tokens",
                expected="token ids of the vocabulary's own tokenizer",
                todo="use the vocabulary of the model for which the corpus was tokenized",
            )

    @cached_property
    def _numbers(self) -> dict[tuple[str, str | int], int]:
        return {(kind, name): i for kind, names in self._names.items() for i, name in enumerate(names)}

    @cached_property
    def ids_of(self) -> dict[str, list[int]]:
        """The ids that decode to each text. Several do if their bytes form no character and decode to U+FFFD."""
        ids: dict[str, list[int]] = {}
        for i, text in enumerate(self.strings):
            ids.setdefault(text, []).append(i)
        return ids


def _numbered(keys: list[str | None]) -> tuple[tuple[str, ...], Int32[np.ndarray, " vocabulary"]]:
    names: dict[str, int] = {}
    numbers = [-1 if key is None else names.setdefault(key, len(names)) for key in keys]
    return tuple(names), np.array(numbers, dtype=np.int32)


def _word(text: str) -> str | None:
    # A token of incomplete bytes decodes to U+FFFD, as many others do, so its text identifies no word.
    return text.strip().lower() or None if UNREADABLE not in text else None


def _prefix(word: str | None) -> str | None:
    return word[:PREFIX] if word is not None and len(word) > PREFIX and word.isalpha() else None


_SINGLE: dict[str, Callable[[str], bool]] = {
    "an opening bracket": lambda first: first in "([{<",
    "a closing bracket": lambda first: first in ")]}>",
    "a quotation mark": lambda first: first in "\"'`“”‘’«»",
    "other punctuation": lambda first: first.isascii() and first.isprintable(),
    "any other symbol": lambda _: True,
}


def _class(text: str) -> int:
    core = text.strip()
    if not core:
        return CLASSES.index("a line break" if "\n" in text else "blank space")
    if core.isdigit():
        return CLASSES.index("a number")
    if core.isalpha():
        if len(core) > 1 and core.isupper():
            return CLASSES.index("a word in capitals")
        case = "capitalised" if core[0].isupper() else "lower-case"
        return CLASSES.index(f"a {case} word" if text[0].isspace() else f"a {case} piece of a word")
    return CLASSES.index(next(name for name, fits in _SINGLE.items() if fits(core[0])))
