"""The history of a task over HTTP."""

import pytest

from onebasis.core.ids import digest_of
from tests.api.server import ok, refused

UNKNOWN = "sha256:" + "0" * 64


def roll_back(server, name, digest, **headers):
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return server.client.post(f"/v1/tasks/{name}/rollback", json={"digest": digest}, headers=fields)


def generations(page):
    return [version["generation"] for version in page["data"]]


def test_versions_are_listed_newest_first_in_pages(server, tiny):
    files = [tiny.core_file(seed) for seed in range(60, 64)]
    for data in files:
        ok(server.put_task("history", data, OneBasis_Metadata=f'{{"digest": "{digest_of(data)[7:20]}"}}'))
    page = ok(server.client.get("/v1/tasks/history/versions"))
    assert page.keys() == {"object", "data", "first_id", "last_id", "has_more"}
    assert generations(page) == [4, 3, 2, 1]
    newest = page["data"][0]
    assert newest.pop("created_at") > 1_700_000_000
    assert newest == {
        "id": f"history@{digest_of(files[3])}",
        "object": "task.version",
        "task": "history",
        "digest": digest_of(files[3]),
        "generation": 4,
        "size_bytes": len(files[3]),
        "metadata": {"digest": digest_of(files[3])[7:20]},
    }
    first = ok(server.client.get("/v1/tasks/history/versions", params={"limit": 3}))
    assert (generations(first), first["last_id"], first["has_more"]) == ([4, 3, 2], 2, True)
    rest = ok(server.client.get("/v1/tasks/history/versions", params={"limit": 3, "after": first["last_id"]}))
    assert (generations(rest), rest["has_more"]) == ([1], False)


def test_any_version_can_be_fetched_and_asked(server, tiny):
    old, new = tiny.core_file(64), tiny.core_file(65)
    ok(server.put_task("fetched", old))
    old_text = server.text("fetched")
    ok(server.put_task("fetched", new))
    url = "/v1/tasks/fetched/content"
    response = server.client.get(url, params={"digest": digest_of(old)})
    assert (response.content, response.headers["etag"]) == (old, f'"{digest_of(old)}"')
    assert server.client.get(url).content == new
    assert server.text(f"fetched@{digest_of(old)}") == old_text
    refused(server.client.get(url, params={"digest": UNKNOWN}), 404, "version_not_found", "digest")
    refused(server.client.get(url, params={"digest": "sha256:1"}), 400, "invalid_digest")
    alpha = ok(server.client.get("/v1/tasks/alpha"))["digest"]
    refused(server.client.get(url, params={"digest": alpha}), 404, "version_not_found", "digest")


def test_a_roll_back_serves_the_older_bytes_at_once_as_a_new_version(server, tiny):
    old, new = tiny.core_file(66), tiny.core_file(67)
    ok(server.put_task("rolled", old, OneBasis_Metadata='{"note": "good"}'))
    good_text = server.text("rolled")
    ok(server.put_task("rolled", new))
    assert server.text("rolled") != good_text
    response = roll_back(server, "rolled", digest_of(old), If_Match=f'"{digest_of(new)}"')
    assert (response.status_code, response.headers["etag"]) == (201, f'"{digest_of(old)}"')
    card = response.json()
    assert (card["generation"], card["digest"], card["metadata"]) == (3, digest_of(old), {"note": "good"})
    assert ok(server.client.get("/v1/tasks/rolled")) == card
    answer = server.complete(model="rolled")
    assert (answer["choices"][0]["text"], answer["onebasis"]["digest"]) == (good_text, digest_of(old))
    assert generations(ok(server.client.get("/v1/tasks/rolled/versions"))) == [3, 2, 1]
    again = roll_back(server, "rolled", digest_of(old))
    assert (again.status_code, again.json()) == (200, card)
    refused(roll_back(server, "rolled", digest_of(new), If_Match=f'"{digest_of(new)}"'), 412, "precondition_failed")


def test_a_roll_back_to_nothing_changes_nothing(server, tiny):
    ok(server.put_task("stays", tiny.core_file(68)))
    refused(roll_back(server, "stays", UNKNOWN), 404, "version_not_found", "digest")
    refused(roll_back(server, "stays", "latest"), 400, "invalid_digest")
    refused(server.client.post("/v1/tasks/stays/rollback", json={}), 400, "invalid_parameter", "digest")
    refused(roll_back(server, "nobody", UNKNOWN), 404, "task_not_found")
    refused(roll_back(server, "no%20body", UNKNOWN), 404, "task_not_found")
    assert ok(server.client.get("/v1/tasks/stays"))["generation"] == 1


def test_what_is_older_than_a_delete_is_gone(server, tiny):
    old, new = tiny.core_file(69), tiny.core_file(70)
    ok(server.put_task("reborn", old))
    ok(server.client.delete("/v1/tasks/reborn"))
    refused(server.client.get("/v1/tasks/reborn/versions"), 404, "task_not_found")
    refused(roll_back(server, "reborn", digest_of(old)), 404, "task_not_found")
    ok(server.put_task("reborn", new))
    assert generations(ok(server.client.get("/v1/tasks/reborn/versions"))) == [3]
    refused(roll_back(server, "reborn", digest_of(old)), 404, "version_not_found", "digest")
    params = {"digest": digest_of(old)}
    refused(server.client.get("/v1/tasks/reborn/content", params=params), 404, "version_not_found", "digest")


@pytest.mark.parametrize(("param", "value"), [("limit", "0"), ("limit", "1001"), ("after", "0"), ("after", "x")])
def test_a_wrong_page_is_refused_by_name(server, param, value):
    response = server.client.get("/v1/tasks/alpha/versions", params={param: value})
    refused(response, 400, "invalid_parameter", param)
