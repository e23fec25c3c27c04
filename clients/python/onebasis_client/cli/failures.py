"""Failures as one line on stderr and an exit code."""

from collections.abc import Iterable
from typing import Any, Final

import typer
from typer.core import TyperGroup

from onebasis_client.api_errors import CapacityError, DeadlineExceeded, RequestError
from onebasis_client.cli.output import message_of, say
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
        except BrokenPipeError:  # who reads has had enough: nothing to tell
            raise
        except (OneBasisError, OSError) as error:
            say(f"onebasis-client: {message_of(error)}", is_error=True)
            raise typer.Exit(_exit_code(error)) from None


def exit_code_of_files(errors: Iterable[OneBasisError | OSError]) -> int:
    """One for all that failed: 1 if any file is at fault, which trying later does not mend; then 4 before 3."""
    codes = {REFUSED if isinstance(error, OSError) else _exit_code(error) for error in errors}
    return next(code for code in (REFUSED, BROKEN, TRY_LATER) if code in codes)


def _exit_code(error: OneBasisError | OSError) -> int:
    if isinstance(error, OSError):
        return USAGE
    if isinstance(error, RequestError):
        return REFUSED
    is_broken = isinstance(error, UnexpectedReply) or (
        isinstance(error, ApiError) and not isinstance(error, CapacityError | DeadlineExceeded)
    )
    return BROKEN if is_broken else TRY_LATER
