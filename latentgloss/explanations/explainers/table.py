"""The table of explainers, and the names of explainers, nulls and blocks.

Each explainer has a file of its own. It gets the evidence of many latents and gives one `Explained` per latent, in
order. What goes wrong with one latent becomes a status and a reason, never an exception and never a gap. `EXPLAINERS`
lists all explainers. `null:<name>` (other latents' explanations, the baseline) is made by the stage from the
explanations of `<name>`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.errors import SettingsError
from latentgloss.explanations.explainers import best_of_k, imported, llm, token_table
from latentgloss.explanations.explainers.base import Evidence, Explained, Explainer, Tools
from latentgloss.explanations.explainers.pattern import explainer

if TYPE_CHECKING:
    from latentgloss.config.settings import ExplanationSettings


__all__ = [
    "EXPLAINERS",
    "NULL",
    "Evidence",
    "Explained",
    "Explainer",
    "Tools",
    "base_of",
    "block_name",
    "explainer_of",
    "identities",
    "in_order",
    "nulls_of",
    "without_number",
]

NULL = "null:"
"""Beginning of the name of a null."""
BASELINE = "token_table"
"""The explainer that reports measure gains against."""

EXPLAINERS: dict[str, type[Explainer]] = {
    "pattern": explainer.PatternExplainer,
    "token_table": token_table.TokenTableExplainer,
    "llm": llm.LlmExplainer,
    "llm_cot": llm.CotExplainer,
    "contrastive": llm.ContrastiveExplainer,
    "best_of_k": best_of_k.BestOfKExplainer,
    "imported": imported.ImportedExplainer,
}
"""Every explainer by its name in the settings."""


def identities(settings: ExplanationSettings, tools: Tools) -> dict[str, dict[str, Any]]:
    """Per explainer in the settings, what decides its output besides the evidence. Raises SettingsError."""
    return {name: EXPLAINERS[base_of(name)].identity(settings, tools) for name in settings.explainers}


def in_order(settings: ExplanationSettings) -> list[str]:
    """The explainers to run, in order, then the nulls to make.

    An explainer whose null is in the settings is run as well. Each null in the settings stands for `settings.nulls`
    nulls: the first null of `pattern` is `null:pattern`, the second `null:pattern:2`, and each is an explainer like any
    other. Raises SettingsError for an unknown explainer.
    """
    bases = list(dict.fromkeys(base_of(name) for name in settings.explainers))
    with_nulls = dict.fromkeys(base_of(name) for name in settings.explainers if name.startswith(NULL))
    return [*bases, *(name for base in with_nulls for name in nulls_of(base, settings.nulls))]


def nulls_of(base: str, n: int) -> list[str]:
    """Names of the first `n` nulls of an explainer."""
    return [f"{NULL}{base}", *(f"{NULL}{base}:{number}" for number in range(2, n + 1))][:n]


def without_number(name: str) -> str:
    """The name of an explainer, with one name for all nulls of the same explainer."""
    return f"{NULL}{base_of(name)}" if name.startswith(NULL) else name


def base_of(name: str) -> str:
    """The explainer that `name` is, or is a null of. Raises SettingsError for an unknown one."""
    base, _, number = name.removeprefix(NULL).partition(":")
    if base not in EXPLAINERS or (number and not (name.startswith(NULL) and number.isdecimal())):
        raise SettingsError(
            f"explainer {name!r} is unknown",
            expected=f"one of {', '.join(sorted(EXPLAINERS))}, or one of them after {NULL!r}",
            todo="correct `explanations.explainers` in latentgloss.toml",
        )
    return base


def block_name(block: str, explainer: str) -> str:
    """Name of one explainer's block, which is also its file name."""
    return f"{block}-{explainer.replace(':', '.')}"


def explainer_of(name: str) -> str:
    """The explainer in the name of a block."""
    return name.partition("-")[2].replace(".", ":")
