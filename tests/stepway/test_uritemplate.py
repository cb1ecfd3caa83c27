"""The examples of RFC 6570 that the levels up to 3 have, with its own variables."""

import pytest

from stepway.uritemplate import expand, names_in

VALUES = {
    "var": "value",
    "hello": "Hello World!",
    "path": "/foo/bar",
    "empty": "",
    "x": "1024",
    "y": "768",
    "base": "http://e.org/",
}


@pytest.mark.parametrize(
    ("template", "uri"),
    [
        ("{var}", "value"),
        ("{hello}", "Hello%20World%21"),
        ("{+hello}", "Hello%20World!"),
        ("{+path}/here", "/foo/bar/here"),
        ("{base}index", "http%3A%2F%2Fe.org%2Findex"),
        ("X{#var}", "X#value"),
        ("map?{x,y}", "map?1024,768"),
        ("{x,hello,y}", "1024,Hello%20World%21,768"),
        ("X{.x,y}", "X.1024.768"),
        ("{/var,x}/here", "/value/1024/here"),
        ("{;x,y,empty}", ";x=1024;y=768;empty"),
        ("{?x,y}", "?x=1024&y=768"),
        ("{?x,y,empty}", "?x=1024&y=768&empty="),
        ("?fixed=yes{&x}", "?fixed=yes&x=1024"),
        ("{&x,y,empty}", "&x=1024&y=768&empty="),
        ("{?x,undefined}", "?x=1024"),
        ("{?undefined}", ""),
        ("/models?state=active{&project_id}", "/models?state=active"),
    ],
)
def test_expands_like_the_standard(template: str, uri: str) -> None:
    assert expand(template, VALUES) == uri


def test_null_empty_lists_and_booleans() -> None:
    assert expand("/l{?a,b,c,d}", {"a": None, "b": [], "c": ["x", "y z"], "d": True}) == "/l?c=x,y%20z&d=true"


def test_a_value_cannot_leave_its_place() -> None:
    assert (
        expand("/clusters/{id}?a=1{&b}", {"id": "../x?y#z", "b": "1&c=2"}) == "/clusters/..%2Fx%3Fy%23z?a=1&b=1%26c%3D2"
    )


def test_names() -> None:
    assert names_in("/m/{id}{?x,y}{&z}") == {"id", "x", "y", "z"}
