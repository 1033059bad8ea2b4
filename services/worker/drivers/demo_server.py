"""The small HTTP server that stands for well-known web server images where no image can be run.

It answers every GET and HEAD with a page that says so. It listens on PORT; without one, on 80, else 8080, else on
whatever port is free, since machines under the process driver share the ports of their host.
"""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DEMO_IMAGES: dict[str, list[str]] = {
    image: [sys.executable, "-I", str(Path(__file__).resolve())] for image in ("nginx", "httpd", "caddy")
}
"""Image to the command that runs this server."""


class _Handler(BaseHTTPRequestHandler):
    server_version = "skerry-demo"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        image = os.environ.get("FLY_IMAGE_REF", "an image")
        machine = os.environ.get("FLY_MACHINE_ID", "unknown")
        body = f"Machine {machine}: a demonstration server stands in for {image}.\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET


def listen(port: str | None) -> ThreadingHTTPServer:
    """A server on `port`, else on the first that is free of 80, 8080 and any.

    Raises OSError, and ValueError or OverflowError for what is no port.
    """
    candidates = [int(port)] if port else [80, 8080, 0]
    for candidate in candidates:
        try:
            return ThreadingHTTPServer(("", candidate), _Handler)
        except OSError:
            if candidate == candidates[-1]:
                raise
    raise AssertionError("unreachable")


def main() -> None:
    """Serve until killed."""
    port = os.environ.get("PORT")
    try:
        server = listen(port)
    except (OSError, ValueError, OverflowError) as error:
        sys.exit(f"cannot listen on PORT={port}: {error}")
    print(f"listening on port {server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
