"""The engine over vLLM. Importing its modules imports vLLM, so only the wiring does, when it is asked for."""
