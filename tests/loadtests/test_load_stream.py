"""Which events of a stream count as tokens."""

import json

import pytest

from loadtests.load.sse import StreamFault, TokenStream


def _stream(*choices: dict[str, object]) -> TokenStream:
    """One event a second, from second 1."""
    stream = TokenStream()
    for now_s, choice in enumerate(choices, start=1):
        stream.feed(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n", now_s)
    return stream


A, EMPTY, END = {"text": "a"}, {"text": ""}, {"text": "", "finish_reason": "length"}


@pytest.mark.parametrize(
    ("choices", "n_tokens", "times"),
    [
        ([A, A, A], 3, [1, 2, 3]),
        ([A, EMPTY, A], 3, [1, 2, 3]),
        ([EMPTY, A, A], 3, [1, 2, 3]),  # a first token that is half a character
        ([A, A, A, END], 3, [1, 2, 3]),  # the last event only closes
        ([A, A, END], 3, [1, 2, 3]),  # the last event is the third token
        ([EMPTY, A, A, A], 3, [2, 3, 4]),  # the first event only greets
        ([EMPTY, A, END], 4, [2, 3]),  # several tokens an event
        ([EMPTY, {"text": "", "token_ids": [5]}], 4, [2]),
        ([EMPTY, {"text": "", "logprobs": {"tokens": ["<0xE2>"]}}], 4, [2]),
        ([EMPTY, EMPTY], 4, []),
        ([], 4, []),
    ],
)
def test_token_times(choices, n_tokens, times):
    assert _stream(*choices).token_times(n_tokens) == times


def test_events_are_found_wherever_the_bytes_are_cut():
    text = (
        'data: {"choices":[{"text":"né"}]}\r\n\r\n: ping\r\n\r\ndata:{"choices":[],"usage":{"x":1}}\n\ndata: [DONE]\n'
    )
    body = text.encode()
    for cut in range(len(body) + 1):
        stream = TokenStream()
        stream.feed(body[:cut], 1.0)
        stream.feed(body[cut:], 2.0)
        assert (len(stream.token_times(1)), stream.usage, stream.done) == (1, {"x": 1}, True)


@pytest.mark.parametrize(
    "data", ["{", "3", '{"error": {"message": "no"}}', '{"choices": [7]}', '{"choices": {"a": 1}}']
)
def test_a_strange_event_is_a_fault(data):
    with pytest.raises(StreamFault):
        TokenStream().feed(f"data: {data}\n".encode(), 1.0)
