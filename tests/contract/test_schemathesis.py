"""schemathesis makes requests from our OpenAPI document, right and wrong ones: no 5xx, and answers as described."""

from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.server import RunningServer
from tests.api.test_errors import CODES

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
KEY = "a" * 40
N_EXAMPLES = 4


@pytest.fixture(scope="module")
def described(tiny, tmp_path_factory) -> Iterator[RunningServer]:
    """With keys in a file, so that those which it makes and revokes lock nobody out, and every route there is."""
    folder = tmp_path_factory.mktemp("described")
    keys = folder / "keys"
    keys.write_text(f"generate,register,admin {KEY}\n")
    with RunningServer(tiny, api_keys_file=keys, lora_root=folder, max_model_len=64) as server:
        server.client.headers["Authorization"] = f"Bearer {KEY}"
        for name in ("0", "1"):
            assert server.put_task(name, tiny.core_file(0)).is_success
        yield server


SETTINGS = settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_requests_made_from_the_document_are_answered_as_it_says(described):
    """Without schemathesis' own pytest plugin, which does not know this pytest."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", described.parts.app)
    n_asked = Counter()
    for found in schema.get_all_operations():

        def check(case: schemathesis.Case) -> None:
            n_asked[case.operation.label] += 1
            answer_as_described(case)

        given(case=found.ok().as_strategy())(SETTINGS(check))()
    assert len(n_asked) > 20
    assert min(n_asked.values()) >= 1


def answer_as_described(case: schemathesis.Case) -> None:
    if isinstance(case.body, dict):
        case.body.pop("timeout", None)  # a tiny one is a 504, rightly
    response = case.call(headers={"Authorization": f"Bearer {KEY}"})
    case.validate_response(response, checks=CHECKS)
    if response.status_code >= 400 and case.method != "HEAD":
        error = response.json()["error"]
        assert CODES[error["code"]] == response.status_code
