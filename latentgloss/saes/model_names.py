"""Names of models: which kind of model a name means, and whether two names mean the same model.

What belongs here: comparing the name that an SAE's files state with the names in the registry. Names only; nothing is
read or looked up.
"""

from __future__ import annotations

import re
from typing import Literal

_FAMILIES: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (pattern, frozenset(types.split()))
    for pattern, types in (
        (r"distill?-qwen|qwen-?(1\.5|2|2\.5)\b|qwen-?2", "qwen2 qwen2_moe qwen2_vl qwen2_5_vl"),
        (r"qwen-?3", "qwen3 qwen3_moe"),
        (r"gpt-?neo-?x|pythia", "gpt_neox"),
        (r"gpt-?neo|tiny-?stories", "gpt_neo"),
        (r"gpt-?j", "gptj"),
        (r"gpt-?2|distilgpt", "gpt2"),
        (r"gpt-?oss", "gpt_oss"),
        (r"gemma-?3n", "gemma3n gemma3n_text"),
        (r"gemma-?3|medgemma", "gemma3 gemma3_text"),
        (r"gemma-?2(?!b)", "gemma2"),
        (r"gemma", "gemma"),
        (r"smollm-?3", "smollm3"),
        (r"llama-?4", "llama4 llama4_text"),
        (r"llama|vicuna|alpaca|smollm", "llama mllama mllama_text_model"),
        (r"mixtral", "mixtral"),
        (r"mistral|zephyr", "mistral mistral3 ministral"),
        (r"\bphi-?[34]", "phi3"),
        (r"\bphi\b|\bphi-", "phi"),
        (r"\bopt-", "opt"),
        (r"bloom", "bloom"),
        (r"falcon-?mamba", "falcon_mamba"),
        (r"falcon", "falcon falcon_h1"),
        (r"mamba-?2", "mamba2"),
        (r"mamba", "mamba"),
        (r"\bmpt\b", "mpt"),
        (r"olmoe", "olmoe"),
        (r"olmo-?[23]", "olmo2 olmo3"),
        (r"olmo", "olmo"),
        (r"stablelm", "stablelm"),
        (r"codegen", "codegen"),
        (r"starcoder-?2", "starcoder2"),
        (r"granite", "granite granitemoe"),
        (r"c4ai|command-r|\baya\b", "cohere cohere2"),
        (r"nemotron", "nemotron llama"),
        (r"jamba", "jamba"),
    )
)
_VARIANT = r"(-(it|instruct|chat|base|pt|sft|dpo|hf|small|v\d+(\.\d+)*))+"


def family(name: str) -> frozenset[str]:
    """The `model_type`s that models of this name can have; empty if the name is of no known family."""
    base = _normal(name)
    return next((types for pattern, types in _FAMILIES if re.search(pattern, base)), frozenset())


def same_name(name: str, others: set[str]) -> Literal["same", "variant", "other"]:
    """Whether one of the names `others` means the same model as `name`, or a tuned variant of it (`-it`)."""
    base = _normal(name)
    found: set[str] = {_relation(base, _normal(other)) for other in others if other}
    return "same" if "same" in found else "variant" if "variant" in found else "other"


def _relation(a: str, b: str) -> str:
    if a == b:
        return "same"
    short, long = sorted((a, b), key=len)
    if len(short) < 3 or short not in long:
        return "other"
    before, _, after = long.partition(short)
    if not after:
        return "same" if not before or before.endswith("-") else "other"
    return "variant" if re.fullmatch(_VARIANT, after) and (not before or before.endswith("-")) else "other"


def _normal(name: str) -> str:
    base = name.strip().rstrip("/").rpartition("/")[2].lower().replace("_", "-")
    return re.sub(r"^(gpt-?2)-small$", "gpt2", base)
