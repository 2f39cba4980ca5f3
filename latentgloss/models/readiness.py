"""Readiness: whether a model can read its corpus, found from its configuration and tokenizer before anything runs.

What belongs here: checks of a registry entry that need no weights. Commands report all problems (`model_problems`); a
stage raises the first (`check_model_ready`). Reads `config.json` and the tokenizer; a GGUF file is converted once
(`files.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.errors import CorpusError, LatentglossError, SubjectError
from latentgloss.models.files import MODEL_FILES, gguf_of, loading, quiet, source_folder
from latentgloss.models.tokenizer import load_tokenizer, tokenizer_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from latentgloss.config.entries import CorpusSpec, ModelSpec


def model_problems(spec: ModelSpec, cache_dir: Path) -> list[LatentglossError]:
    """Everything that would prevent the model from reading its corpus; empty if nothing does.

    Found are: a folder without weights or config.json; a tokenizer or configuration that cannot be loaded, or that only
    code of the folder could load; no BOS or separator where `[corpus]` needs one; sequences longer than the model's
    positions; token ids beyond its embedding.
    """
    problems: list[LatentglossError] = []

    def attempt(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except LatentglossError as e:
            problems.append(e)
        return None

    attempt(lambda: _check_files(spec))
    tokenizer = attempt(lambda: load_tokenizer(spec, cache_dir))
    config = attempt(lambda: load_config(spec, cache_dir))
    if tokenizer is not None:
        attempt(lambda: bos_and_separator(tokenizer, spec.corpus))
    if config is not None:
        attempt(lambda: _check_positions(spec, config))
        if tokenizer is not None:
            attempt(lambda: _check_vocabulary(spec, config, tokenizer))
    return problems


def check_model_ready(spec: ModelSpec, cache_dir: Path) -> None:
    """Raises the first of `model_problems`."""
    for problem in model_problems(spec, cache_dir):
        raise problem


def load_config(spec: ModelSpec, cache_dir: Path) -> PretrainedConfig | None:
    """The model's configuration, without weights; None if the folder has none. Raises SubjectError."""
    from transformers import AutoConfig

    folder = tokenizer_folder(spec, cache_dir)
    if not (folder / "config.json").is_file():
        return None
    with quiet(), loading(spec, folder):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return config


def bos_and_separator(tokenizer: PreTrainedTokenizerBase, corpus: CorpusSpec) -> tuple[int | None, int]:
    """Ids of the token before each sequence (None: there is none) and of the token between documents.

    Raises CorpusError if `corpus` needs a token that the tokenizer does not have.
    """
    bos = None
    if corpus.prepend_bos:
        if tokenizer.bos_token_id is None:
            raise CorpusError(
                "the tokenizer has no beginning-of-sequence token (BOS)",
                expected="one, because prepend_bos is true",
                todo="set prepend_bos = false under [corpus] in the model's registry file, if its SAEs were trained so",
            )
        bos = int(tokenizer.bos_token_id)
    if corpus.separator is None:
        if tokenizer.eos_token_id is None:
            raise CorpusError(
                "the tokenizer has no end-of-sequence token (EOS) to stand between documents",
                expected="EOS, or a token that `separator` names",
                todo="set `separator` under [corpus] in the model's registry file to a token of its vocabulary",
            )
        return bos, int(tokenizer.eos_token_id)
    found = tokenizer.get_vocab().get(corpus.separator)
    if found is None:
        raise CorpusError(
            f"the tokenizer has no token {corpus.separator!r}",
            expected="one token of its vocabulary",
            todo="correct `separator` under [corpus] in the model's registry file",
        )
    return bos, int(found)


def _check_files(spec: ModelSpec) -> None:
    """Raises SubjectError if the model's folder has no weights, or no config.json beside them."""
    folder = source_folder(spec, MODEL_FILES)
    gguf = gguf_of(folder)
    weights = [gguf] if gguf else list(folder.glob("*.safetensors"))
    missing = [] if any(path.is_file() for path in weights) else ["weights"]
    missing += [] if gguf or (folder / "config.json").is_file() else ["config.json"]
    if missing:
        raise SubjectError(
            f"{spec.name}: {folder} has no {' and no '.join(missing)}",
            expected="*.safetensors with config.json, or one *.gguf file",
            todo="correct `source` in the registry, or download the model again",
        )


def _check_positions(spec: ModelSpec, config: PretrainedConfig) -> None:
    """Raises SubjectError if sequences are longer than what the model was made for."""
    text: Any = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if getattr(text, "alibi", False) or not isinstance(most, int) or most < 1:
        return
    if spec.corpus.sequence_length > most:
        raise SubjectError(
            f"{spec.name}: sequences of {spec.corpus.sequence_length} tokens, but the model has {most} positions",
            expected=f"sequence_length of at most {most}",
            todo="lower `sequence_length` under [corpus] in the model's registry file",
        )


def _check_vocabulary(spec: ModelSpec, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises SubjectError if a text can give a token that the model has no embedding for.

    Special tokens beyond the embedding are allowed, because text is never encoded to one (Gemma 3 has such a token).
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int) or rows < 1:
        return
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    used = {tokenizer.bos_token_id} if spec.corpus.prepend_bos else set()
    vocabulary = tokenizer.get_vocab()
    used.add(tokenizer.eos_token_id if spec.corpus.separator is None else vocabulary.get(spec.corpus.separator))
    beyond = {i: token for token, i in vocabulary.items() if i >= rows and (i not in special or i in used)}
    if beyond:
        first = min(beyond)
        raise SubjectError(
            f"{spec.name}: {len(beyond)} tokens of the tokenizer have ids from {first} ({beyond[first]!r}) on, but the "
            f"model embeds {rows} tokens",
            expected=f"token ids below {rows}",
            todo="use the tokenizer that belongs to the model: correct `source` in the registry or the files in it",
        )
