"""The branch of the error tree for callers: who they are, what they may do, how much of it."""

from onebasis.core.errors import CapacityError, RequestError, SetupError


class InvalidApiKey(RequestError):
    """No key, or one that does not count (any more). All of them read alike: a guess learns nothing."""

    code = "invalid_api_key"

    def __init__(self, *, given: bool) -> None:
        found = "the API key is unknown, revoked or expired" if given else "found no API key"
        super().__init__(f"{found}; send a valid one as 'Authorization: Bearer ob_...'")
        self.given = given


class PermissionDenied(RequestError):
    """The caller is known and may not do this."""

    code = "permission_denied"


class KeyNotFound(RequestError):
    """No key has this id."""

    code = "key_not_found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no key has the id {key_id[:64]!r}; GET /v1/keys lists them")


class QuotaExceeded(CapacityError):
    """The tenant has used up what it may use; `retry_after_s` says when that changes at the earliest."""

    code = "quota_exceeded"

    def __init__(
        self, quota: str, *, found: str, allowed: int, retry_after_s: int, remedy: str = "retry later"
    ) -> None:
        super().__init__(f"quota {quota}: found {found}, allowed {allowed}; {remedy}")
        self.retry_after_s = retry_after_s


class InvalidKeyFile(SetupError):
    """The file of API keys can't be used. The message never repeats what is in it."""

    code = "invalid_key_file"
