"""saes: weights on disk become a `SparseCoder`.

- `stages`       the stage `resolved_saes`: what one SAE depends on
- `opening`      formats, their files and digests
- `coder`        encoding and decoding without a dense array of latents
- `selection`    which latents are active: ReLU, JumpReLU, TopK, GroupMax
- `training`     what an SAE's files say of its training, compared with the registry
- `model_names`  which kind of model a name means
- `baselines`    SAEs without files: neurons and random directions
- `readers/`     one file per format
"""
