"""The server's own errors: a class for each code, in the tree of the server's own.

    ApiError
      RequestError        the caller can fix it
        CoefficientError  the uploaded file is at fault; nothing was stored
      CapacityError       nothing is wrong with the request; retry later
      DeadlineExceeded    the request's own time is over; the same request would need more of it

To mirror a new code, add its class: the table at the end finds it. What to do about each: the server's docs/errors.md.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from onebasis_client.errors import ApiError


class RequestError(ApiError, code="invalid_request"):
    """The request is wrong; the message says what was found, what is allowed and what to do."""


class InvalidParameter(RequestError, code="invalid_parameter"):
    """A parameter has a value that is not allowed."""


class UnsupportedParameter(RequestError, code="unsupported_parameter"):
    """A parameter that this server does not honour is refused, never ignored."""


class InvalidGrammar(RequestError, code="invalid_grammar"):
    """A grammar, regex or JSON schema can't be used to constrain an answer."""


class InvalidJson(RequestError, code="invalid_json"):
    """The body is not a JSON object."""


class ContextLengthExceeded(RequestError, code="context_length_exceeded"):
    """Prompt and requested output do not fit the context."""


class ModelNotFound(RequestError, code="model_not_found"):
    """`model` names neither the base nor a registered task. Never answered by the base instead."""


class TaskNotFound(RequestError, code="task_not_found"):
    """No task of that name is registered."""


class VersionNotFound(RequestError, code="version_not_found"):
    """The task never had that version since it was last deleted."""


class TaskAlreadyLoaded(RequestError, code="task_already_loaded"):
    """vLLM's refusal to load a name twice."""


class TaskUnusable(RequestError, code="task_unusable"):
    """The task is registered, but its stored coefficients can't serve under the loaded basis."""


class NonFiniteOutput(RequestError, code="non_finite_output"):
    """The task's coefficients are finite, but the model overflows under them: there is no text to answer with."""


class RouteNotFound(RequestError, code="route_not_found"):
    """No such path."""


class MethodNotAllowed(RequestError, code="method_not_allowed"):
    """The path exists, the verb does not."""


class InvalidTaskName(RequestError, code="invalid_task_name"):
    """The name can't be used for a task."""


class ReservedTaskName(RequestError, code="reserved_task_name"):
    """The name already means the base model."""


class InvalidDigest(RequestError, code="invalid_digest"):
    """Not a digest."""


class DigestMismatch(RequestError, code="digest_mismatch"):
    """The bytes that arrived are not the bytes the caller meant to send. Nothing was stored."""


class PreconditionFailed(RequestError, code="precondition_failed"):
    """Someone else changed the task first, or it exists where it must not. Nothing was stored."""


class BodyTooLarge(RequestError, code="body_too_large"):
    """The body is over the cap. It was not read further."""


class RequestTimeout(RequestError, code="request_timeout"):
    """The request did not come in time; the server closed the connection."""


class HeadersTooLarge(RequestError, code="headers_too_large"):
    """The header fields are over the cap."""


class InvalidApiKey(RequestError, code="invalid_api_key"):
    """No key, or one that does not count (any more). All of them read alike: a guess learns nothing."""


class PermissionDenied(RequestError, code="permission_denied"):
    """The caller is known and may not do this."""


class KeyNotFound(RequestError, code="key_not_found"):
    """No key has this id."""


class NoBasis(RequestError, code="no_basis"):
    """The server was started without a basis, so it can't hold tasks."""


class CoefficientError(RequestError, code="invalid_coefficients"):
    """The coefficient file can't be used. Nothing was stored, an earlier version still serves."""


class PickleRefused(CoefficientError, code="pickle_refused"):
    """The bytes are a pickle or a zip of one; such files can run code and are never opened."""


class NotSafetensors(CoefficientError, code="not_safetensors"):
    """The container can't be parsed."""


class TruncatedFile(CoefficientError, code="truncated_file"):
    """The header announces more bytes than there are."""


class InvalidMetadata(CoefficientError, code="invalid_metadata"):
    """A metadata field is missing or has the wrong shape."""


class UnsupportedFormatVersion(CoefficientError, code="unsupported_format_version"):
    """A version this reader does not know."""


class UnknownForm(CoefficientError, code="unknown_form"):
    """A form of coefficients this reader does not know."""


class UnknownTensor(CoefficientError, code="unknown_tensor"):
    """A tensor that this reader would have to ignore."""


class MissingTensor(CoefficientError, code="missing_tensor"):
    """The tensor `coefficients` is not in the file."""


class WrongDtype(CoefficientError, code="wrong_dtype"):
    """Numbers of a type that is not allowed."""


class WrongLength(CoefficientError, code="wrong_length"):
    """The count of numbers does not follow from basis, form, k and sites. Nothing is padded or cut."""


class NoMixingCores(CoefficientError, code="no_mixing_cores"):
    """The form is `vector`, and the basis has no mixing cores to make cores from."""


class IncompleteResidual(CoefficientError, code="incomplete_residual"):
    """One of the two factors of a site's residual is missing."""


class WrongResidualShape(CoefficientError, code="wrong_residual_shape"):
    """The factors of a residual do not fit each other or the site. Nothing is padded, transposed or cut."""


class ResidualRankTooHigh(CoefficientError, code="residual_rank_too_high"):
    """A residual of a higher rank than this server allows, or than the site's weight can have."""


class ResidualTooLarge(CoefficientError, code="residual_too_large"):
    """A residual that would not fit the memory for residuals even alone."""


class WrongPrefix(CoefficientError, code="wrong_prefix"):
    """`k` is not a prefix of the basis rows."""


class UnknownSite(CoefficientError, code="unknown_site"):
    """A site the basis does not have."""


class NotFinite(CoefficientError, code="not_finite"):
    """NaN or infinity among the numbers."""


class WrongBasis(CoefficientError, code="wrong_basis"):
    """The file was made for another basis than the one loaded."""


class WrongBase(CoefficientError, code="wrong_base"):
    """The file was made for other base weights than the ones loaded."""


class CapacityError(ApiError):
    """The server can't take the request now; the same request may succeed later."""


class QueueFull(CapacityError, code="queue_full"):
    """The bounded queue of waiting requests is full."""


class TenantQueueFull(CapacityError, code="tenant_queue_full"):
    """One tenant's share of the queue is full; others still get in."""


class QuotaExceeded(CapacityError, code="quota_exceeded"):
    """The tenant has used up what it may use; `retry_after_s` says when that changes at the earliest."""


class EngineStopped(CapacityError, code="engine_stopped"):
    """The engine ended before the request did."""


class ResidualMemoryFull(CapacityError, code="residual_memory_full"):
    """The residuals of running requests take the memory that there is for residuals. Other tasks are not affected."""


class Draining(CapacityError, code="draining"):
    """The server is about to end: it takes nothing new, and what was not done in time is cut."""


class StoreUnavailable(CapacityError, code="store_unavailable"):
    """The task store can't be read or written now. A write that ends so was not acknowledged."""


class DeadlineExceeded(ApiError, code="deadline_exceeded"):
    """The request had no more time. Never sent again: unchanged it would need as much once more."""


class StoreDamaged(ApiError, code="store_damaged"):
    """Part of the task store can't be read any more."""


def _with_code(cls: type[ApiError]) -> Iterator[tuple[str, type[ApiError]]]:
    if "code" in vars(cls):
        yield cls.code, cls
    for child in cls.__subclasses__():
        yield from _with_code(child)


ERRORS_BY_CODE: Final[Mapping[str, type[ApiError]]] = MappingProxyType(dict(_with_code(ApiError)))
"""The class of each code."""
