"""Replies to explainers: the forms that are requested, and how they are read.

What belongs here: the two forms of a reply, and what makes a sentence unfit as an explanation, which is the same for
both. The usual form is a line after a marker; if the model supports a regular expression, the reply is
constrained to that line. If it supports only a JSON schema, a prompt of its own (`prompts/*_json.txt`) asks for an
object.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from latentgloss.llm.asking import UnparsableReply, answer_in
from latentgloss.llm.reply_text import storable, unwrapped

if TYPE_CHECKING:
    from latentgloss.protocols import Reply


LONGEST = 600
"""Most characters of an explanation; the prompts ask for forty words."""
EXPLANATION = "explanation"
"""The entry of a JSON reply that holds the explanation."""
LONGEST_LINE = 300
"""Most characters of an explanation whose reply is constrained to a line: room for somewhat more than forty words."""
LINE = rf"EXPLANATION: [^\s][^\n]{{9,{LONGEST_LINE - 2}}}\."
"""The regular expression of a reply that is constrained to a line."""

_MARKER = re.compile(r"^[\s*_#>`-]*EXPLANATION[\s*_`]*:[\s*_`]*", re.MULTILINE)
_CLOSING, _ENDS = "'\")]*_`’”» ", (".", "!", "?", "…", "。")
_NOTHING = frozenset({"", "none", "null", "nan", "na", "unknown", "unclear", "nothing", "undefined"})


def reply_schema(steps: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON schema of a reply: an object of strings, first the steps in order, then the explanation.

    It has no `maxLength`, because vendors refuse it and xgrammar (vLLM) translates it into a grammar without `\\"`: a
    sentence would then end, unnoticed, where it begins to quote a word. Lengths are checked when a reply is read.
    """
    names = [*steps, EXPLANATION]
    return {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": names,
        "additionalProperties": False,
    }


def read_explanation(reply: Reply) -> str:
    """The sentence after the marker. Raises UnparsableReply unless there is exactly one, alone on the last line."""
    text = answer_in(reply)
    found = list(_MARKER.finditer(text))
    if len(found) != 1:
        raise UnparsableReply(f"it has {len(found) or 'no'} lines that begin with EXPLANATION:")
    lines = text[found[0].end() :].strip().strip("`").splitlines()
    if len(lines) > 1:
        raise UnparsableReply("there is more after the explanation's line")
    return _sentence("".join(lines))


def read_line(reply: Reply) -> str:
    """The explanation in a reply that `LINE` demands. If only the length limit ended it, it ends in an ellipsis."""
    sentence = read_explanation(reply)
    whole = len(answer_in(reply)) < len("EXPLANATION: ") + LONGEST_LINE
    return sentence if whole else f"{sentence.rstrip('.')}…"


def read_object(reply: Reply, steps: tuple[str, ...] = ()) -> str:
    """The explanation in a reply that `reply_schema` demands.

    Raises UnparsableReply for anything else, including an object with further entries.
    """
    text = unwrapped(answer_in(reply))
    names = [*steps, EXPLANATION]
    try:
        # An object becomes a tuple of its pairs, so that an entry that occurs twice is noticed.
        found = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        raise UnparsableReply("it is not a JSON object, and that alone") from None
    pairs = found if isinstance(found, tuple) else ()
    entries = dict(pairs)
    if len(entries) != len(pairs) or entries.keys() != set(names):
        raise UnparsableReply(f"it is not a JSON object of exactly {', '.join(names)}")
    if not all(isinstance(value, str) for value in entries.values()):
        raise UnparsableReply("an entry of the object is not a text")
    sentence = storable(entries[EXPLANATION]).strip()  # JSON escapes can encode lone surrogates
    if len(sentence.splitlines()) > 1:
        raise UnparsableReply("the explanation has more than one line")
    sentence = _sentence(sentence)
    # A model that wants to quote a word may write " instead of \", which ends the string and leaves half a sentence.
    if not sentence.rstrip(_CLOSING).endswith(_ENDS):
        raise UnparsableReply("the explanation does not end in a full stop")
    return sentence


def _sentence(text: str) -> str:
    """An explanation as it is stored. Raises UnparsableReply if it says nothing or is too long."""
    sentence = " ".join(text.split()).strip("*_ ")
    if len(sentence) > 1 and sentence[0] == sentence[-1] == '"' and '"' not in sentence[1:-1]:
        sentence = sentence[1:-1].strip()
    if re.sub(r"[\W_]", "", sentence).lower() in _NOTHING:
        raise UnparsableReply("the explanation says nothing")
    if len(sentence) > LONGEST:
        raise UnparsableReply(f"the explanation has {len(sentence)} characters, more than {LONGEST}")
    return sentence
