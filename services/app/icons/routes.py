"""The routes of icons. The list is for callers; a picture is for everyone.

A picture is served without a key: `<img>` sends none, and these files are our own, the same in every installation.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from services.app import icons
from services.app.icons import Icon
from services.app.identity.authenticate import Authenticated
from services.app.resources import listed
from shared.errors import Problem
from shared.http.pages import PageParams

router = APIRouter(prefix="/icons", tags=["icons"])
DAY = 24 * 3600


@router.get("")
async def list_icons(
    _caller: Authenticated,
    query: PageParams,
    category: Annotated[Literal["providers", "models", "clusters"] | None, Query()] = None,
) -> dict[str, Any]:
    """Lists the icons: `id` is what other objects name, `href` where the picture is."""
    found = [_view(one) for one in icons.index() if category in (None, one.category)]
    return listed(found, query, "name", "category")


@router.get("/{path:path}")
async def show_icon(path: str, request: Request) -> Response:
    """The picture: a PNG of 96 by 96, cached by browsers for a day."""
    file = icons.resolve(f"icons/{path}")
    if file is None:
        raise Problem("not_found", "There is no such icon.")
    content, tag = _content(file)
    headers = {"ETag": tag, "Cache-Control": f"public, max-age={DAY}"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type="image/png")


@cache
def _content(file: Path) -> tuple[bytes, str]:
    content = file.read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _view(icon: Icon) -> dict[str, Any]:
    return {"object": "icon", "id": icon.path, "name": icon.name, "category": icon.category, "href": f"/{icon.path}"}
