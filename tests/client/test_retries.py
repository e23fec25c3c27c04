"""What is sent again after which failure, and when: against a small real server that fails as told."""

import base64
import hashlib
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from onebasis_client import (
    ApiError,
    Backoff,
    CannotConnect,
    ConnectionLost,
    TimedOut,
    UnexpectedReply,
    api_errors,
    async_client,
    client,
    connection,
)
from onebasis_client.calls import Request
from tests.client.flaky import answer, cut_after, events, flaky_server, refusal, reset, silence

FAST = Backoff(first_s=0.01, longest_s=0.02)
TASK = {
    "id": "a",
    "digest": "sha256:" + "0" * 64,
    "generation": 1,
    "base": "tiny",
    "basis": None,
    "size_bytes": 1,
    "form": "core",
    "k": None,
    "created_at": 1,
    "state": "ready",
    "reason": None,
    "provenance": None,
    "metadata": {},
}
CHUNK = (
    b'{"id":"1","created":1,"model":"m","system_fingerprint":"f","choices":[{"index":0,"text":"%s","logprobs":null,'
    b'"finish_reason":null}],"onebasis":{"task":null,"digest":null,"basis":null}}'
)


def test_a_queue_that_is_full_is_tried_again_after_what_it_asks(connect):
    with flaky_server(refusal(429, "queue_full", Retry_After="1"), answer(200, TASK)) as server:
        connect(server.url, retries=FAST).show("a")
    assert len(server.seen) == 2
    assert 1.0 <= server.pauses_s()[0] < 1.5


@pytest.mark.parametrize("name", ["retry_after_ms", "Retry_After"])
def test_the_wait_may_be_told_in_milliseconds_or_as_a_date(connect, name):
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    fields = {"Retry_After": soon} | ({"retry_after_ms": "300"} if name == "retry_after_ms" else {})
    with flaky_server(refusal(503, "store_unavailable", **fields), answer(200, TASK)) as server:
        connect(server.url, retries=FAST).show("a")
    least_s = 0.3 if name == "retry_after_ms" else 0.8
    assert least_s <= server.pauses_s()[0] < 2.5
    if name == "retry_after_ms":
        assert server.pauses_s()[0] < 0.8


@pytest.mark.parametrize(
    ("status", "code"),
    [(429, "quota_exceeded"), (429, "tenant_queue_full"), (503, "draining"), (503, "engine_stopped")],
)
def test_what_may_pass_by_itself_is_tried_again(connect, status, code):
    with flaky_server(refusal(status, code, Retry_After="0"), answer(200, _completion())) as server:
        assert connect(server.url, retries=FAST).complete("m", "p").text == "hi"
    assert len(server.seen) == 2


def test_a_wait_that_is_too_long_is_left_to_the_caller(connect):
    with (
        flaky_server(refusal(429, "queue_full", Retry_After="3600")) as server,
        pytest.raises(api_errors.QueueFull) as caught,
    ):
        connect(server.url, retries=FAST).show("a")
    assert (len(server.seen), caught.value.retry_after_s) == (1, 3600)


def test_attempts_end_and_the_last_failure_is_raised(connect):
    with flaky_server(refusal(503, "engine_stopped")) as server, pytest.raises(api_errors.EngineStopped) as caught:
        connect(server.url, retries=FAST).show("a")
    assert (len(server.seen), caught.value.status) == (4, 503)


def test_pauses_double_up_to_a_limit_and_jitter_shortens_them():
    error = api_errors.EngineStopped("stopped", status=503)
    request = Request("GET", "/")
    longest = Backoff(n_retries=5, first_s=1.0, longest_s=5.0, random=lambda: 0.0)
    assert [longest.pause_s(request, error, n) for n in range(1, 7)] == [1.0, 2.0, 4.0, 5.0, 5.0, None]
    assert Backoff(first_s=1.0, random=lambda: 0.5).pause_s(request, error, 1) == 0.75
    assert Backoff(n_retries=10_000, longest_s=5.0, random=lambda: 0.0).pause_s(request, error, 9_999) == 5.0


