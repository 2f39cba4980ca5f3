"""SAEs: weights on disk become a `SparseCoder`.

- `stages`     the stage `resolved_saes`: what one SAE depends on
- `opening`    formats, files and digests
- `coder`      encoding and decoding without a dense array of latents
- `selection`  which latents are active: ReLU, JumpReLU, TopK, GroupMax
- `baselines`  neurons and random directions, as SAEs
- `readers/`   one file per format
"""
