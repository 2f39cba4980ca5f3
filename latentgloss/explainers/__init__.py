"""Explainers: what a latent responds to, in words (and, where possible, in executable form).

One file each. An explainer gets the evidence of many latents and gives one `Explained` per latent, in order; what
goes wrong with one latent is a status and a reason, never an exception and never a gap. `EXPLAINERS` is the list of
all there are; `null:<name>` (another latent's explanation, the baseline) is made by the stage from `<name>`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.errors import SettingsError
from latentgloss.explainers import best_of_k, imported, llm, pattern, token_table
from latentgloss.explainers.base import Evidence, Explained, Explainer, Tools

if TYPE_CHECKING:
    from latentgloss.settings import ExplanationSettings

__all__ = ["EXPLAINERS", "NULL", "Evidence", "Explained", "Explainer", "Tools", "base_of", "identities", "in_order"]

NULL = "null:"

EXPLAINERS: dict[str, type[Explainer]] = {
    "pattern": pattern.PatternExplainer,
    "token_table": token_table.TokenTableExplainer,
    "llm": llm.LlmExplainer,
    "llm_cot": llm.CotExplainer,
    "contrastive": llm.ContrastiveExplainer,
    "best_of_k": best_of_k.BestOfKExplainer,
    "imported": imported.ImportedExplainer,
}


def identities(settings: ExplanationSettings, tools: Tools) -> dict[str, dict[str, Any]]:
    """Per explainer asked for, what decides its output beside the evidence. Raises SettingsError."""
    return {name: EXPLAINERS[base_of(name)].identity(settings, tools) for name in settings.explainers}


def in_order(explainers: tuple[str, ...]) -> list[str]:
    """The explainers of the settings, and whatever a null is the null of, each after what it needs."""
    names = dict.fromkeys([*(base_of(name) for name in explainers), *explainers])
    return sorted(names, key=lambda name: name.startswith(NULL))


def base_of(name: str) -> str:
    """The explainer that `name` is, or is the null of. Raises SettingsError for an unknown one."""
    base = name.removeprefix(NULL)
    if base not in EXPLAINERS:
        raise SettingsError(
            f"explainer {name!r} is unknown",
            expected=f"one of {', '.join(sorted(EXPLAINERS))}, or one of them after {NULL!r}",
            todo="correct `explanations.explainers` in latentgloss.toml",
        )
    return base
