"""What stops a run before or between measurements. A failed request is not one: it is counted in the result."""


class LoadTestError(Exception):
    """The run cannot go on; the message says what to change. Shown without a traceback, exit code 1."""
