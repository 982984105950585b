"""A Hugging Face Hub of one repository, whatever its name: hub.py FOLDER PORT_FILE."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import sys
from pathlib import Path

from megatron_ultralong.program.aside import write_aside

FOLDER = Path(sys.argv[1])
COMMIT = "0" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """The addresses that ``hf download`` asks: the repository, its files, and each of them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A list of files, or a file."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Size and hash of a file."""
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        """The client says enough."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        found = re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", path)
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/.+", path):
            entries = [
                {
                    "type": "file",
                    "path": file.name,
                    "size": file.stat().st_size,
                    "oid": _git_hash(file.read_bytes()),
                }
                for file in sorted(FOLDER.iterdir())
            ]
            self._send(json.dumps(entries).encode(), "application/json", with_body=with_body)
        elif path.startswith("/api/models/"):
            names = sorted(file.name for file in FOLDER.iterdir())
            files = [{"rfilename": name} for name in names]
            repository = "/".join(path.split("/")[3:5])
            content = {"id": repository, "sha": COMMIT, "siblings": files, "private": False}
            self._send(json.dumps(content).encode(), "application/json", with_body=with_body)
        elif found and (FOLDER / found[1]).is_file():
            self._send((FOLDER / found[1]).read_bytes(), "application/octet-stream",
                       with_body=with_body)  # fmt: skip
        else:
            self.send_error(404)

    def _send(self, body: bytes, kind: str, *, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{_git_hash(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _git_hash(content: bytes) -> str:
    """Git's name of a file of that content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def main() -> None:
    """Serve on a free port, written to PORT_FILE."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    write_aside(Path(sys.argv[2]), str(server.server_address[1]))
    server.serve_forever()


if __name__ == "__main__":
    main()
