"""latentgloss: a gloss for every latent of a sparse autoencoder, and how far it can be trusted.

    corpus -> activations -> contexts -> explanations -> scores -> report

This package is the core: no Dagster in it, usable from a notebook. `Workspace.open()` is the way in.
"""

__version__ = "0.1.0"
