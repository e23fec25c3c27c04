"""The task registry over HTTP: upload, conditions, digests, list, fetch, delete, replace while serving."""

import base64
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from onebasis.core.ids import digest_of
from tests.api.server import TASKS, events, ok, refused
from tests.api.tiny_model import BASE_NAME

INVALID_NAMES = [
    "..",
    ".",
    ".hidden",
    "-dash",
    "_under",
    "a b",
    "a@b",
    "a:b",
    "é",
    "\uff41",
    "a" * 129,
    "a\\b",
    "a\x00b",
    "a\nb",
    "a%b",
    "a;b",
    "a?b",
    "a#b",
    "~",
    "a,b",
    "\u202ea",
    "�",
    "a\x7f",
]


METADATA_REFUSED = ("invalid_parameter", "OneBasis-Metadata")


def content_digest(data):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def escaped(name):
    """A path segment with every byte that is not plain escaped, dots included, so that no client tidies it up."""
    return "".join(c if c.isascii() and c.isalnum() else "".join(f"%{b:02X}" for b in c.encode()) for c in name)


def test_a_new_task_is_201_with_card_etag_and_location(server, tiny):
    data = tiny.core_file(20, task="suggested", provenance={"recipe": "fit", "score": 0.5})
    response = server.put_task("new", data)
    assert response.status_code == 201
    assert response.headers["location"] == "/v1/tasks/new"
    assert response.headers["etag"] == f'"{digest_of(data)}"'
    card = response.json()
    assert card.pop("created_at") > 1_700_000_000
    assert card == {
        "id": "new",
        "object": "task",
        "digest": digest_of(data),
        "generation": 1,
        "base": BASE_NAME,
        "basis": tiny.basis.digest,
        "size_bytes": len(data),
        "form": "core",
        "k": None,
        "residual": None,
        "state": "ready",
        "reason": None,
        "provenance": {"recipe": "fit", "score": 0.5},
        "metadata": {},
        "tenant": None,
    }
    shown = server.client.get(response.headers["location"])
    assert shown.json() == response.json()
    assert shown.headers["etag"] == response.headers["etag"]


def test_the_same_bytes_again_are_200_and_change_nothing(server, tiny):
    first = server.put_task("same", tiny.core_file(21))
    again = server.put_task("same", tiny.core_file(21))
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["location"] == "/v1/tasks/same"


def test_other_bytes_replace_and_serve_at_once(server, tiny):
    ok(server.put_task("replaced", tiny.core_file(22)))
    before = server.text("replaced")
    response = server.put_task("replaced", tiny.core_file(23))
    assert (response.status_code, response.json()["generation"]) == (201, 2)
    assert server.text("replaced") != before


def test_if_match_replaces_only_what_it_names(server, tiny):
    first = ok(server.put_task("matched", tiny.core_file(24)))["digest"]
    second = server.put_task("matched", tiny.core_file(25), If_Match=f'"{first}"')
    assert second.status_code == 201
    message = refused(server.put_task("matched", tiny.core_file(26), If_Match=f'"{first}"'), 412, "precondition_failed")
    assert second.json()["digest"] in message
    assert ok(server.client.get("/v1/tasks/matched"))["digest"] == second.json()["digest"]
    refused(server.put_task("unmatched", tiny.core_file(24), If_Match=f'"{first}"'), 412, "precondition_failed")
    refused(server.client.get("/v1/tasks/unmatched"), 404, "task_not_found")


def test_if_none_match_creates_only(server, tiny):
    assert server.put_task("once", tiny.core_file(27), If_None_Match="*").status_code == 201
    refused(server.put_task("once", tiny.core_file(28), If_None_Match="*"), 412, "precondition_failed")
    refused(server.put_task("once", tiny.core_file(27), If_None_Match="*"), 412, "precondition_failed")


def test_conditions_are_those_of_the_rfc(server, tiny):
    one, two = tiny.core_file(48), tiny.core_file(49)
    etag_one, etag_two = (f'"{digest_of(data)}"' for data in (one, two))
    refused(server.put_task("rfc", one, If_Match="*"), 412, "precondition_failed")
    assert server.put_task("rfc", one, If_None_Match=f'"x", {etag_two}').status_code == 201
    for header, value in [
        ("If_Match", '"abc"'),
        ("If_Match", f"W/{etag_one}"),  # strong comparison
        ("If_Match", f"{etag_two}, W/{etag_one}"),
        ("If_None_Match", f'"x" , {etag_one}'),
        ("If_None_Match", f"W/{etag_one}"),  # weak comparison
    ]:
        refused(server.put_task("rfc", two, **{header: value}), 412, "precondition_failed")
        assert ok(server.client.get("/v1/tasks/rfc"))["generation"] == 1
    assert server.put_task("rfc", two, If_Match=f'{etag_two},"x", {etag_one}').status_code == 201
    headers = [("If-Match", '"x"'), ("If-Match", etag_two)]  # two lines of one field are one list
    assert server.client.put("/v1/tasks/rfc", content=one, headers=headers).status_code == 201
    assert server.put_task("rfc", one, If_Match="*").status_code == 200
    refused(server.client.delete("/v1/tasks/rfc", headers={"If-None-Match": etag_one}), 412, "precondition_failed")


