"""activations: from tokens to every active (latent, position) pair of the stale SAEs of a model.

- `stages`        the stage `activation_cache`
- `forward_pass`  one pass of a model over its corpus for several SAEs
- `pairs`         active pairs: from tensors to a sorted table
- `masking`       which positions are masked
- `latents`       the table `latents`: one row of statistics per latent
- `quality`       L0 and FVU on a sample
- `reader`        reading the activations of some latents back
"""
