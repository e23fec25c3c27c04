"""The offline commands and `serve`, one module a group; cli.py puts them together."""
