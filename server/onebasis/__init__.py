"""onebasis: one base model, one shared basis, kilobyte coefficients per task."""

__version__ = "0.1.0"
