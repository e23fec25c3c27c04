"""The task registry through both clients, against a real server."""

from dataclasses import fields

import pytest

from onebasis.core.ids import digest_of
from onebasis_client import api_errors, connection
from onebasis_client.tasks import Residual, Task
from tests.api.server import TASKS, ok
from tests.api.tiny_model import BASE_NAME
from tests.coefficients.builders import random_residual


@pytest.fixture
def name(client, request):
    """A name of the test's own; the task is gone afterwards."""
    name = "client." + request.node.name.replace("[", ".").replace("]", "")[-100:]
    yield name
    try:
        client.delete(name)
    except api_errors.TaskNotFound:
        return


def test_an_upload_is_created_once_and_comes_back_exactly(client, server, name):
    data = server.model.core_file(11)
    first, again = client.register(name, data), client.register(name, data)
    assert (first.created, again.created) == (True, False)
    assert first.task == again.task == client.show(name)
    assert first.task.id == name
    assert first.task.digest == digest_of(data)
    assert (first.task.size_bytes, first.task.state) == (len(data), "ready")
    assert client.content(name) == data


def test_a_task_has_the_fields_of_the_servers_card_and_says_what_its_residual_costs(client, server, name):
    site = server.model.basis.sites[0]
    client.register(name, server.model.core_file(11, residual={site.name: random_residual(site, 3)}))
    card = ok(server.client.get(f"/v1/tasks/{name}"))
    assert {field.name for field in fields(Task)} == card.keys() - {"object"}
    assert client.show(name).residual == Residual(rank=3, size_bytes=2 * 3 * (site.d_in + site.d_out), sites=1)
    assert client.show(TASKS[0]).residual is None


def test_a_file_is_uploaded_by_path_and_its_progress_told(client, server, name, tmp_path):
    path = tmp_path / "a.coef.safetensors"
    path.write_bytes(server.model.core_file(12))
    told: list[int] = []
    assert client.register(name, path, on_sent=told.append).created
    assert (told[0], told[-1]) == (0, path.stat().st_size)
    assert client.content(name) == path.read_bytes()


def test_progress_of_a_large_body_is_told_piece_by_piece(client, name):
    told: list[int] = []
    with pytest.raises(api_errors.NotSafetensors):
        client.register(name, b"x" * 200_000, on_sent=told.append)
    assert told == [0, 65536, 131072, 196608, 200_000]


def test_a_path_that_is_not_there_is_an_os_error(client, tmp_path):
    with pytest.raises(FileNotFoundError):
        client.register("nothing", tmp_path / "nothing")


def test_a_replace_needs_the_version_it_names(client, server, name):
    old, new, other = (server.model.core_file(seed) for seed in (13, 14, 15))
    client.register(name, old, if_absent=True)
    assert client.register(name, new, if_match=digest_of(old)).created
    with pytest.raises(api_errors.PreconditionFailed):
        client.register(name, other, if_match=digest_of(old))
    with pytest.raises(api_errors.PreconditionFailed):
        client.register(name, other, if_absent=True)
    with pytest.raises(api_errors.PreconditionFailed):
        client.delete(name, if_match=digest_of(old))
    assert client.content(name) == new
    client.delete(name, if_match=digest_of(new))
    with pytest.raises(api_errors.TaskNotFound):
        client.show(name)


def test_history_is_listed_read_and_gone_back_to(client, server, name):
    files = [server.model.core_file(seed) for seed in (17, 18, 19)]
    for number, data in enumerate(files):
        client.register(name, data, metadata={"run": f"{number} é"})
    history = list(client.versions(name, page_size=1))
    assert [version.digest for version in history] == [digest_of(data) for data in reversed(files)]
    assert [version.metadata["run"] for version in history] == ["2 é", "1 é", "0 é"]
    assert client.content(name, digest=history[2].digest) == files[0]
    with pytest.raises(api_errors.PreconditionFailed):
        client.roll_back(name, history[2].digest, if_match=history[1].digest)
    back = client.roll_back(name, history[2].digest, if_match=history[0].digest)
    assert (back.created, back.task.digest, back.task.metadata) == (True, digest_of(files[0]), {"run": "0 é"})
    assert not client.roll_back(name, history[2].digest).created
    assert client.content(name) == files[0]
    with pytest.raises(api_errors.VersionNotFound):
        client.roll_back(name, "sha256:" + "0" * 64)


