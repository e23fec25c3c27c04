"""Offline work: making a basis, training coefficients inside it. Never imported by the server."""