@pytest.mark.parametrize(
    "fails",
    [
        refusal(400, "invalid_parameter"),
        refusal(500, "internal"),
        refusal(404, "task_not_found"),
        refusal(401, "invalid_api_key"),
        refusal(403, "permission_denied"),
        refusal(504, "deadline_exceeded"),
        answer(502, b"<html>"),
    ],
)
def test_other_refusals_are_not_tried_again(connect, fails):
    with flaky_server(fails) as server, pytest.raises((ApiError, UnexpectedReply)):
        connect(server.url, retries=FAST).show("a")
    assert len(server.seen) == 1


@pytest.mark.parametrize("body", [b"<html>no backend</html>", {"message": "no backend"}, {"error": "no backend"}])
def test_a_gateways_503_needs_no_envelope(connect, body):
    with flaky_server(answer(503, body), answer(200, TASK)) as server:
        connect(server.url, retries=FAST).show("a")
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "act",
    [
        lambda c: c.delete("a"),
        lambda c: c.revoke_key("key-1"),
        lambda c: c.wait_until_ready(timeout_s=0),
        lambda c: c.show("a"),
    ],
    ids=["delete", "revoke", "wait", "show"],
)
def test_a_redirect_is_no_success(connect, act):
    elsewhere = answer(307, b"", Location="https://elsewhere/v1")
    with flaky_server(elsewhere) as server, pytest.raises(UnexpectedReply, match="307 to 'https://elsewhere/v1'"):
        act(connect(server.url, retries=FAST))
    assert len(server.seen) == 1


KEY = {
    "id": "key-1",
    "label": "l",
    "scopes": ["admin"],
    "tenant": None,
    "created_at": 1,
    "expires_at": None,
    "revoked_at": None,
    "key": "ob_1",
}
QUOTA = {
    "tenant": "t",
    "tasks": 1,
    "bytes": None,
    "requests_per_minute": None,
    "tokens_per_minute": None,
    "concurrent_requests": None,
}
WRITES = {
    "plain upload": (lambda c: c.register("a", b"data"), answer(201, TASK), True),
    "upload if absent": (lambda c: c.register("a", b"data", if_absent=True), answer(201, TASK), False),
    "upload if match": (lambda c: c.register("a", b"data", if_match="sha256:0"), answer(201, TASK), False),
    "roll back": (lambda c: c.roll_back("a", "sha256:0"), answer(201, TASK), True),
    "roll back if match": (lambda c: c.roll_back("a", "sha256:0", if_match="sha256:1"), answer(201, TASK), False),
    "blend": (lambda c: c.store_blend("a", {"b": 1.0}), answer(201, TASK), True),
    "delete": (lambda c: c.delete("a"), answer(200, {}), False),
    "make a key": (lambda c: c.create_key("l", ["admin"]), answer(201, KEY), False),
    "revoke a key": (lambda c: c.revoke_key("key-1"), answer(200, {}), True),
    "set a quota": (lambda c: c.set_quota("t", tasks=1), answer(200, QUOTA), True),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_whose_answer_was_lost_is_repeated_only_if_twice_is_once(connect, write):
    act, done, repeated = WRITES[write]
    with flaky_server(reset, done) as server:
        client = connect(server.url, retries=FAST)
        if repeated:
            act(client)
        else:
            with pytest.raises(ConnectionLost):
                act(client)
    assert len(server.seen) == 1 + repeated
    assert len({request.body for request in server.seen}) == 1


@pytest.mark.parametrize("write", WRITES)
def test_every_write_is_repeated_when_the_server_refused_to_begin(connect, write):
    act, done, _ = WRITES[write]
    with flaky_server(refusal(429, "queue_full"), done) as server:
        act(connect(server.url, retries=FAST))
    assert len(server.seen) == 2


def test_an_upload_carries_digest_length_and_the_same_body_each_time(connect):
    with flaky_server(reset, refusal(503, "store_unavailable"), answer(200, TASK)) as server:
        assert not connect(server.url, retries=FAST, api_key="secret").register("a", b"data").created
    assert [request.body for request in server.seen] == [b"data"] * 3
    for request in server.seen:
        assert (
            request.headers["content-digest"]
            == f"sha-256=:{base64.b64encode(hashlib.sha256(b'data').digest()).decode()}:"
        )
        assert request.headers["content-length"] == "4"
        assert request.headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("whole", [True, False])
def test_a_generation_is_repeated_while_nothing_was_received(connect, whole):
    good = answer(200, _completion()) if whole else events(CHUNK % b"hi", b"[DONE]")
    with flaky_server(reset, refusal(503, "engine_stopped"), good) as server:
        client = connect(server.url, retries=FAST)
        if whole:
            assert client.complete("m", "p").text == "hi"
        else:
            with client.stream_completion("m", "p") as chunks:
                assert [chunk.text for chunk in chunks] == ["hi"]
    assert len(server.seen) == 3


def test_a_generation_is_not_repeated_once_a_part_was_received(connect):
    with flaky_server(cut_after(b'{"id":'), answer(200, _completion())) as server:
        with pytest.raises(ConnectionLost):
            connect(server.url, retries=FAST).complete("m", "p")
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    "broken",
    [cut_after(b"data: " + CHUNK % b"hi" + b"\n\n", "text/event-stream"), events(CHUNK % b"hi")],
    ids=["connection cut", "no [DONE]"],
)
def test_a_stream_that_breaks_gives_its_chunks_and_then_raises(connect, broken):
    received = []
    with (
        flaky_server(broken) as server,
        pytest.raises(ConnectionLost) as caught,
        connect(server.url, retries=FAST).stream_completion("m", "p") as chunks,
    ):
        for chunk in chunks:
            received.append(chunk.text)  # noqa: PERF401
    assert (received, caught.value.heard, len(server.seen)) == (["hi"], True, 1)


