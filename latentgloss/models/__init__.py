"""The models that are read: subject models and embedders, their files, tokenizers and identities.

- `subject`        the model whose activations are cached
- `logit_lens`     output tokens a direction promotes
- `files`          where model files come from; conversion
- `identity`       what decides a model's activations, as hashes
- `tokenizer`      the tokenizer, without weights
- `vocabulary`     how token ids read
- `embedder`       sentence embeddings
- `cpu_attention`, `cpu_linear`  faster bfloat16 on CPUs
"""
