"""A server whose answers are files: pages of JSON as an API has them, and one result of a query as ClickHouse
gives it.

usage: python -m benchmarks.answers FOLDER    prints its port; FOLDER/pages/N.json, FOLDER/described.json,
                                              FOLDER/result.parquet
"""

from __future__ import annotations

import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def do_GET(self) -> None:
        (number,) = parse_qs(urlsplit(self.path).query)["page"]
        self._file(self.folder / "pages" / f"{int(number)}.json", "application/json")

    def do_POST(self) -> None:
        query = self.rfile.read(int(self.headers["Content-Length"]))
        name = "described.json" if query.startswith(b"DESCRIBE") else "result.parquet"
        self._file(self.folder / name, "application/octet-stream")

    def _file(self, path: Path, kind: str) -> None:
        with path.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            shutil.copyfileobj(file, self.wfile, 1 << 20)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: only the clients are of interest."""


if __name__ == "__main__":
    _Answers.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    print(server.server_address[1], flush=True)
    server.serve_forever()
