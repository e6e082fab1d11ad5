"""The HTTP case: a server that takes anything at once, and a client that sends prepared bodies.

usage: python -m benchmarks.post serve            prints its port
       python -m benchmarks.post send PORT FILE   a POST per line of the file, one after the other
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from benchmarks.mart import export_json

PATH, WRAP, ROWS = "/v1/recipients", "recipients", 100
SYNC = f"""\
destination:
  connection: api
  upsert:
    method: POST
    path: {PATH}
    wrap: {WRAP}
    max_rows: {ROWS}
    row: {{id: $user_id, attributes: $fields}}
"""
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class _Taker(asyncio.Protocol):
    """As little HTTP/1.1 as one client needs: every body is read, every answer is {}."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._waiting = transport, b""

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        while (end := self._waiting.find(b"\r\n\r\n")) >= 0:
            head = self._waiting[:end].lower()
            _, _, rest = head.partition(b"content-length:")
            size = end + 4 + int(rest.split(b"\r\n", 1)[0] or 0)
            if len(self._waiting) < size:
                return
            self._waiting = self._waiting[size:]
            self._transport.write(_ANSWER)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Taker, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def prepare(mart: Path, lines: Path, bodies: Path) -> None:
    """The bodies that a sync of `mart` sends, one per line."""
    export_json(mart, lines)
    with lines.open() as rows, bodies.open("w") as file:
        batch: list[str] = []
        for row in rows:
            user, document = row.rstrip("\n").split("\t", 1)
            batch.append(f'{{"id":{json.dumps(user)},"attributes":{document}}}')
            if len(batch) == ROWS:
                file.write(f'{{"{WRAP}":[{",".join(batch)}]}}\n')
                batch = []
        if batch:
            file.write(f'{{"{WRAP}":[{",".join(batch)}]}}\n')


def send(port: str, path: str) -> None:
    import httpx2

    with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client, open(path, "rb") as bodies:
        for body in bodies:
            answer = client.post(PATH, content=body, headers={"Content-Type": "application/json"})
            answer.raise_for_status()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    else:
        send(*sys.argv[2:])
