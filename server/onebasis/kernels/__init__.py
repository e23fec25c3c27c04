"""The apply step: y = W x + U^T S_t (V x), for every token under its own task."""
