"""Subject models and embedders: their files, identities and tokenizers, and running them.

- `subject`        the model whose activations the SAEs read
- `causality`      proof by trial that a model's activations depend on no later token
- `logit_lens`     the output tokens that a direction of the residual stream promotes
- `sites`          names of places in a model, as other tools call them
- `files`          where model files come from, conversion, errors while loading
- `weights`        whether the files hold every weight that is used
- `identity`       everything that decides a model's activations, as hashes
- `tokenizer`      a subject model's tokenizer, loaded without weights
- `readiness`      whether a model can read its corpus, found without weights
- `vocabulary`     token ids as strings, bytes, words and classes
- `embedder`       sentence-transformers models
- `devices`        the device of the settings, refused if this machine has none such
- `cpu_attention`  faster causal attention in bfloat16 on CPUs
- `cpu_linear`     faster linear layers in bfloat16 on CPUs
"""
