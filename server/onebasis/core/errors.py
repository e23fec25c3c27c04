"""Everything this server raises on purpose, as one tree.

    ServeError
      RequestError        the caller can fix it
        CoefficientError  the uploaded file is at fault; nothing was stored
      CapacityError       nothing is wrong with the request; retry later
      DeadlineExceeded    the request's own time is over; the same request would need more of it
      SetupError          the operator can fix it; the command or the server does not start

Each leaf has a stable `code`. api/errors.py maps classes to HTTP statuses, in one place.
"""

from typing import ClassVar


class ServeError(Exception):
    """Base of the tree. Raised itself only for a bug of ours."""

    code: ClassVar[str] = "internal"
    param: str | None = None


class RequestError(ServeError):
    """The request is wrong; the message says what was found, what is allowed and what to do."""

    code = "invalid_request"


class InvalidParameter(RequestError):
    """A parameter has a value that is not allowed."""

    code = "invalid_parameter"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


class UnsupportedParameter(RequestError):
    """A parameter that this server does not honour is refused, never ignored."""

    code = "unsupported_parameter"

    def __init__(self, param: str, hint: str = "remove it from the request") -> None:
        super().__init__(f"{param} is not supported by this server; {hint}")
        self.param = param


class InvalidGrammar(RequestError):
    """A grammar, regex or JSON schema can't be used to constrain an answer."""

    code = "invalid_grammar"

    def __init__(self, param: str | None, reason: str) -> None:
        super().__init__(f"{param or 'the grammar'}: {reason}")
        self.param = param
        self.reason = reason


class InvalidJson(RequestError):
    """The body is not a JSON object."""

    code = "invalid_json"


class ContextLengthExceeded(RequestError):
    """Prompt and requested output do not fit the context."""

    code = "context_length_exceeded"

    def __init__(
        self, *, n_prompt: int, max_tokens: int, limit: int, param: str = "prompt", at_least: bool = False
    ) -> None:
        qualifier = "at least " if at_least else ""
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, you requested {qualifier}"
            f"{n_prompt + max_tokens} tokens ({n_prompt} in the prompt, {max_tokens} for the completion). "
            f"Please reduce the length of the prompt or completion."
        )
        self.param = param


class ModelNotFound(RequestError):
    """`model` names neither the base nor a registered task. Never answered by the base instead."""

    code = "model_not_found"
    param = "model"

    def __init__(self, name: str) -> None:
        super().__init__(f"The model `{name}` does not exist; GET /v1/models lists the base and the tasks")


class TaskNotFound(RequestError):
    """No task of that name is registered."""

    code = "task_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"no task is called {name!r}; GET /v1/tasks lists them")


class VersionNotFound(RequestError):
    """The task never had that version since it was last deleted."""

    code = "version_not_found"
    param = "digest"

    def __init__(self, name: str, digest: str) -> None:
        super().__init__(f"task {name!r} has no version {digest[:100]}; GET /v1/tasks/{name}/versions lists them")


class TaskUnusable(RequestError):
    """The task is registered, but its stored coefficients can't serve under the loaded basis."""

    code = "task_unusable"
    param = "model"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"task {name!r} can't serve: {reason}; upload it again or name another version")


class NonFiniteOutput(RequestError):
    """The task's coefficients are finite, but the model overflows under them: there is no text to answer with."""

    code = "non_finite_output"
    param = "model"

    def __init__(self) -> None:
        super().__init__(
            "the model's output for this request is NaN or infinite, so its coefficients are too large; train the task "
            "again, or name another version"
        )


class RouteNotFound(RequestError):
    """No such path."""

    code = "route_not_found"


class MethodNotAllowed(RequestError):
    """The path exists, the verb does not."""

    code = "method_not_allowed"


class InvalidTaskName(RequestError):
    """The name can't be used for a task."""

    code = "invalid_task_name"

    def __init__(self, found: str) -> None:
        super().__init__(
            f"task name {found[:140]!r}: needs 1 to 128 of letters, digits, '.', '_', '-', the first a letter or digit"
        )


class ReservedTaskName(RequestError):
    """The name already means the base model."""

    code = "reserved_task_name"

    def __init__(self, found: str) -> None:
        super().__init__(f"{found!r} is the name of the base model; choose another name for the task")


class InvalidDigest(RequestError):
    """Not a digest."""

    code = "invalid_digest"

    def __init__(self, found: str) -> None:
        super().__init__(f"digest {found[:100]!r}: needs 'sha256:' and 64 lower-case hex digits")