@pytest.mark.parametrize("path", ["", "/content"])
def test_a_read_of_a_known_version_is_304_without_a_body(server, path):
    url = f"/v1/tasks/alpha{path}"
    etag = server.client.get(url).headers["etag"]
    for known in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        response = server.client.get(url, headers={"If-None-Match": known})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
        assert server.client.head(url, headers={"If-None-Match": known}).status_code == 304
    assert server.client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200
    refused(server.client.get(url, headers={"If-None-Match": "x"}), 400, "invalid_parameter", "If-None-Match")
    refused(server.client.get(f"/v1/tasks/nobody{path}", headers={"If-None-Match": "*"}), 404, "task_not_found")


def test_metadata_is_kept_with_the_version(server, tiny):
    largest = {f"{i:064}": "\u20ac" * 512 for i in range(16)}
    for noted in ({}, {"team": "blau", "\u00e9": "\u20ac\n"}, largest):
        response = server.put_task("noted", tiny.core_file(46), OneBasis_Metadata=json.dumps(noted))
        assert response.json()["metadata"] == noted
        assert ok(server.client.get("/v1/tasks/noted"))["metadata"] == noted
    again = server.put_task("noted", tiny.core_file(46))
    assert (again.status_code, again.json()["metadata"]) == (200, largest)
    assert server.put_task("noted", tiny.core_file(47)).json()["metadata"] == {}


def test_of_many_racers_with_one_condition_one_wins(server, tiny):
    ok(server.put_task("raced", tiny.core_file(29)))
    etag = server.client.get("/v1/tasks/raced").headers["etag"]
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda i: server.put_task("raced", tiny.core_file(30 + i), If_Match=etag), range(8)))
    assert sorted(response.status_code for response in responses) == [201] + [412] * 7
    (winner,) = [response.json()["digest"] for response in responses if response.status_code == 201]
    assert ok(server.client.get("/v1/tasks/raced"))["digest"] == winner


@pytest.mark.parametrize(
    ("header", "value", "code", "param"),
    [
        ("If-Match", "sha256:" + "0" * 64, "invalid_parameter", "If-Match"),
        ("If-Match", "", "invalid_parameter", "If-Match"),
        ("If-Match", '"a" "b"', "invalid_parameter", "If-Match"),
        ("If-Match", '"a",', "invalid_parameter", "If-Match"),
        ("If-Match", '*, "a"', "invalid_parameter", "If-Match"),
        ("If-None-Match", 'w/"a"', "invalid_parameter", "If-None-Match"),
        ("If-None-Match", '"a', "invalid_parameter", "If-None-Match"),
        ("OneBasis-Metadata", "", "invalid_parameter", "OneBasis-Metadata"),
        ("OneBasis-Metadata", "[]", "invalid_parameter", "OneBasis-Metadata"),
        ("OneBasis-Metadata", '{"a": 1}', "invalid_parameter", "OneBasis-Metadata"),
        ("OneBasis-Metadata", '{"": "a"}', "invalid_parameter", "OneBasis-Metadata"),
        ("OneBasis-Metadata", '{"a": "\\ud800"}', "invalid_parameter", "OneBasis-Metadata"),
        ("OneBasis-Metadata", json.dumps({"a" * 65: ""}), "invalid_parameter", "OneBasis-Metadata"),
        ("OneBasis-Metadata", json.dumps({"a": "b" * 513}), "invalid_parameter", "OneBasis-Metadata"),
        ("OneBasis-Metadata", json.dumps(dict.fromkeys("abcdefghijklmnopq", "")), *METADATA_REFUSED),
        ("OneBasis-Metadata", "[" * 9999, "invalid_parameter", "OneBasis-Metadata"),
        ("Content-Digest", "sha-256=:AAAA:", "invalid_parameter", "Content-Digest"),
        ("Content-Digest", "sha-256=abc", "invalid_parameter", "Content-Digest"),
        ("Content-Digest", "sha-256=:!!!!:", "invalid_parameter", "Content-Digest"),
        ("Content-Digest", "sha-256=:=:", "invalid_parameter", "Content-Digest"),
        ("Content-Digest", "", "invalid_parameter", "Content-Digest"),
        ("Content-Digest", "sha-512=:AAAA:", "invalid_parameter", "Content-Digest"),
    ],
)
def test_malformed_conditions_and_digests_are_refused_before_anything_is_stored(
    server, tiny, header, value, code, param
):
    refused(server.put_task("malformed", tiny.core_file(40), **{header: value}), 400, code, param)
    refused(server.client.get("/v1/tasks/malformed"), 404, "task_not_found")


