"""Learning coefficients inside a fixed basis."""
