"""Making a basis file."""
