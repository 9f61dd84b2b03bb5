"""Text to token files: corpora, held-out split, tokenizer, cache. No torch."""
