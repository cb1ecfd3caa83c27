"""The routing table: what it takes, and that it never shows a secret."""

from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr, ValidationError

from services.gateway.table import Route, RouteTable, Worker


def route(endpoint_id: UUID, generation: int) -> Route:
    worker = Worker(id="w", url="http://127.0.0.1:9/", api_key=SecretStr("sesame"))
    return Route(
        endpoint_id=endpoint_id,
        project_id=uuid4(),
        model_name="m",
        served_name="s",
        state="running",
        workers=(worker,),
        generation=generation,
    )


def test_an_older_generation_does_not_replace_a_newer() -> None:
    table, id_ = RouteTable(), uuid4()
    told: list[int | None] = []
    table.subscribe(lambda _, found: told.append(None if found is None else found.generation))
    assert table.replace(id_, route(id_, 2))
    assert not table.replace(id_, route(id_, 1))
    assert table.replace(id_, route(id_, 2))
    assert table.replace(id_, route(id_, 3))
    table.remove(id_)
    table.remove(id_)
    assert told == [2, 2, 3, None]
    assert table.get(id_) is None


def test_a_route_of_another_endpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="another endpoint"):
        RouteTable().replace(uuid4(), route(uuid4(), 1))


def test_adapters_are_models_of_their_own() -> None:
    found = route(uuid4(), 1).model_copy(update={"aliases": ("a",), "adapters": ("sql", "a")})
    names = {
        name: found.name_for_worker(name) for name in (None, "m", "s", "a", "sql", str(found.endpoint_id), "other")
    }
    assert names == {None: "m", "m": "m", "s": "m", "a": "m", str(found.endpoint_id): "m", "sql": "sql", "other": None}
    assert found.models == ("s", "sql", "a")


def test_keys_are_not_shown() -> None:
    found = route(uuid4(), 1)
    assert "sesame" not in repr(found) + str(found) + found.model_dump_json()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:80",
        "ftp://host",
        "http://",
        "http://user:pass@host",
        "http://host/?a=1",
        "http://host:99999",
        "http://h#x",
    ],
)
def test_urls_that_are_no_base_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        Worker(id="w", url=url)


def test_a_base_url_has_no_slash_at_its_end() -> None:
    assert Worker(id="w", url="https://host:8443/base/").url == "https://host:8443/base"
