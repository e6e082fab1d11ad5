"""Prepared RESP through one socket, its replies counted by hiredis: what `redis-cli --pipe` does.

usage: python -m benchmarks.pipe HOST PORT FILE (the password in BENCH_PASSWORD)
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

import hiredis

from benchmarks.mart import TABLE


def prepare(mart: Path, lines: Path, resp: Path) -> None:
    """The commands that a sync of `mart` sends, one SET with TTL per user."""
    from benchmarks.mart import export_json

    export_json(mart, lines)
    with lines.open() as rows, resp.open("wb") as file:
        for row in rows:
            user, document = row.rstrip("\n").split("\t", 1)
            file.write(_packed("SET", f"reco:{user}", document, "EX", "86400"))


def _packed(*words: str) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub knows 1-tuples only
    return packed


def main(host: str, port: str, path: str) -> None:
    """Exit code 1 unless every reply is OK."""
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(_packed("AUTH", os.environ["BENCH_PASSWORD"]))
        reader, replies, sent = hiredis.Reader(), 0, threading.Event()

        def send() -> None:
            with open(path, "rb") as file:
                connection.sendfile(file)
            connection.sendall(_packed("ECHO", "end"))
            sent.set()

        threading.Thread(target=send, daemon=True).start()
        while True:
            reader.feed(connection.recv(1 << 16))
            while (reply := reader.gets()) is not False:
                if reply == b"end":
                    print(replies - 1, TABLE)
                    return
                if reply != b"OK":
                    sys.exit(f"refused: {reply!r}")
                replies += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
