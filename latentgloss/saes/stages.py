"""The stage `resolved_saes`: exactly what one SAE depends on, as hashes.

What belongs here: writing down the dependencies of one SAE, so that its later stages have an input of their own grain.
Reads the SAE's weights and its model's `tokenized_corpus`; writes the file `resolved.json` and two parts: `cache`, a
hash of all that decides activations (registry entry, weights, model, mask, corpus), and `latents`, a hash of the
selected latents.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol

from latentgloss.pipeline.stage_run import one_by_one
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from latentgloss.config.entries import SaeSpec
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.saes.coder import SparseCoder


class SaeNeeds(Protocol):
    """What this stage needs that is not in the store."""

    def sae(self, spec: SaeSpec) -> SparseCoder:
        """The SAE of a registry entry, with its weights."""


def _resolve(run: StageRun[SaeNeeds]) -> None:
    """Writes what the SAE depends on. Opens the weights too, so damaged files are found before a GPU is used."""
    external = run.recipe.content["external"]
    coder = run.resources.sae(run.sae)
    corpus = run.input("tokenized_corpus")
    resolved = {
        **external,
        "corpus": corpus.pin,
        "n_latents": coder.n_latents,
        "d_in": coder.d_in,
    }
    with run.draft.file("resolved.json") as path:
        path.write_text(json.dumps(resolved, indent=1))
    cache = {key: value for key, value in external.items() if key != "latents"}
    run.draft.part("cache", json_sha256({**cache, "corpus": corpus.manifest.data_version}))
    run.draft.part("latents", json_sha256(external["latents"]))
    run.facts = {"latents": coder.n_latents, "d_in": coder.d_in}


resolve_saes = one_by_one(_resolve)
"""Runner of `resolved_saes`."""
