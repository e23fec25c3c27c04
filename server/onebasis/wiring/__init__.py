"""Puts the server's parts together. The one place that knows which engine runs."""

from onebasis.wiring.server import Server, build_server

__all__ = ["Server", "build_server"]
