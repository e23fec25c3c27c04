"""Failures as one line on stderr and an exit code."""

from typing import Any, Final

import typer
from typer.core import TyperGroup

from onebasis_client.api_errors import CapacityError, DeadlineExceeded, RequestError
from onebasis_client.cli.output import say
from onebasis_client.errors import ApiError, OneBasisError, UnexpectedReply

REFUSED: Final = 1
USAGE: Final = 2
TRY_LATER: Final = 3
BROKEN: Final = 4


class ReportingGroup(TyperGroup):
    """Runs a command, and tells what went wrong."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OneBasisError as error:
            code = f" [{error.code}]" if isinstance(error, ApiError) else ""
            say(f"onebasis-client: {error}{code}", is_error=True)
            raise typer.Exit(_exit_code(error)) from None
        except BrokenPipeError:  # who reads has had enough: nothing to tell
            raise
        except OSError as error:
            say(f"onebasis-client: {error}", is_error=True)
            raise typer.Exit(USAGE) from None


def _exit_code(error: OneBasisError) -> int:
    if isinstance(error, RequestError):
        return REFUSED
    is_broken = isinstance(error, UnexpectedReply) or (
        isinstance(error, ApiError) and not isinstance(error, CapacityError | DeadlineExceeded)
    )
    return BROKEN if is_broken else TRY_LATER
