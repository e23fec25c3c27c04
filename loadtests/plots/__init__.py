"""Pictures of the saved results. Run with `python -m loadtests.plots`."""
