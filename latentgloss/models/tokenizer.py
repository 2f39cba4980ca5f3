"""The subject model's tokenizer, loaded without weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentgloss.config.entries import ModelSpec
from latentgloss.models.files import TOKENIZER_FILES, converted, gguf_of, quiet, readable, source_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(spec: ModelSpec, cache_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer alone; no weights are loaded. Raises SubjectError as `load_subject` does."""
    folder = _tokenizer_folder(spec, cache_dir)
    with quiet(), readable(spec, folder):
        return tokenizer_in(folder)


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without BOS. A special token's name in a text is text: it must not end a document."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def token_bytes(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> list[bytes]:
    """The bytes that each token adds to a text. `strings`: what each id decodes to by itself.

    A token may hold a part of a character, which by itself decodes to U+FFFD, or a space that decoding at the start of
    a text leaves out. Both are found in the token's own spelling: the byte-level alphabet of GPT-2, `<0x..>`, or `▁`.
    What is spelt in no known way keeps the bytes of its string.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    separate = backend is not None and backend.decoder is None  # such tokens are words, put together with spaces
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
    """The character that stands for each byte in byte-level vocabularies: itself if it is seen, else from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in seen]
    return {**{chr(b): b for b in seen}, **{chr(0x100 + i): b for i, b in enumerate(hidden)}}


def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def _tokenizer_folder(spec: ModelSpec, cache_dir: Path) -> Path:
    folder = source_folder(spec, [*TOKENIZER_FILES, "config.json"])
    return converted(spec.model_copy(update={"rerandomise": None}), cache_dir, folder) if gguf_of(folder) else folder
