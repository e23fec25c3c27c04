"""The servers of tests/api."""

from tests.api.conftest import gate, server, shared_server, start_server, step, tiny

__all__ = ["gate", "server", "shared_server", "start_server", "step", "tiny"]
