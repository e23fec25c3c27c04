"""Quality of every way to coefficients on a fleet of adapters. Run with `python -m loadtests.quality`."""
