"""corpus: documents become sequences of tokens, each of one split.

- `stages`      the stage `tokenized_corpus`
- `reader`      reading a corpus back
- `sources`     where documents come from
- `duplicates`  exact and near duplicates
- `packing`     documents packed into sequences of one split
"""
