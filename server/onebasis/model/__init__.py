"""The base model through transformers, its adapted layers, paged attention over it."""
