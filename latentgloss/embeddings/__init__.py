"""embeddings: vectors of contexts and explanations in LanceDB, and the index that people search.

- `stages`         the stages `context_embeddings`, `explanation_embeddings`, `search_index`
- `vectors`        vectors, each computed once
- `lance`          LanceDB tables with locks, facts and errors of ours
- `search_index`   searching
- `search_writer`  the index's only writer
"""
