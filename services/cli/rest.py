"""The public API over REST, as the everyday commands use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from services.cli.console import CommandError, say
from services.cli.mesh import default_directory

if TYPE_CHECKING:
    import httpx

TIMEOUT = 30.0


class Api:
    """The gateways of a region, asked with the mesh's token: the first that there is a connection to.

    Errors of the server become CommandError with its own words.
    """

    def __init__(self, bases: Sequence[str], token: str) -> None:
        # Imported here, for commands that ask nothing should start at once.
        import httpx

        self._bases = list(bases)
        self._refused: list[str] = []
        self._client: httpx.Client = httpx.Client(headers={"authorization": f"Bearer {token}"}, timeout=TIMEOUT)

    @classmethod
    def of(cls, directory: Path | None, region: str | None) -> Self:
        """The gateway of `region` of the mesh in `directory`. Raises CommandError when it is not clear which."""
        endpoints = read_endpoints(directory)
        regions = endpoints["regions"]
        if region is None and len(regions) > 1:
            raise CommandError(f"the mesh has several regions: choose one with --region ({', '.join(regions)})")
        code = region or next(iter(regions))
        if code not in regions:
            raise CommandError(f"the mesh has no region {code!r}; it has: {', '.join(regions)}")
        doors = regions[code].get("sets") or [regions[code]]
        return cls([door["rest"] for door in doors], endpoints["token"])

    def call(
        self,
        method: str,
        *path: str,
        body: Any = None,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = TIMEOUT,
    ) -> Any:
        """One request to /v1/PATH; returns the parsed answer, None when it has no body. Raises CommandError."""
        import httpx

        url = "/v1/" + "/".join(quote(piece, safe="") for piece in path)
        content = None if body is None else json.dumps(body).encode()
        sent = {**({} if body is None else {"content-type": "application/json"}), **(headers or {})}
        params = {key: value for key, value in (query or {}).items() if value not in (None, [], "")}
        while True:
            base = self._bases[0]
            try:
                answer = self._client.request(
                    method, base + url, content=content, headers=sent, params=params, timeout=timeout
                )
                break
            except httpx.TimeoutException:
                raise CommandError(f"{base} did not answer within {timeout:g} s") from None
            except httpx.HTTPError as error:
                if isinstance(error, httpx.ConnectError) and len(self._bases) > 1:
                    # Nothing was sent, so another may be asked, and all further requests go there.
                    self._refused.append(self._bases.pop(0))
                    continue
                where = ", ".join([*self._refused, base])
                raise CommandError(
                    f"{where} cannot be reached ({error}): `skerry up` starts what is not running"
                ) from None
        if answer.is_success:
            if warning := answer.headers.get("warning"):
                say(f"warning: {warning}")
            return _parsed(answer)
        raise CommandError(_refusal(answer))

    def wait(
        self, app: str, machine: str, *, states: list[str], timeout: float, instance_id: str | None = None
    ) -> None:
        """Block until the machine is in one of `states`, at most `timeout` seconds. Raises CommandError."""
        query = {"state": states, "timeout": f"{timeout:g}s", "instance_id": instance_id}
        self.call("GET", "apps", app, "machines", machine, "wait", query=query, timeout=timeout + TIMEOUT)


def read_endpoints(directory: Path | None) -> dict[str, Any]:
    """endpoints.json of DIR. Raises CommandError when there is none."""
    where = (directory or default_directory()).absolute()
    try:
        document: dict[str, Any] = json.loads((where / "endpoints.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CommandError(f"{where} holds no mesh: `skerry up --dir {where}` makes one") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"{where / 'endpoints.json'} cannot be read: {error}") from error
    return document


def _parsed(answer: httpx.Response) -> Any:
    if not answer.content:
        return None
    try:
        return answer.json()
    except ValueError:
        raise CommandError(f"the server's answer is not JSON: {answer.text[:200]!r}") from None


def _refusal(answer: httpx.Response) -> str:
    try:
        document = answer.json()
        return f"{document['error']} ({document['status']})"
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}: {answer.text[:200]!r}"
