"""Continuous batching on one thread: scheduler, blocks, batches, sampling, and the loop that joins them."""