class DigestMismatch(RequestError):
    """The bytes that arrived are not the bytes the caller meant to send. Nothing was stored."""

    code = "digest_mismatch"

    def __init__(self, *, declared: str, found: str) -> None:
        super().__init__(f"Content-Digest declares {declared}, the body has {found}; send the file again")


class PreconditionFailed(RequestError):
    """Someone else changed the task first, or it exists where it must not. Nothing was stored."""

    code = "precondition_failed"

    def __init__(self, *, required: str, found: str | None) -> None:
        now = found or "no task of that name"
        super().__init__(f"required {required}, found {now}; read the task again and decide anew")


class TaskAlreadyLoaded(RequestError):
    """vLLM's refusal to load a name twice."""

    code = "task_already_loaded"
    param = "lora_name"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
            f"'load_inplace' to True."
        )


class BodyTooLarge(RequestError):
    """The body is over the cap. It was not read further."""

    code = "body_too_large"

    def __init__(self, *, limit_bytes: int, declared_bytes: int | None = None) -> None:
        found = "more" if declared_bytes is None else f"{declared_bytes} bytes"
        super().__init__(
            f"the body may have {limit_bytes} bytes here, found {found}; see --max-body-bytes and --max-json-bytes"
        )


class HeadersTooLarge(RequestError):
    """The header fields are over the cap."""

    code = "headers_too_large"

    def __init__(self, *, limit_bytes: int, found_bytes: int) -> None:
        super().__init__(f"the header may have {limit_bytes} bytes, found {found_bytes}; see --max-header-bytes")


class RequestTimeout(RequestError):
    """The request's head and body did not come in time. The connection is closed."""

    code = "request_timeout"

    def __init__(self, *, limit_s: float) -> None:
        super().__init__(f"a whole request must come within {limit_s:g} s; send it faster, or see --receive-timeout-s")


class NoBasis(RequestError):
    """The server was started without a basis, so it can't hold tasks."""

    code = "no_basis"

    def __init__(self) -> None:
        super().__init__("this server runs the base model alone; start it with --basis to register tasks")


class CoefficientError(RequestError):
    """The coefficient file can't be used. Nothing was stored, an earlier version still serves."""

    code = "invalid_coefficients"


class PickleRefused(CoefficientError):
    """The bytes are a pickle or a zip of one; such files can run code and are never opened."""

    code = "pickle_refused"

    def __init__(self) -> None:
        super().__init__("found a pickle or zip archive; only safetensors is read: export the file again")


class NotSafetensors(CoefficientError):
    """The container can't be parsed."""

    code = "not_safetensors"

    def __init__(self, reason: str) -> None:
        super().__init__(f"not a safetensors file ({reason}); export the file again")


class TruncatedFile(CoefficientError):
    """The header announces more bytes than there are."""

    code = "truncated_file"

    def __init__(self, *, needed_bytes: int, found_bytes: int) -> None:
        super().__init__(f"file needs {needed_bytes} bytes, found {found_bytes}; send it again, whole")


class InvalidMetadata(CoefficientError):
    """A metadata field is missing or has the wrong shape."""

    code = "invalid_metadata"

    def __init__(self, field: str, *, found: str | None, allowed: str) -> None:
        super().__init__(f"metadata {field!r}: needs {allowed}, found {found!r}; export the file again")


class UnsupportedFormatVersion(CoefficientError):
    """A version this reader does not know."""

    code = "unsupported_format_version"

    def __init__(self, *, found: str, supported: str) -> None:
        super().__init__(f"format_version {found!r}, this server reads {supported}; re-export or update")


class UnknownForm(CoefficientError):
    """A form of coefficients this reader does not know."""

    code = "unknown_form"

    def __init__(self, *, found: str, supported: tuple[str, ...]) -> None:
        super().__init__(f"form {found!r}, this server reads {', '.join(supported)}; export one of these")


class UnknownTensor(CoefficientError):
    """A tensor that this reader would have to ignore."""

    code = "unknown_tensor"

    def __init__(self, names: list[str]) -> None:
        shown = ", ".join(names[:5])
        super().__init__(
            f"needs the tensor 'coefficients' and may have 'residual.<site>.A' and '.B', found also {shown}; "
            f"nothing is ignored"
        )


