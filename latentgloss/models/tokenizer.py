"""The subject model's tokenizer, loaded without weights.

What belongs here: loading it, encoding texts of the corpus, and the bytes that each token adds to a text. Reads the
tokenizer's files, or converts the model's GGUF file once if they are inside it (`files.py`). How token ids are named
and grouped for people is in `vocabulary.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from latentgloss.config.entries import ModelSpec
from latentgloss.models.files import TOKENIZER_FILES, converted, gguf_of, loading, quiet, source_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(spec: ModelSpec, cache_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer without any weights. Raises SubjectError if files are missing or cannot be loaded."""
    folder = tokenizer_folder(spec, cache_dir)
    with quiet(), loading(spec, folder):
        return tokenizer_in(folder)


def token_texts(spec: ModelSpec, cache_dir: Path, ids: Sequence[int]) -> list[str]:
    """What some token ids decode to, each by itself; special tokens as "". Loads no transformers where it can.

    For a line on a screen: `Vocabulary` has every token of a model and takes seconds. Raises SubjectError.
    """
    file = tokenizer_folder(spec, cache_dir) / "tokenizer.json"
    if not file.is_file():
        tokenizer = load_tokenizer(spec, cache_dir)
        return tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=True)
    with loading(spec, file.parent):
        fast = _fast_tokenizer(file)
    return [fast.decode([i], skip_special_tokens=True) for i in ids]


@cache
def _fast_tokenizer(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without BOS. The name of a special token inside a text is encoded as ordinary text."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def token_bytes(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> list[bytes]:
    """The bytes that each token adds to a text. `strings` holds the text to which each id decodes by itself.

    A token may contain a part of a character, which by itself decodes to U+FFFD, or a space, which decoding drops at
    the start of a text. Both follow from the token's spelling: the byte-level alphabet of GPT-2, `<0x..>`, or `▁`. A
    token with another spelling keeps the bytes of its string.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    separate = backend is not None and backend.decoder is None  # such tokens are words, which are joined with spaces
    alphabet = _byte_alphabet()
    found: list[bytes] = []
    for spelling, text in zip(tokenizer.convert_ids_to_tokens(list(range(len(strings)))), strings, strict=True):
        spelling = spelling or ""
        data = text.encode("utf-8", "replace")
        if separate or (spelling.startswith("▁") and spelling.replace("▁", " ") == " " + text):
            data = b" " + data
        elif "\ufffd" in text:
            if len(spelling) == 6 and spelling.startswith("<0x"):
                data = bytes([int(spelling[3:5], 16)])
            elif all(c in alphabet for c in spelling):
                spelt = bytes(alphabet[c] for c in spelling)
                data = spelt if spelt.decode("utf-8", "replace") == text else data
        found.append(data)
    return found


def _byte_alphabet() -> dict[str, int]:
    """The byte for each character of byte-level vocabularies (GPT-2's alphabet).

    A visible character stands for its own byte; the other bytes have characters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {**{chr(b): b for b in visible}, **{chr(0x100 + i): b for i, b in enumerate(hidden)}}


def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises transformers' own errors; callers use `files.loading`."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return tokenizer


def tokenizer_folder(spec: ModelSpec, cache_dir: Path) -> Path:
    """The folder of the tokenizer and of `config.json`. Converts a GGUF file once. Raises SubjectError."""
    folder = source_folder(spec, [*TOKENIZER_FILES, "config.json"])
    return converted(spec.model_copy(update={"rerandomise": None}), cache_dir, folder) if gguf_of(folder) else folder
