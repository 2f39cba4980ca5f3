r"""Writes a pattern as one sentence, and reads the sentence back.

What belongs here: the grammar. The sentence states every rule: `parse_text(text(p)) == p` up to the order of the rules,
which has no meaning. The weight of the whole window (`rules.SUPPORT`) is the same for all patterns, so the sentence
does not mention it.

    Fires almost always on 'import' or " from"; sometimes on 'depr…' or a number; very rarely on anything else;
    more often right after 'the'; much less often right after "\n".

* `" from"` is exactly that token, blank space included. `\n`, `\t`, `\\`, `\"` and `\u00a0` are escapes as in JSON.
  `" x"#123` gives the token's id, because several tokens read alike.
* `'import'` is the word in any case and with any blank space around it.
* `'depr…'` is every longer word with this beginning, in any case.
* `a number` and its like are classes (`vocabulary.CLASSES`).
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from latentgloss.errors import ExplainerError
from latentgloss.explanations.explainers.pattern.rules import LEVELS, SHIFTS, Item, Pattern, Rule
from latentgloss.models.vocabulary import CLASSES

if TYPE_CHECKING:
    from latentgloss.models.vocabulary import Vocabulary


ELSE = "anything else"
"""What stands for all tokens that no `fires` rule names."""
AFTER = "right after"
"""What introduces the items of an `after` rule."""

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
_QUOTED = re.compile(r"""(?P<q>["'])(?P<body>(?:\\.|(?!(?P=q))[^\\])*)(?P=q)(?:\#(?P<id>\d+))?""", re.DOTALL)
_CLASS = re.compile("|".join(re.escape(name) for name in sorted(CLASSES, key=len, reverse=True)))
_ESCAPED = re.compile(r"\\(u[0-9a-f]{4}|U[0-9a-f]{8}|.)", re.DOTALL)


def text(pattern: Pattern) -> str:
    """The pattern as one sentence."""
    fires = sorted((rule for rule in pattern.rules if rule.form == "fires"), key=lambda rule: -rule.value)
    clauses = [
        *(f"{LEVELS[rule.value]} on {_list(rule.items, pattern.vocabulary)}" for rule in fires),
        f"{LEVELS[pattern.otherwise]} on {ELSE}",
        *(
            f"{SHIFTS[rule.value]} {AFTER} {_list(rule.items, pattern.vocabulary)}"
            for rule in pattern.rules
            if rule.form != "fires"
        ),
    ]
    return f"Fires {'; '.join(clauses)}."


def token_text(token: int, vocabulary: Vocabulary) -> str:
    """A token in double quotes, readable and unambiguous."""
    shown = vocabulary.strings[token]
    mark = f"#{token}" if len(vocabulary.ids_of[shown]) > 1 else ""
    return f'"{_escape(shown, chr(34))}"{mark}'


def _list(items: tuple[Item, ...], vocabulary: Vocabulary) -> str:
    shown = [_item(item, vocabulary) for item in items]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def _item(item: Item, vocabulary: Vocabulary) -> str:
    if item.kind == "token":
        return token_text(int(item.name), vocabulary)
    if item.kind == "class":
        return str(item.name)
    return f"'{_escape(str(item.name), chr(39))}{'…' if item.kind == 'prefix' else ''}'"


def _escape(raw: str, quote: str) -> str:
    return "".join(_escaped(c, quote) for c in raw)


def _escaped(c: str, quote: str) -> str:
    if c in _ESCAPES:
        return _ESCAPES[c]
    if c == quote:
        return "\\" + c
    # Marks (M) combine with the character before them, and control characters (C) and spaces (Z) cannot be seen. The
    # ellipsis means "and so on" in the sentence.
    if c == "…" or (c != " " and unicodedata.category(c)[0] in "CMZ"):
        return f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
    return c


def _unescape(shown: str) -> str:
    plain = {"n": "\n", "t": "\t", "r": "\r"}

    def character(match: re.Match[str]) -> str:
        body = match.group(1)
        return chr(int(body[1:], 16)) if len(body) > 1 else plain.get(body, body)

    return _ESCAPED.sub(character, shown)


def parse_text(sentence: str, vocabulary: Vocabulary) -> Pattern:
    """The pattern that a sentence states.

    Raises ExplainerError if the sentence breaks the grammar, or names a token or group that the vocabulary lacks.
    """
    reader = _Reader(sentence, vocabulary)
    reader.word("Fires ")
    rules: list[Rule] = []
    otherwise: int | None = None
    while True:
        level = reader.one_of([f"{name} on " for name in LEVELS])
        if level is not None:
            if reader.one_of([ELSE]) is None:
                rules.append(Rule("fires", level, reader.items()))
            elif otherwise is not None:
                raise reader.error(f"only one clause on {ELSE!r}")
            else:
                otherwise = level
        else:
            rules.append(reader.shift())
        if reader.one_of(["; "]) is None:
            break
    reader.word(".")
    if otherwise is None or reader.at != len(sentence):
        raise reader.error(f"one clause on {ELSE!r}, and then the end of the sentence")
    return Pattern(otherwise, tuple(rules), vocabulary)


class _Reader:
    """Reads a sentence from left to right. All methods but `one_of` raise ExplainerError if the words do not fit."""

    def __init__(self, sentence: str, vocabulary: Vocabulary) -> None:
        self.sentence, self.vocabulary, self.at = sentence, vocabulary, 0

    def error(self, expected: str) -> ExplainerError:
        """The error that the next words are not what is expected."""
        return ExplainerError(
            f"the sentence reads {self.sentence[self.at : self.at + 30]!r} at character {self.at}",
            expected=expected,
            todo="use a sentence as `sentence.text` writes it",
        )

    def one_of(self, words: list[str]) -> int | None:
        """Reads the one of `words` that comes next, and returns its index; None if none of them comes next."""
        for i, word in sorted(enumerate(words), key=lambda pair: -len(pair[1])):
            if self.sentence.startswith(word, self.at):
                self.at += len(word)
                return i
        return None

    def word(self, word: str) -> None:
        """Reads `word`."""
        if self.one_of([word]) is None:
            raise self.error(repr(word))

    def shift(self) -> Rule:
        """Reads an `after` rule."""
        steps = list(SHIFTS)
        step = self.one_of([f"{SHIFTS[s]} " for s in steps])
        if step is None or self.one_of([f"{AFTER} "]) is None:
            raise self.error("a level (`often on …`) or a shift (`more often right after …`)")
        return Rule("after", steps[step], self.items())

    def items(self) -> tuple[Item, ...]:
        """Reads a list of items."""
        found = [self.item()]
        while self.one_of([", ", " or "]) is not None:
            found.append(self.item())
        return tuple(found)

    def item(self) -> Item:
        """Reads a token, a word, the beginning of a word or a class."""
        if match := _CLASS.match(self.sentence, self.at):
            self.at = match.end()
            return Item("class", match.group())
        match = _QUOTED.match(self.sentence, self.at)
        if match is None:
            raise self.error("a token in double quotes, a word in single quotes, or a class")
        body = match.group("body")
        if match.group("q") == "'":
            kind = "prefix" if body.endswith("…") else "word"
            item = Item(kind, _unescape(body.removesuffix("…")))
        else:
            item = Item("token", self.token(_unescape(body), match.group("id")))
        self.vocabulary.group(item.kind, item.name)
        self.at = match.end()
        return item

    def token(self, raw: str, number: str | None) -> int:
        """The id of the token that reads `raw`. `number`: the id given in the sentence, if there is one."""
        ids = self.vocabulary.ids_of.get(raw, [])
        if number is not None and int(number) in ids:
            return int(number)
        if number is None and len(ids) == 1:
            return ids[0]
        raise self.error(f"a token of the vocabulary (the ids of tokens that read {raw!r} are {ids})")
