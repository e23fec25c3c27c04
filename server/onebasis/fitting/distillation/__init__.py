"""Training cores to answer as an existing adapter does."""
