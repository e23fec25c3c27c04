"""/openapi.json is a valid description of what the server really has."""

import re

import pytest
from fastapi.openapi.models import OpenAPI

from tests.api.test_errors import routes

ROUTES = {
    "/v1/completions": {"post"},
    "/v1/chat/completions": {"post"},
    "/tokenize": {"post"},
    "/detokenize": {"post"},
    "/tokenizer_info": {"get"},
    "/v1/models": {"get"},
    "/v1/models/{name}": {"get"},
    "/v1/tasks": {"get"},
    "/v1/tasks/{name}": {"put", "get", "delete"},
    "/v1/tasks/{name}/content": {"get"},
    "/v1/tasks/{name}/versions": {"get"},
    "/v1/tasks/{name}/rollback": {"post"},
    "/v1/tasks/{name}/blend": {"post"},
    "/v1/basis": {"get"},
    "/v1/keys": {"get", "post"},
    "/v1/keys/{key_id}": {"delete"},
    "/v1/tenants/{tenant}/quota": {"get", "put"},
    "/v1/audit": {"get"},
    "/v1/basis/content": {"get"},
    "/health/live": {"get"},
    "/health/ready": {"get"},
    "/metrics": {"get"},
}


@pytest.fixture
def document(server):
    response = server.client.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


def operations(document):
    return [operation for item in document["paths"].values() for operation in item.values()]


def test_it_is_valid(document):
    assert document["openapi"].startswith("3.1")
    OpenAPI.model_validate(document)
    ids = [operation["operationId"] for operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for path, item in document["paths"].items():
        for operation in item.values():
            declared = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))


def test_every_reference_leads_somewhere(document):
    found = set(re.findall(r"'#/components/schemas/(\w+)'", str(document)))
    assert found
    assert found <= document["components"]["schemas"].keys()


def test_it_lists_the_routes(document):
    assert {path: set(item) for path, item in document["paths"].items()} == ROUTES


def test_it_lists_every_route_of_the_application(server, document):
    hidden = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc", "/health"}
    paths = {path.replace(":path}", "}") for path in routes(server.parts.app)}
    assert paths - hidden == document["paths"].keys()


def test_every_operation_is_described_and_fails_with_the_envelope(document):
    for operation in operations(document):
        assert operation["summary"]
        assert "422" not in operation["responses"], "the server never sends it"
        schema = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_bodies_refuse_what_they_do_not_name(document):
    for name in (
        *("CompletionBody", "ChatBody", "ChatMessage", "TextPart", "StreamOptions", "ResponseFormat", "JsonSchema"),
        *("StructuredOutputs", "Tool", "FunctionTool", "ToolChoice", "ToolCall", "TokenizeBody", "DetokenizeBody"),
    ):
        assert document["components"]["schemas"][name]["additionalProperties"] is False


def test_an_upload_is_bytes(document):
    body = document["paths"]["/v1/tasks/{name}"]["put"]["requestBody"]
    assert body["required"]
    assert body["content"].keys() == {"application/octet-stream"}