def test_a_content_digest_is_compared_with_the_bytes(server, tiny):
    data, other = tiny.core_file(41), tiny.core_file(42)
    refused(server.put_task("digested", data, Content_Digest=content_digest(other)), 400, "digest_mismatch")
    refused(server.client.get("/v1/tasks/digested"), 404, "task_not_found")
    assert server.put_task("digested", data, Content_Digest=content_digest(data)).status_code == 201
    several = f"sha-512=:AAAA:, {content_digest(other)}"
    assert server.put_task("digested", other, Content_Digest=several).status_code == 201


@pytest.mark.parametrize("name", INVALID_NAMES, ids=ascii)
def test_a_name_that_can_not_be_a_task_is_refused(server, tiny, name):
    path = f"/v1/tasks/{escaped(name)}"
    refused(server.client.put(path, content=tiny.core_file(0)), 400, "invalid_task_name")
    refused(server.client.get(path), 404, "task_not_found")
    refused(server.client.delete(path), 404, "task_not_found")


@pytest.mark.parametrize("path", ["", "a%2Fb", "..%2Fx", "%2e%2e%2f%2e%2e%2fetc", "a/b", "a%2F", "%2F"])
def test_a_name_with_a_slash_is_no_route(server, tiny, path):
    response = server.client.put(f"/v1/tasks/{path}", content=tiny.core_file(0))
    refused(response, 404, "route_not_found")


@pytest.mark.parametrize("name", ["a", "9", "A.b-c_d", "x" * 128, "content", "models"])
def test_every_name_that_is_allowed_works(server, tiny, name):
    assert server.put_task(name, tiny.core_file(43)).is_success
    assert server.complete(model=name)["onebasis"]["task"] == name
    assert server.client.get(f"/v1/tasks/{name}/content").content == tiny.core_file(43)
    assert server.client.delete(f"/v1/tasks/{name}").is_success


def test_the_base_s_name_is_reserved(server, tiny):
    refused(server.put_task(BASE_NAME, tiny.core_file(0)), 400, "reserved_task_name")
    refused(server.client.get(f"/v1/tasks/{BASE_NAME}"), 404, "task_not_found")


def test_content_is_the_exact_bytes(server, tiny):
    data = tiny.core_file(44)
    ok(server.put_task("bytes", data))
    response = server.client.get("/v1/tasks/bytes/content")
    assert response.content == data
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["etag"] == f'"{digest_of(data)}"'


def test_head_is_get_without_the_body(server):
    get, head = (server.client.request(method, "/v1/tasks/alpha") for method in ("GET", "HEAD"))
    assert head.status_code == 200
    assert head.content == b""
    for header in ("etag", "content-length", "content-type"):
        assert head.headers[header] == get.headers[header]
    assert server.client.head("/v1/tasks/nobody").status_code == 404


def test_delete_takes_a_task_away(server, tiny):
    ok(server.put_task("deleted", tiny.core_file(45)))
    answer = ok(server.client.delete("/v1/tasks/deleted"))
    assert answer == {"id": "deleted", "object": "task.deleted", "deleted": True}
    refused(server.client.delete("/v1/tasks/deleted"), 404, "task_not_found")
    refused(server.client.get("/v1/tasks/deleted"), 404, "task_not_found")
    refused(server.client.get("/v1/tasks/deleted/content"), 404, "task_not_found")
    refused(server.client.get("/v1/models/deleted"), 404, "model_not_found", "model")
    for model in ("deleted", f"deleted@{digest_of(tiny.core_file(45))}"):
        refused(server.post("/v1/completions", model=model, prompt="a"), 404, "model_not_found", "model")
    again = server.put_task("deleted", tiny.core_file(45), If_None_Match="*")
    assert (again.status_code, again.json()["generation"]) == (201, 3)


