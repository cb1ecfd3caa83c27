"""The routes of icons: the list for callers, the pictures for everyone."""

import httpx
import pytest

from services.app import icons
from tests.services.app.conftest import People


async def test_every_listed_icon_can_be_fetched(client: httpx.AsyncClient, people: People) -> None:
    viewer = await people.add("viewer")
    data = (await client.get("/icons", headers=viewer.headers)).json()["data"]
    assert [one["id"] for one in data] == [one.path for one in icons.index()]
    for one in data:
        picture = await client.get(one["href"])  # without a key, as <img> does
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
        assert picture.content.startswith(b"\x89PNG")
        assert picture.headers["cache-control"] == "public, max-age=86400"


async def test_filters(client: httpx.AsyncClient, people: People) -> None:
    viewer = await people.add("viewer")
    found = (await client.get("/icons?category=clusters&search=GPU", headers=viewer.headers)).json()
    assert [one["id"] for one in found["data"]] == ["icons/clusters/gpu.png"]
    assert (await client.get("/icons?category=cats", headers=viewer.headers)).status_code == 400
    assert (await client.get("/icons")).status_code == 401


async def test_a_cached_picture_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/icons/providers/openai.png")
    again = await client.get("/icons/providers/openai.png", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["providers/none.png", "../designs.py", "%2e%2e/designs.py", "..%2fdesigns.py", "/etc/passwd", "providers/", "%00"],
)
async def test_nothing_else_can_be_fetched(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"/icons/{path}")).status_code == 404
