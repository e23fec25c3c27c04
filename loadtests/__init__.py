"""Load generator for servers of the OpenAI completions API on this machine. Run with `python -m loadtests`."""