def test_delete_obeys_if_match(server, tiny):
    ok(server.put_task("kept", tiny.core_file(46)))
    other = f'"{digest_of(tiny.core_file(47))}"'
    refused(server.client.delete("/v1/tasks/kept", headers={"If-Match": other}), 412, "precondition_failed")
    etag = server.client.get("/v1/tasks/kept").headers["etag"]
    assert server.client.delete("/v1/tasks/kept", headers={"If-Match": etag}).is_success


def test_pages_joined_are_the_whole_list(start_server, tiny):
    server = start_server()
    names = sorted(["b", "a", "c", "B", "a1", "a-2", "0"])
    for name in names:
        ok(server.put_task(name, tiny.core_file(1)))
    found, after = [], None
    for _ in range(4):
        page = ok(server.client.get("/v1/tasks", params={"limit": 2} | ({} if after is None else {"after": after})))
        ids = [card["id"] for card in page["data"]]
        assert page["object"] == "list"
        assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
        found += ids
        after = page["last_id"]
        assert page["has_more"] == (found != names)
    assert found == names
    assert [card["id"] for card in ok(server.client.get("/v1/tasks"))["data"]] == names
    behind = ok(server.client.get("/v1/tasks", params={"after": "zzz"}))
    assert behind == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    between = ok(server.client.get("/v1/tasks", params={"after": "a0", "limit": 1}))
    assert [card["id"] for card in between["data"]] == ["a1"]


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "ten", "1.5", "", "9" * 5000])
def test_a_wrong_page_size_is_refused_by_name(server, limit):
    refused(server.client.get("/v1/tasks", params={"limit": limit}), 400, "invalid_parameter", "limit")


def test_requests_in_flight_finish_on_the_version_they_began_with(server, tiny, gate):
    old, new = tiny.core_file(50), tiny.core_file(51)
    ok(server.put_task("swap", old))
    before = server.text("swap", max_tokens=12)
    with ThreadPoolExecutor(2) as pool:
        with gate.shut():
            running = pool.submit(server.complete, model="swap", max_tokens=12)
            for _ in range(3):
                gate.wait_for_a_step()
                gate.let_a_step_pass()
            assert server.put_task("swap", new).status_code == 201
            late = pool.submit(server.complete, model="swap", max_tokens=12)
        answer, late_answer = running.result(), late.result()
    assert answer["onebasis"]["digest"] == digest_of(old)
    assert answer["choices"][0]["text"] == before
    assert late_answer["onebasis"]["digest"] == digest_of(new)
    assert late_answer["choices"][0]["text"] == server.text("swap", max_tokens=12) != before


@pytest.mark.parametrize("change", ["replace", "delete"])
def test_a_stream_under_way_is_not_touched_by_a_change(server, tiny, gate, change):
    ok(server.put_task("streaming", tiny.core_file(52)))
    before = server.text("streaming", max_tokens=12)
    with ExitStack() as stack:
        with gate.shut():
            body = {"model": "streaming", "prompt": "the cat", "max_tokens": 12}
            response = stack.enter_context(server.open_stream("/v1/completions", **body))
            gate.wait_for_a_step()
            gate.let_a_step_pass()
            gate.wait_for_a_step()
            if change == "replace":
                assert server.put_task("streaming", tiny.core_file(53)).status_code == 201
            else:
                assert server.client.delete("/v1/tasks/streaming").is_success
        chunks = list(events(response))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == before
    assert {chunk["onebasis"]["digest"] for chunk in chunks} == {digest_of(tiny.core_file(52))}


def test_a_server_without_a_basis_holds_no_tasks(start_server, tiny):
    server = start_server(basis=None)
    refused(server.put_task("task", tiny.core_file(0)), 400, "no_basis")
    refused(server.client.get("/v1/basis"), 400, "no_basis")
    assert ok(server.client.get("/v1/tasks"))["data"] == []
    assert [card["id"] for card in ok(server.client.get("/v1/models"))["data"]] == [BASE_NAME]
    refused(server.post("/v1/completions", model="task", prompt="a"), 404, "model_not_found", "model")
    answer = server.complete()
    assert answer["onebasis"] == {"task": None, "digest": None, "basis": None}
    assert server.metric("vllm:max_gpu_lora_adapters") == 0


def test_the_bare_model_answers_the_same_with_and_without_a_basis(server, start_server):
    bare = start_server(basis=None)
    body = {"max_tokens": 30, "logprobs": 3}
    assert bare.complete(**body)["choices"] == server.complete(**body)["choices"]


def test_three_fixed_tasks_are_listed(server):
    assert set(TASKS) <= {card["id"] for card in ok(server.client.get("/v1/tasks"))["data"]}
