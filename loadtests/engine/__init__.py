"""Steps of the whole model without HTTP, beside transformers. Run with `python -m loadtests.engine`."""
