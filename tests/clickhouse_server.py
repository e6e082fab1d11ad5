"""The engine of ClickHouse (chdb) in a process of its own, behind its HTTP interface, with two accounts.

Queries, settings, parameters and rows are handed to the engine; nothing is worked out here but who may ask and
where a body lies: `input(…)` becomes the file of the body. One query runs at a time. Its folder stays, so a
server that was killed can be started again. `python -m tests.clickhouse_server FOLDER [PORT]` prints its port.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from urllib.request import Request, urlopen

Account = tuple[str, str]
WRITER: Account = ("writer", "pass-of-the-tests")
READER: Account = ("reader", "pass-of-the-reader")
_READS = re.compile(r"\s*(SELECT|DESCRIBE|SHOW|EXISTS|\()", re.IGNORECASE)
_INPUT = re.compile(r"input\('((?:[^'\\]|\\.)*)'\) FORMAT Parquet\s*$")
_CODE = re.compile(r"Code: (\d+)\.")
_FORMAT = re.compile(r"\sFORMAT \w+\s*$")


class Server:
    """A running server, and what a test asks it past the program that it tests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host, self.port = folder, "127.0.0.1", 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Also after `kill`, on the same port."""
        command = [sys.executable, "-m", "tests.clickhouse_server", str(self.folder), str(self.port)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """As power fails."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(30)
        for end in (self._process.stdin, self._process.stdout):
            assert end is not None
            end.close()

    def do(self, sql: str, database: str = "default") -> bytes:
        """What the engine answers. RuntimeError with its sentence if it refuses."""
        user, password = WRITER
        headers = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password, "X-Whole": "yes"}
        headers["X-ClickHouse-Database"] = database
        with urlopen(Request(self.url + "/", sql.encode(errors="surrogatepass"), headers)) as answer:
            body: bytes = answer.read()
        if answer.headers.get("X-ClickHouse-Exception-Code"):
            raise RuntimeError(body.decode(errors="replace"))
        return body

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a SELECT; 64-bit integers and decimals with all their digits."""
        settings = (
            "SETTINGS output_format_json_quote_64bit_integers = 0, output_format_json_quote_decimals = 1"
        )
        found = self.do(f"{sql} {settings} FORMAT JSONEachRow")
        return [json.loads(line.decode(errors="surrogatepass")) for line in found.splitlines()]


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    made = Server(folder)
    try:
        yield made
    finally:
        made.stop()


class _Refused(Exception):
    """The engine, or this server, refuses a query."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Engine:
    """One session of the engine."""

    def __init__(self, folder: str) -> None:
        from chdb.session import Session

        self._session, self._lock = Session(folder), threading.Lock()

    def ask(self, user: str, database: str, sql: str, settings: dict[str, str], body: bytes) -> bytes:
        """What the engine answers. _Refused."""
        given = {n.removeprefix("param_"): v for n, v in settings.items() if n.startswith("param_")}
        asked = {n: v for n, v in settings.items() if not n.startswith("param_") and n in _KNOWN}
        with self._lock, tempfile.TemporaryDirectory() as folder:
            if found := _INPUT.search(sql):
                path = Path(folder, "body.parquet")
                path.write_bytes(body)
                sql = f"{sql[: found.start()]}file('{path}', 'Parquet', '{found[1]}')"
            if user == READER[0]:
                if not _READS.match(sql) and not sql.startswith("INSERT"):
                    raise _Refused(497, "reader: Not enough privileges. (ACCESS_DENIED)")
                asked["readonly"] = "1"
            self._run(f"USE {database}", {})
            return self._run(_with(sql, asked), given)

    def _run(self, sql: str, parameters: dict[str, str]) -> bytes:
        try:
            found = self._session.query(sql, params=parameters) if parameters else self._session.query(sql)
        except RuntimeError as problem:
            code = _CODE.search(str(problem))
            raise _Refused(int(code[1]) if code else 1002, str(problem)) from None
        return b"" if found is None else bytes(found.bytes())


_KNOWN = {  # of the settings that the adapter gives; the answer waits for the end here in any case
    *("async_insert", "insert_null_as_default", "input_format_null_as_default"),
    *("max_partitions_per_insert_block", "do_not_merge_across_partitions_select_final"),
    *("output_format_parquet_string_as_string", "output_format_json_quote_64bit_integers"),
}


def _with(sql: str, settings: dict[str, str]) -> str:
    """The query with its settings, where its own kind takes them."""
    if not settings or not re.match(r"\s*(SELECT|INSERT)", sql):
        return sql
    said = ", ".join(f"{name} = {value}" for name, value in settings.items())
    if sql.startswith("INSERT"):
        return f"{sql} SETTINGS {said}"
    form = _FORMAT.search(sql)
    head, tail = (sql[: form.start()], form[0]) if form else (sql, "")
    return f"{head} SETTINGS {said}{tail}"


def _handler(engine: _Engine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if len(body) < int(self.headers["Content-Length"]):
                self.close_connection = True
                return
            settings = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
            account = (self.headers.get("X-ClickHouse-User"), self.headers.get("X-ClickHouse-Key"))
            try:
                if account not in (WRITER, READER):
                    raise _Refused(516, f"{account[0]}: Authentication failed. (AUTHENTICATION_FAILED)")
                sql = settings.pop("query", "")
                text, rest = (sql, body) if sql else (body.decode(errors="surrogatepass"), b"")
                database = self.headers.get("X-ClickHouse-Database") or "default"
                self._answer(200, engine.ask(str(account[0]), database, text, settings, rest), {})
            except _Refused as problem:
                status = 200 if self.headers.get("X-Whole") else 500
                said = {"X-ClickHouse-Exception-Code": str(problem.code)}
                self._answer(status, str(problem).encode(errors="replace"), said)

        def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

    return Handler


def _end_with_parent() -> None:
    """Our input ends when the process that started us does."""
    sys.stdin.read()
    os._exit(0)


def main(folder: str, port: int) -> None:
    engine = _Engine(folder)
    with ThreadingHTTPServer(("127.0.0.1", port), _handler(engine)) as served:
        served.daemon_threads = True
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        threading.Thread(target=_end_with_parent, daemon=True).start()
        print(served.server_port, flush=True)
        served.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
