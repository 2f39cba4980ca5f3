"""latentgloss: a gloss for every latent of a sparse autoencoder, and a measure of how far to trust it.

    corpus -> activations -> contexts -> explanations -> scores -> report

This package is the core. It does not depend on Dagster and can be used from a notebook. Start with
`latentgloss.workspace.Workspace.open()`.
"""

__version__ = "0.1.0"
