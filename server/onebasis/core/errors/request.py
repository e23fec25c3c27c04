"""What the caller of a route can fix."""

from onebasis.core.errors.tree import RequestError


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
