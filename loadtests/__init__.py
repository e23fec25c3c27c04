"""Benchmarks on this machine. README.md lists what can be run."""
