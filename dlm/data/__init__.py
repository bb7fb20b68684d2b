"""Data: corpora, tokenizers and toy distributions become token streams, and those become batches.

Corpus -> de-duplicate, split, audit -> tokenise -> cache -> Source.tokens(split) -> DataModule -> {x0, target}
"""
