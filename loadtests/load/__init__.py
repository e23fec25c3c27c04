"""Offers load to servers over HTTP and times their answers; `python -m loadtests` is its command line."""
