"""Text that can't fit is refused before it is tokenized: tokenizing takes far more memory than the text."""

import pytest

from tests.api.server import refused

N_CHARACTERS = 900_000


@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        ("/v1/completions", "prompt", {"prompt": "a b " * (N_CHARACTERS // 4)}),
        ("/v1/completions", "prompt", {"prompt": ["a", "a" * N_CHARACTERS]}),
        ("/v1/chat/completions", "messages", {"messages": [{"role": "user", "content": "a" * N_CHARACTERS}]}),
    ],
)
def test_text_that_can_not_fit_is_refused_by_its_length(server, path, param, body):
    response = server.client.post(path, json={"model": "alpha", **body}, timeout=60)
    assert "at least" in refused(response, 400, "context_length_exceeded", param)  # a count would need the tokens
