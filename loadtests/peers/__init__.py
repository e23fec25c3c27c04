"""Other servers on this machine under the same load as ours. Run with `python -m loadtests.peers`; see README.md."""
