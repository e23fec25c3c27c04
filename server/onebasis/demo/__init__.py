"""The demonstration: small real tasks, and adapters trained on them, that ship with the server."""