class MissingTensor(CoefficientError):
    """The tensor `coefficients` is not in the file."""

    code = "missing_tensor"

    def __init__(self) -> None:
        super().__init__("needs the tensor 'coefficients', found none of that name; export the file again")


class WrongDtype(CoefficientError):
    """Numbers of a type that is not allowed."""

    code = "wrong_dtype"

    def __init__(self, tensor: str, *, found: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{tensor[:100]}: numbers are {found}; allowed: {', '.join(allowed)}")


class WrongLength(CoefficientError):
    """The count of numbers does not follow from basis, form, k and sites. Nothing is padded or cut."""

    code = "wrong_length"

    def __init__(self, *, needed: int, found: tuple[int, ...], form: str) -> None:
        super().__init__(f"form {form} needs coefficients of shape ({needed},) here, found {found}")


class NoMixingCores(CoefficientError):
    """The form is `vector`, and the basis has no mixing cores to make cores from."""

    code = "no_mixing_cores"

    def __init__(self) -> None:
        super().__init__("form vector needs a basis with mixing cores, the loaded one has none; export core or diag")


class IncompleteResidual(CoefficientError):
    """One of the two factors of a site's residual is missing."""

    code = "incomplete_residual"

    def __init__(self, *, found: str, missing: str) -> None:
        super().__init__(f"found the tensor {found[:100]}, but not {missing[:100]}; a residual needs both")


class WrongResidualShape(CoefficientError):
    """The factors of a residual do not fit each other or the site. Nothing is padded, transposed or cut."""

    code = "wrong_residual_shape"

    def __init__(self, site: str, *, needed: str, found: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        a, b = (str(shape)[:100] for shape in found)
        super().__init__(f"residual of {site[:100]}: needs {needed}, found A {a} and B {b}")


class ResidualRankTooHigh(CoefficientError):
    """A residual of a higher rank than this server allows, or than the site's weight can have."""

    code = "residual_rank_too_high"

    def __init__(self, site: str, *, found: int, allowed: int, remedy: str) -> None:
        super().__init__(f"residual of {site[:100]}: rank {found}, at most {allowed} here; {remedy}")


class ResidualTooLarge(CoefficientError):
    """A residual that would not fit the memory for residuals even alone."""

    code = "residual_too_large"

    def __init__(self, *, found: int, allowed: int) -> None:
        super().__init__(
            f"the residual has {found} numbers, at most {allowed} fit the memory for residuals; lower its ranks, leave "
            f"sites out, or raise --residual-mib"
        )


class WrongPrefix(CoefficientError):
    """`k` is not a prefix of the basis rows."""

    code = "wrong_prefix"

    def __init__(self, *, found: int, largest: int) -> None:
        super().__init__(f"k={found}: the loaded basis allows 1 to {largest}")


class UnknownSite(CoefficientError):
    """A site the basis does not have."""

    code = "unknown_site"

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"sites {', '.join(names[:5])} are not in the loaded basis, or not in its order")


class NotFinite(CoefficientError):
    """NaN or infinity among the numbers."""

    code = "not_finite"

    def __init__(self, tensor: str, *, n_bad: int, first: int) -> None:
        super().__init__(
            f"{tensor[:100]}: {n_bad} numbers are NaN or infinite, the first at position {first}; train again"
        )


class WrongBasis(CoefficientError):
    """The file was made for another basis than the one loaded."""

    code = "wrong_basis"

    def __init__(self, *, found: str, loaded: str) -> None:
        super().__init__(f"file is for basis {found}, this server runs {loaded}; re-export it against that one")


class WrongBase(CoefficientError):
    """The file was made for other base weights than the ones loaded."""

    code = "wrong_base"

    def __init__(self, *, found: str, loaded: str) -> None:
        super().__init__(f"file is for base weights {found}, this server runs {loaded}; train it on these")


class CapacityError(ServeError):
    """The server can't take the request now; the same request may succeed later."""

    retry_after_s: int = 1


class QueueFull(CapacityError):
    """The bounded queue of waiting requests is full. `retry_after_s` follows from the measured service rate."""

    code = "queue_full"

    def __init__(self, limit: int, *, retry_after_s: int = 1) -> None:
        super().__init__(f"{limit} requests run or wait, the most this server takes; retry in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class TenantQueueFull(CapacityError):
    """One tenant's share of the queue is full; others still get in."""

    code = "tenant_queue_full"

    def __init__(self, limit: int, *, retry_after_s: int = 1) -> None:
        super().__init__(
            f"{limit} requests of your tenant run or wait, the most one tenant may have; retry in {retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


class EngineStopped(CapacityError):
    """The engine ended before the request did."""

    code = "engine_stopped"

    def __init__(self, reason: str = "it was stopped") -> None:
        super().__init__(f"the engine has ended ({reason}); retry on another replica or after the restart")


class Draining(CapacityError):
    """The server is about to end: it takes nothing new, and what was not done in time is cut."""

    code = "draining"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__("this server is shutting down; retry on another replica or after the restart")


class DeadlineExceeded(ServeError):
    """The request had no more time. Retrying it unchanged is rarely wise, so the answer says not to."""

    code = "deadline_exceeded"

    def __init__(self, *, allowed_s: float, n_output: int, max_tokens: int) -> None:
        super().__init__(
            f"the {allowed_s:.2f} s for this request are over, {n_output} of at most {max_tokens} tokens were made; "
            f"raise timeout, lower max_tokens, or send it when the server has less to do"
        )


class ResidualMemoryFull(CapacityError):
    """The residuals of running requests take the memory that there is for residuals. Other tasks are not affected."""

    code = "residual_memory_full"

    def __init__(self, *, needed_bytes: int, used_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the task's residual needs {needed_bytes} bytes, those of running requests take {used_bytes} of the "
            f"{limit_bytes} there are; retry later, or raise --residual-mib"
        )


class StoreUnavailable(CapacityError):
    """The task store can't be read or written now. A write that ends so was not acknowledged."""

    code = "store_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the task store does not answer ({reason}); retry later")


class StoreDamaged(ServeError):
    """Part of the task store can't be read any more."""

    code = "store_damaged"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the task store is damaged here ({reason}); upload the task again or restore a backup")


class SetupError(ServeError):
    """The operator's input is wrong: a flag, a model folder, a basis file, a data set."""

    code = "setup"


class InvalidBasis(SetupError):
    """The basis file can't be used."""

    code = "invalid_basis"


class InvalidStore(SetupError):
    """The task store can't be opened."""

    code = "invalid_store"

    def __init__(
        self, url: str, reason: str, *, advice: str = "give a URL such as sqlite:////var/lib/onebasis/tasks.db"
    ) -> None:
        super().__init__(f"task store {url}: {reason}; {advice}")


class InvalidBackup(SetupError):
    """A backup file can't be written or read."""

    code = "invalid_backup"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"backup {path}: {reason}")


class StoreNotEmpty(SetupError):
    """A restore would mix two histories."""

    code = "store_not_empty"

    def __init__(self, n_versions: int, n_keys: int) -> None:
        super().__init__(
            f"the store holds {n_versions} versions of tasks and {n_keys} API keys already; restore into an empty "
            f"one, or pass --replace to drop them"
        )


class InvalidModel(SetupError):
    """The base model can't be used."""

    code = "invalid_model"


class InvalidAdapter(SetupError):
    """A LoRA adapter can't be read: a file is missing, damaged, or says what can't be true."""

    code = "invalid_adapter"

    def __init__(self, adapter: object, reason: str) -> None:
        super().__init__(f"adapter {adapter}: {reason}")


class UnsupportedAdapter(InvalidAdapter):
    """The adapter may be sound, but a field of its configuration asks for what this reader would have to leave out."""

    code = "unsupported_adapter"

    def __init__(self, adapter: object, field: str, reason: str) -> None:
        super().__init__(adapter, f"{field}: {reason}")
        self.param = field


class LowFidelity(SetupError):
    """Less of an adapter would be kept than was asked for. Nothing was written."""

    code = "low_fidelity"

    def __init__(self, adapter: str, *, what: str, kept: float, needed: float) -> None:
        super().__init__(
            f"adapter {adapter}: {kept:.3f} of its {what} would be kept, --min-energy is {needed:g}; distill it, fit "
            f"its data, keep more with --residual, or take a basis that was built with it"
        )


class InvalidData(SetupError):
    """The training data can't be used."""

    code = "invalid_data"


class InvalidFile(SetupError):
    """A file given to a command can't be used, for the reason that a server would give."""

    code = "invalid_file"

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class InvalidMerge(SetupError):
    """These tasks can't be merged in this way."""

    code = "invalid_merge"


class InvalidReport(SetupError):
    """A report can't be made of these adapters, tasks and data."""

    code = "invalid_report"
