"""The basis over HTTP: what it is, and its bytes."""

from onebasis.core.ids import digest_of
from tests.api.server import ok, refused


def test_the_basis_says_what_files_must_be_made_for(server, tiny):
    basis = ok(server.client.get("/v1/basis"))
    assert (basis["digest"], basis["base_fingerprint"]) == (tiny.basis.digest, tiny.basis.base_fingerprint)
    assert (basis["kind"], basis["size_bytes"]) == ("random", tiny.basis.size_bytes)
    assert len(basis["sites"]) == 14
    assert basis["sites"][0].keys() == {"name", "d_in", "d_out", "k_in", "k_out", "n_mix"}


def test_the_basis_file_can_be_fetched_whole_in_part_and_not_twice(server, tiny):
    whole = server.client.get("/v1/basis/content")
    assert whole.content == tiny.basis_path.read_bytes()
    assert whole.headers["etag"] == f'"{digest_of(whole.content)}"'
    assert whole.headers["content-type"] == "application/octet-stream"
    part = server.client.get("/v1/basis/content", headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, whole.content[5:10])
    known = server.client.get("/v1/basis/content", headers={"If-None-Match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    head = server.client.head("/v1/basis/content")
    assert (head.content, head.headers["content-length"]) == (b"", str(tiny.basis.size_bytes))


def test_a_server_without_a_basis_has_none_to_fetch(start_server):
    refused(start_server(basis=None).client.get("/v1/basis/content"), 400, "no_basis")