def test_an_error_event_in_one_packet_with_chunks_comes_after_them(connect):
    envelope = b'{"error":{"message":"m","type":"server_error","param":null,"code":"engine_stopped"}}'
    received = []
    with (
        flaky_server(events(CHUNK % b"hi", envelope, b"[DONE]")) as server,
        pytest.raises(api_errors.EngineStopped) as caught,
        connect(server.url, retries=FAST).stream_completion("m", "p") as chunks,
    ):
        for chunk in chunks:
            received.append(chunk.text)  # noqa: PERF401
    assert (received, caught.value.status, len(server.seen)) == (["hi"], None, 1)


def test_a_connection_that_breaks_behind_the_last_event_takes_nothing_away(connect):
    whole = b"data: " + CHUNK % b"hi" + b"\n\ndata: [DONE]\n\n"
    with (
        flaky_server(cut_after(whole, "text/event-stream")) as server,
        connect(server.url, retries=FAST).stream_completion("m", "p") as chunks,
    ):
        assert [chunk.text for chunk in chunks] == ["hi"]


def test_text_may_hold_separators_of_unicode(connect):
    odd = "a\u2028b\x85c\u2029"
    with (
        flaky_server(events(CHUNK % odd.encode(), b"[DONE]")) as server,
        connect(server.url).stream_completion("m", "p") as chunks,
    ):
        assert [chunk.text for chunk in chunks] == [odd]


def test_an_answer_that_is_no_stream_is_refused(connect):
    with (
        flaky_server(answer(200, _completion())) as server,
        pytest.raises(UnexpectedReply, match="text/event-stream"),
        connect(server.url).stream_completion("m", "p") as chunks,
    ):
        next(chunks)


def test_silence_ends_at_the_timeout_and_is_not_repeated(connect):
    with flaky_server(silence(1.0)) as server:
        started_s = time.monotonic()
        with pytest.raises(TimedOut):
            connect(server.url, timeout_s=0.2, retries=FAST).show("a")
        assert time.monotonic() - started_s < 0.9
        assert len(server.seen) == 1


