"""Lineage: from a score back to documents and weights; every step follows a stored key.

- `trace`      the walk from a score to judgements, explanation and eligibility; starts here
- `samples`    the walk from sampled contexts to activations, mask, SAE and tokens
- `sources`    the walk from SAE and tokens to model, documents and source
- `nodes`      the nodes of the tree, and opening and reading the versions they name

What `--verify` recomputes:

- `checks`            one recomputed value compared with the stored one
- `manifest_checks`   manifests, pins, files and content hashes
- `source_checks`     files of SAE and model, the corpus's source, documents and their tokens
- `context_checks`    activations and splits of sampled contexts
- `judgement_checks`  explanations, judgements and trials
- `score_checks`      scores, intervals and specificity
- `vector_checks`     cosines of the embedding score, from stored vectors
"""
