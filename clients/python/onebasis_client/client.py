"""The client that blocks. AsyncOneBasis in async_client.py has the same methods."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self, Unpack

import httpx

from onebasis_client import access_calls, generation_calls, task_calls
from onebasis_client.access import ApiKey, AuditEntry, Limits, NewKey, Quota, Scope
from onebasis_client.answers import ChatChunk, ChatCompletion, Completion, ModelCard, Tokens
from onebasis_client.calls import OnSent
from onebasis_client.connection import LIMITS, Connection
from onebasis_client.messages import Message, Prompt
from onebasis_client.options import Blend, ChatOptions, ChatPromptOptions, CompletionOptions
from onebasis_client.retries import Backoff, RetryRule, Until
from onebasis_client.sender import Sender
from onebasis_client.tasks import Basis, Registration, Task, Version


class OneBasis:
    """A onebasis server. Threads may share one; `close` it, or use it in `with`.

    Args:
        base_url: such as `https://host:8000`, without `/v1`.
        api_key: sent as a bearer token.
        timeout_s: longest silence of the server, so for a whole answer the time until it comes.
        connect_timeout_s: longest time to a connection.
        retries: when a failed request is sent again; Backoff() unless told.
        http: how to reach the network, for proxies and certificates; closed with this client. By default no
            environment variable is looked at.

    Every method raises OneBasisError: ApiError when the server refuses, TransportError when there is no usable answer.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        connect_timeout_s: float = 5.0,
        retries: RetryRule | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        connection = Connection(base_url, api_key=api_key, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s)
        http = httpx.Client(trust_env=False, limits=LIMITS) if http is None else http
        self._sender = Sender(http, connection, retries or Backoff())

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ generate

    def complete(self, model: str, prompt: Prompt, **options: Unpack[CompletionOptions]) -> Completion:
        """Continue a prompt. `model`: the base's name, `task`, or `task@sha256:<digest>`."""
        return self._sender.run(generation_calls.complete(model, prompt, options))

    def chat(self, model: str, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> ChatCompletion:
        """Answer a chat."""
        return self._sender.run(generation_calls.chat(model, messages, options))

    def stream_completion(
        self,
        model: str,
        prompt: Prompt,
        *,
        continuous_usage_stats: bool = False,
        **options: Unpack[CompletionOptions],
    ) -> AbstractContextManager[Iterator[Completion]]:
        """Continue a prompt, in chunks as they come. Leaving the block early ends the generation on the server.

        Args:
            continuous_usage_stats: every chunk has the usage so far, not the last one alone.
        """
        return self._sender.stream(
            generation_calls.stream_completion(model, prompt, options, continuous_usage_stats=continuous_usage_stats)
        )

    def stream_chat(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        continuous_usage_stats: bool = False,
        **options: Unpack[ChatOptions],
    ) -> AbstractContextManager[Iterator[ChatChunk]]:
        """Answer a chat, in chunks as they come: as `stream_completion`."""
        return self._sender.stream(
            generation_calls.stream_chat(model, messages, options, continuous_usage_stats=continuous_usage_stats)
        )

    def models(self) -> tuple[ModelCard, ...]:
        """What `model` may name: the base first, then the tasks that can serve."""
        return self._sender.run(generation_calls.models())

    def tokenize(
        self,
        text: str | Sequence[Message],
        *,
        model: str | None = None,
        add_special_tokens: bool = True,
        return_token_strs: bool = False,
        **of_chat: Unpack[ChatPromptOptions],
    ) -> Tokens:
        """The tokens that a generation from this prompt or chat would begin with. `model`: checked if it is given."""
        return self._sender.run(
            generation_calls.tokenize(
                text,
                of_chat,
                model=model,
                add_special_tokens=add_special_tokens,
                return_token_strs=return_token_strs,
            )
        )

    def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """Text of tokens, special ones too."""
        return self._sender.run(generation_calls.detokenize(tokens, model=model))

    # ------------------------------------------------------------ tasks

    def register(
        self,
        name: str,
        file: bytes | Path,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        on_sent: OnSent | None = None,
    ) -> Registration:
        """Upload a coefficient file under a name. Once this returns the task serves, and survives a crash.

        Args:
            metadata: to note beside the version.
            if_match: digest of the version to replace; PreconditionFailed if another one is current.
            if_absent: PreconditionFailed if the name is taken.
            on_sent: told the bytes sent so far.

        Raises:
            OSError: the file can't be read.
        """
        return self._sender.run(
            task_calls.register(name, file, metadata=metadata, if_match=if_match, if_absent=if_absent, on_sent=on_sent)
        )

    def tasks(self, page_size: int = 100) -> Iterator[Task]:
        """All tasks by name, fetched page by page while you iterate."""
        return self._sender.pages(lambda after: task_calls.page(page_size, after))

    def show(self, name: str) -> Task:
        """A task at its current version."""
        return self._sender.run(task_calls.show(name))

    def show_if_changed(self, name: str, digest: str) -> Task | None:
        """A task at its current version; None if that is still `digest`."""
        return self._sender.run(task_calls.show_if_changed(name, digest))

    def content(self, name: str, *, digest: str | None = None) -> bytes:
        """The exact bytes that were uploaded, checked against their digest. `digest`: of an older version."""
        return self._sender.run(task_calls.content(name, digest))

    def versions(self, name: str, page_size: int = 100) -> Iterator[Version]:
        """The versions of a task, newest first, fetched page by page while you iterate."""
        return self._sender.pages(lambda after: task_calls.versions_page(name, page_size, after))

    def roll_back(self, name: str, digest: str, *, if_match: str | None = None) -> Registration:
        """Make an older version the current one again, under a new generation. `if_match`: as of `register`."""
        return self._sender.run(task_calls.roll_back(name, digest, if_match=if_match))

    def store_blend(
        self,
        name: str,
        blend: Blend,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> Registration:
        """Register the weighted sum of tasks, as they stand now, as a task. Other arguments: as of `register`."""
        return self._sender.run(
            task_calls.store_blend(name, blend, metadata=metadata, if_match=if_match, if_absent=if_absent)
        )

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Delete a task, if its digest is `if_match`. Requests in flight finish on the version they began with."""
        self._sender.run(task_calls.delete(name, if_match=if_match))

    def basis(self) -> Basis:
        """What coefficients have to be made for."""
        return self._sender.run(task_calls.basis())

    def basis_content(self) -> bytes:
        """The basis file, checked against its digest."""
        return self._sender.run(task_calls.basis_content())

    # ------------------------------------------------------------ access, for admins

    def create_key(
        self, label: str, scopes: Sequence[Scope], *, tenant: str | None = None, expires_at: int | None = None
    ) -> NewKey:
        """Make a key. Its `key` is never shown again.

        Args:
            label: what it is for.
            tenant: whose tasks are private to it; the operator's by default.
            expires_at: Unix time in seconds; by default never.
        """
        return self._sender.run(access_calls.create_key(label, scopes, tenant, expires_at))

    def api_keys(self, page_size: int = 100) -> Iterator[ApiKey]:
        """All keys that were ever made, by id, fetched page by page while you iterate."""
        return self._sender.pages(lambda after: access_calls.keys_page(page_size, after))

    def revoke_key(self, key_id: str) -> None:
        """Make a key open nothing any more, on every replica within 2 s."""
        self._sender.run(access_calls.revoke_key(key_id))

    def quota(self, tenant: str) -> Quota:
        """What a tenant may use: its own quota, or the server's default."""
        return self._sender.run(access_calls.quota(tenant))

    def set_quota(self, tenant: str, **limits: Unpack[Limits]) -> Quota:
        """Replace all limits of a tenant; one that is left out does not limit."""
        return self._sender.run(access_calls.set_quota(tenant, limits))

    def audit(self, after: int = 0, page_size: int = 100) -> Iterator[AuditEntry]:
        """Every change of a task, key or quota, oldest first, fetched page by page while you iterate.

        Args:
            after: id of the last entry that is known; to follow the log, ask again with it. Nothing is skipped.
        """
        return self._sender.pages(lambda last: access_calls.audit_page(page_size, after if last is None else last))

    # ------------------------------------------------------------ operation

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait for a server that starts. Raises what the last attempt failed with."""
        self._sender.run(task_calls.ready(), Until(time.monotonic() + timeout_s))