def test_a_condition_that_is_no_digest_is_judged_by_the_server(client, server, name):
    with pytest.raises(api_errors.RequestError):
        client.register(name, server.model.core_file(17), if_match="ü")


def test_a_known_version_is_not_sent_again(client, server, name):
    digest = client.register(name, server.model.core_file(17)).task.digest
    assert client.show_if_changed(name, digest) is None
    client.register(name, server.model.core_file(18))
    assert client.show_if_changed(name, digest) == client.show(name)


def test_a_stored_blend_answers_as_the_blend_of_a_request(client, name):
    parts = {"alpha": 0.5, "beta": -0.25}
    stored = client.store_blend(name, parts, metadata={"why": "test"}, if_absent=True)
    assert (stored.created, stored.task.metadata) == (True, {"why": "test"})
    with pytest.raises(api_errors.PreconditionFailed):
        client.store_blend(name, parts, if_absent=True)
    assert not client.store_blend(name, parts).created
    options = {"temperature": 0, "ignore_eos": True, "max_tokens": 8}
    mixed = client.complete(BASE_NAME, "the cat", blend=parts, **options)
    assert mixed.text == client.complete(name, "the cat", **options).text
    assert {part.task: part.weight for part in mixed.onebasis.blend} == parts
    assert [part.digest for part in mixed.onebasis.blend] == [client.show(task).digest for task in parts]
    with client.stream_completion(BASE_NAME, "the cat", blend=parts, **options) as chunks:
        assert "".join(chunk.text for chunk in chunks) == mixed.text


def test_a_damaged_upload_is_refused_by_its_digest(client, server, name, monkeypatch):
    whole = connection.Body.__iter__

    def damaged(body):
        for piece in whole(body):
            yield piece[:-1] + bytes([piece[-1] ^ 1])

    monkeypatch.setattr(connection.Body, "__iter__", damaged)
    with pytest.raises(api_errors.DigestMismatch):
        client.register(name, server.model.core_file(16))


def test_a_file_for_another_basis_is_refused(client, server, name):
    with pytest.raises(api_errors.WrongBasis) as caught:
        client.register(name, server.model.core_file(0, basis="sha256:" + "0" * 64))
    assert isinstance(caught.value, api_errors.CoefficientError)


def test_tasks_are_listed_across_pages(client):
    paged = list(client.tasks(page_size=1))
    assert [task.id for task in paged] == sorted(task.id for task in paged)
    assert set(TASKS) <= {task.id for task in paged}
    assert paged == list(client.tasks())


@pytest.mark.parametrize("wrong", ["..", ".", "a/b", "a b", "a?b=c", "a#b", "%2e", "ü", "\udc80", "a%2Fcontent"])
def test_a_wrong_name_reaches_the_server_as_a_name(client, wrong):
    with pytest.raises((api_errors.InvalidTaskName, api_errors.RouteNotFound, api_errors.TaskNotFound)) as caught:
        client.show(wrong)
    if "/" not in wrong:
        assert isinstance(caught.value, api_errors.InvalidTaskName | api_errors.TaskNotFound)


def test_the_basis_is_the_servers(client, server):
    basis = client.basis()
    assert basis.digest == server.model.basis.digest
    assert [site.name for site in basis.sites] == [site.name for site in server.model.basis.sites]


def test_the_basis_file_comes_back_exactly(client, server):
    assert client.basis_content() == server.model.basis_path.read_bytes()


def test_a_server_without_a_basis_says_so(connect, start_server):
    bare = connect(f"http://127.0.0.1:{start_server(basis=None).port}")
    with pytest.raises(api_errors.NoBasis):
        bare.basis()


def test_a_running_server_is_ready_at_once(client):
    client.wait_until_ready(timeout_s=0.0)
