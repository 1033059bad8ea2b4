"""What is answered without a token for people and tools: the OpenAPI document, and the page to read and try it."""

from __future__ import annotations

from functools import cache
from importlib import resources

from gateway.rest.answers import Answer, Headers
from gateway.rest.openapi import OPENAPI_PATH, PAGE_PATH, write_openapi
from services.runtime.errors import MethodNotAllowed

PATHS = frozenset({OPENAPI_PATH, PAGE_PATH})

# Browsers read it from other origins, too: it holds nothing of anybody.
_DOCUMENT_HEADERS: Headers = [(b"cache-control", b"max-age=300"), (b"access-control-allow-origin", b"*")]
_PAGE_HEADERS: Headers = [
    # Everything is in the page itself, and it talks to its own server only.
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"max-age=300"),
]


def answer_page(verb: str, path: str) -> Answer:
    """The answer to a request of one of PATHS. Raises MethodNotAllowed."""
    if verb != "GET":
        raise MethodNotAllowed(f"{path} has no {verb}; it has: GET", metadata={"allow": "GET"})
    if path == OPENAPI_PATH:
        return Answer(200, _document(), _DOCUMENT_HEADERS)
    return Answer(200, _page(), _PAGE_HEADERS, kind=b"text/html; charset=utf-8")


@cache
def _document() -> bytes:
    return write_openapi()


@cache
def _page() -> bytes:
    return resources.files("gateway.rest").joinpath("page.html").read_bytes()
