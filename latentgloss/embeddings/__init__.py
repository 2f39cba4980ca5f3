"""embeddings: vectors of contexts and explanations in LanceDB, and the index that `latentgloss search` reads.

- `stages`         the stages `context_embeddings`, `explanation_embeddings`, `search_index`
- `vectors`        vectors of contexts and of texts, each computed once
- `vector_table`   the LanceDB table of (key, vector) rows that keeps them
- `row_checks`     checksums of vectors, compared when they are read, and tables checked as a whole
- `lance`          LanceDB tables with locks, recorded facts and our own errors
- `search_index`   the search index and the three ways to search it
- `search_writer`  writes the search index
"""
