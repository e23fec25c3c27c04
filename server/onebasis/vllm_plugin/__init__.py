"""Tasks of a shared basis inside vLLM: what runs in its workers, and what steers them from outside."""
