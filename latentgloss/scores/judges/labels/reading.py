"""Reading a label: the items that it names, in the order in which it names them.

What belongs here: the words by which labels speak. Nothing is read or written.

- Quoted text is taken as it is: 'the' names the word "the", 'dict' the word "dict". Quoted text that ends in an
  ellipsis or follows "begin with" is a prefix.
- Names of marks and classes stand for these: "numbers", "line breaks", "commas".
- What is named as standing before ("what follows 'import'", "after 'the'") is not read.
- Other words count unless they say nothing: those in `STOP`, and those that are frequent in the corpus (the caller says
  which). For a language without such a list, that is the only rule.
- What follows "at times", "some" or "about" is *hedged*, up to the next semicolon or full stop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentgloss.explanations.labels.units import LINE, NUMBER, UnitReader
from latentgloss.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 64
"""Most items that are read of a label."""
_LONGEST = 1000
"""Most characters that are read of a word."""

_STOP = """
a about above after again all also although am among an and another any anything are as at be because been before
being below between both but by can could did do does doing down during each either else etc even ever every few for
from further had has have having he her here hers him his how however i if in into is it its itself just like may me
might more most much must my near neither no nor not of off on one only onto or other others our out over own per
rather same shall she should sign signs so such than that the their them then there these they this those through thus
to too toward two under until up upon us use used uses using very via was we were what when where whether which while
who whom whose why will with within without would you your

activates activating active activation almost always assorted begin begins clear context contexts explanation feature
fires firing latent letters list mainly mostly neuron often passage passages pattern phrase phrases references related
specifically start starts strongly term terms text texts token tokens usually various word words
"""
STOP = frozenset(_STOP.split())
"""English words that are not read unless they are quoted: function words, and what labels say about themselves."""

_MARKS: tuple[tuple[str, str], ...] = (
    (r"numbers?|digits?|numerals?", NUMBER),
    (r"line breaks?|new ?lines?", LINE),
    (r"commas?", ","),
    (r"full stops?|periods?", "."),
    (r"semi-?colons?", ";"),
    (r"colons?", ":"),
    (r"opening (?:parenthes[ei]s|round brackets?)", "("),
    (r"closing (?:parenthes[ei]s|round brackets?)", ")"),
    (r"parenthes[ei]s|round brackets?", "()"),
    (r"opening square brackets?", "["),
    (r"closing square brackets?", "]"),
    (r"square brackets?", "[]"),
    (r"opening (?:curly brackets?|braces?)", "{"),
    (r"closing (?:curly brackets?|braces?)", "}"),
    (r"curly brackets?|braces?", "{}"),
    (r"opening brackets?", "([{<"),
    (r"closing brackets?", ")]}>"),
    (r"brackets?", "()[]{}<>"),
    (r"double quot(?:es?|ation marks?)", '"“”'),
    (r"single quot(?:es?|ation marks?)|apostrophes?", "'‘’"),
    (r"quot(?:es?|ation marks?)", "'\"`“”‘’«»"),
    (r"back-?ticks?", "`"),
    (r"question marks?", "?"),
    (r"exclamation marks?", "!"),
    (r"ends? of sentences?", ".!?…。！？"),
    (r"equals? signs?", "="),
    (r"plus signs?", "+"),
    (r"percent signs?", "%"),
    (r"at signs?", "@"),
    (r"asterisks?", "*"),
    (r"ampersands?", "&"),
    (r"vertical bars?|pipes?", "|"),
    (r"back-?slash(?:es)?", "\\"),
    (r"slash(?:es)?", "/"),
    (r"underscores?", "_"),
    (r"hyphens?", "-"),
    (r"dash(?:es)?", "—–"),
    (r"carets?", "^"),
    (r"tildes?", "~"),
    (r"punctuation(?: marks?)?", ".,;:!?'\"()[]{}<>-—–…/\\|`*_=+%&@^~。、，；：！？「」（）"),
)
"""Names of types, and the types that each stands for; of several that match, the first."""
_QUOTED = (
    r"(?<!\w)'(?P<q1>\S(?:[^']|'(?=\w)){0,80}?)'(?!\w)",
    r"(?<!\w)‘(?P<q2>\S.{0,80}?)’(?!\w)",
    r"\"(?P<q3>[^\"]{1,80})\"",
    r"[“„](?P<q4>[^“”]{1,80})[”“]",
    r"«(?P<q5>[^»]{1,80})»",
    r"「(?P<q6>[^」]{1,80})」",
)
"""Quoted text; an apostrophe before a letter does not end it. The bound keeps the time for any label in proportion to
its length."""
_TOKEN = re.compile(
    "|".join(
        (
            r"(?P<hedge>\b(?:at times|sometimes|occasionally|rarely|weakly|about|some)\b)",
            r"(?P<before>\b(?:follow|follows|following|after)\b)",
            r"(?P<prefix>\b(?:begin|start)(?:s|ning|ing)? with\b)",
            *(rf"(?P<m{i}>\b(?:{name})\b)" for i, (name, _) in enumerate(_MARKS)),
            *_QUOTED,
            r"(?P<end>[;.；。])",
            r"(?P<word>\w+(?:['’]\w+)?)",
        )
    ),
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Item:
    """What a label names at one place."""

    names: tuple[str, ...]
    """Types of units; with `prefix`, the beginning of words."""
    prefix: bool = False
    hedged: bool = False


def items_of(label: str, frequent: Callable[[str], bool] = lambda word: False) -> list[Item]:
    """The items of a label in the order in which they are named; one more than `MOST` if there are more.

    `frequent`: whether a word is so frequent in the corpus that it is not read unless it is quoted.
    """
    found: list[Item] = []
    hedged = prefix = before = False
    for match in _TOKEN.finditer(label):
        kind, said = str(match.lastgroup), match.group(str(match.lastgroup))
        if kind in ("hedge", "end"):
            hedged = kind == "hedge"
        elif kind == "prefix":
            prefix = True
        elif kind == "before":
            before = True
        elif kind == "word":
            words = [unit for unit in types_of(said) if is_word(unit)]
            found += [Item((w,), hedged=hedged) for w in words if w not in STOP and not frequent(w)]
        else:
            named = _quoted(said, prefix, hedged) if kind[0] == "q" else [_marks(int(kind[1:]), hedged)]
            found += [] if before else named
            prefix = before = False
        if len(found) > MOST:
            break
    return found[: MOST + 1]


def types_of(text: str) -> list[str]:
    """The types of the units of a text: those of a window whose only token is this text."""
    reader = UnitReader(Vocabulary([text[:_LONGEST]]))
    return [reader.types[number] for number in reader(np.zeros(1, dtype=np.uint32)).types]


def is_word(unit: str) -> bool:
    """Whether a type is a word."""
    return unit[0].isalpha()


def _marks(number: int, hedged: bool) -> Item:
    """The item that an entry of `_MARKS` names."""
    return Item(tuple(_MARKS[number][1]), hedged=hedged)


def _quoted(said: str, prefix: bool, hedged: bool) -> list[Item]:
    """The items of quoted text: a prefix, or each of its units."""
    stem = said.rstrip("…*") if len(said) > 1 else said
    units = types_of(stem)
    prefix |= stem != said
    if prefix and len(units) == 1 and is_word(units[0]):
        return [Item((units[0],), True, hedged)]
    return [Item((unit,), hedged=hedged) for unit in units]
