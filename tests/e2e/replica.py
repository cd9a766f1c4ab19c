"""Stands for a scoring replica: GET /ping, and POST /invocations with an answer of its form.

It answers with what it was sent, too, so that a test sees what the door passes on. Run as a
program, with a port, so that a test can kill it.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Replica(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # an answer is one write: a kill leaves a whole one or none

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/ping" else 404, b"\n")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        time.sleep(0.005)
        said = {
            "predictions": [[0.25, 0.75]],
            "model_version": 1,
            "port": self.server.server_address[1],
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "n_bytes": len(content),
        }
        self._answer(200, json.dumps(said).encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: who checks its health hangs up when it has seen the status."""


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Replica).serve_forever()
