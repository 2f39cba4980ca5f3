"""corpus: documents become sequences of tokens, each of one split.

- `stages`      the stage `tokenized_corpus`
- `building`    from documents to a corpus on disk
- `sources`     where documents come from
- `formats`     how the documents of one file are read
- `duplicates`  exact and near-duplicate documents, and clusters of them
- `packing`     splits, sequences, spans, and 13-grams that splits share
- `reader`      reading a corpus back
"""
