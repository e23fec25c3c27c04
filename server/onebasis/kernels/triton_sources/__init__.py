"""Triton kernels and nothing else. Importing these modules needs triton; `triton_batched.py` does it on first use."""