def test_a_closed_port_is_tried_again_until_attempts_end(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    pauses = []

    def jitter() -> float:
        pauses.append(1)
        return 0.5

    client = connect(f"http://127.0.0.1:{port}", retries=Backoff(first_s=0.01, random=jitter))
    with pytest.raises(CannotConnect, match=f"127.0.0.1:{port}"):
        client.delete("a")
    assert len(pauses) == 3


def test_bytes_that_are_not_what_the_etag_promises_are_refused(connect):
    with (
        flaky_server(answer(200, b"damaged", ETag='"sha256:00"')) as server,
        pytest.raises(UnexpectedReply, match="ETag"),
    ):
        connect(server.url).content("a")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"<html>", "needs JSON"),
        ([], "needs dict, found"),
        (TASK | {"size_bytes": "1"}, r"answer\.size_bytes: needs int, found '1'"),
        (TASK | {"size_bytes": True}, r"answer\.size_bytes: needs int, found True"),
        ({key: value for key, value in TASK.items() if key != "digest"}, r"answer\.digest is missing"),
    ],
)
def test_an_answer_of_another_shape_names_the_place(connect, body, complaint):
    with flaky_server(answer(200, body)) as server, pytest.raises(UnexpectedReply, match=complaint):
        connect(server.url).show("a")


def test_fields_that_are_new_are_left_alone(connect):
    with flaky_server(answer(200, TASK | {"new": 1})) as server:
        assert connect(server.url).show("a").size_bytes == 1


@pytest.mark.parametrize(("status", "kind"), [(418, api_errors.RequestError), (503, api_errors.CapacityError)])
def test_a_code_that_is_new_goes_by_its_status(connect, status, kind):
    with flaky_server(refusal(status, "brand_new")) as server, pytest.raises(kind) as caught:
        connect(server.url, retries=Backoff(n_retries=0)).show("a")
    assert (type(caught.value), caught.value.code) == (kind, "brand_new")


def test_waiting_outlasts_a_server_that_is_not_there_yet_and_then_starts(connect):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # a port that refuses until somebody listens
        waiting = threading.Timer(0.4, _serve_one_ready, [listener])
        waiting.start()
        connect(f"http://127.0.0.1:{listener.getsockname()[1]}").wait_until_ready(timeout_s=10)
        waiting.join()


def _serve_one_ready(listener: socket.socket) -> None:
    listener.listen()
    for status in ("503 Service Unavailable", "200 OK"):
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


def test_waiting_ends_with_the_last_failure(connect):
    with flaky_server(refusal(503, "engine_stopped")) as server, pytest.raises(api_errors.EngineStopped):
        connect(server.url).wait_until_ready(timeout_s=0.5)
    assert 2 <= len(server.seen) <= 5


def test_waiting_does_not_outlast_a_wrong_key(connect):
    with flaky_server(refusal(401, "invalid_api_key")) as server, pytest.raises(api_errors.RequestError):
        connect(server.url).wait_until_ready(timeout_s=5)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        *("localhost:8000", "", "ftp://host", "http://", "http://host:port", "http://host:65536", "http://[::1"),
        *("http://host?a=b", "http://host/#top"),
    ],
)
def test_a_base_url_needs_to_be_an_address_of_http(connect, wrong):
    with pytest.raises(ValueError, match="base_url"):
        connect(wrong)


@pytest.mark.parametrize("wrong", ["a\nb", "ü", "secret ", " secret"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(connect, wrong):
    with pytest.raises(ValueError, match="api_key") as caught:
        connect("http://127.0.0.1:1", api_key=wrong)
    assert wrong not in str(caught.value)


def test_an_empty_key_is_refused(connect):
    with pytest.raises(ValueError, match="api_key"):
        connect("http://127.0.0.1:1", api_key="")


def test_an_idle_connection_is_given_up_before_a_server_closes_it(connect, monkeypatch):
    assert connection.LIMITS.keepalive_expiry < 5, "uvicorn's"
    for module in (client, async_client):
        monkeypatch.setattr(module, "LIMITS", httpx.Limits(keepalive_expiry=0.5))
    with flaky_server(answer(200, TASK)) as server:
        connected = connect(server.url)
        connected.show("a")
        connected.show("a")
        time.sleep(0.6)
        connected.show("a")
    ports = [request.client_port for request in server.seen]
    assert ports[0] == ports[1] != ports[2]


def _completion() -> dict[str, object]:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "text": "hi", "logprobs": None, "finish_reason": "length"}
    attribution = {"task": None, "digest": None, "basis": None}
    return {
        "id": "1",
        "created": 1,
        "model": "m",
        "system_fingerprint": "f",
        "choices": [choice],
        "usage": usage,
        "onebasis": attribution,
    }
