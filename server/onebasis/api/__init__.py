"""The HTTP surface: OpenAI's routes, the task registry's, and the operator's. Only here is HTTP known."""
