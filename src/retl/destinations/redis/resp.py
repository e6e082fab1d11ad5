"""RESP, the protocol of Redis and Valkey: sends commands, reads replies, classifies errors by their code.

It sends each command once and reads every reply. It knows no rows and never retries.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import hiredis
from msgspec import Struct

from retl.errors import Poisoned, Systemic, TargetError, Unavailable
from retl.net import tls
from retl.net.deadline import Deadline, TimedSocket
from retl.net.scrub import scrub

Argument = str | bytes | int
Command = tuple[Argument, ...]
Mode = Literal["standalone", "sentinel", "cluster"]
Refusal = hiredis.ReplyError

AGAIN = {
    "LOADING": "the server is loading its data",
    "BUSY": "the server is busy with a script",
    "TRYAGAIN": "the cluster is moving slots",
    "CLUSTERDOWN": "the cluster is down",
    "MASTERDOWN": "the server has lost its primary",
    "NOREPLICAS": "too few replicas are connected",
    "max number of clients": "the server has no connection left",
}
STOP = {
    "AUTH": "the user or password is wrong",
    "WRONGPASS": "the user or password is wrong",
    "NOAUTH": "the server requires a password",
    "DENIED": "the server is in protected mode",
    "NOPERM": "the account may not do this",
    "ACL failure": "the account has no right to a command in a script",
    "READONLY": "the server is a replica, or read-only",
    "OOM": "the server is out of memory",
    "MISCONF": "the server cannot save its data and refuses writes",
    "MOVED": "the server is part of a Redis Cluster: name its nodes as `cluster`",
    "CROSSSLOT": "the server is part of a Redis Cluster: name its nodes as `cluster`",
}
POISON = {
    "WRONGTYPE": "the key holds a value of another kind",
    "EMPTYHASH": "every field is NULL, and a hash without fields cannot exist: the key is gone",
}
_SENTENCES = AGAIN | STOP | POISON
_LOGIN = ("AUTH", "WRONGPASS", "NOAUTH")
_HINTS = {
    "NOPERM": "docs/destinations/redis.md lists the commands that the account needs",
    **dict.fromkeys(
        _LOGIN,
        "check user and password in retl.yml, those of the default connection in REDIS_USER and"
        " REDIS_PASSWORD; then `retl check`",
    ),
}
_SENTINEL_HINTS = _HINTS | dict.fromkeys(
    _LOGIN, "check `sentinel_password` of the connection in retl.yml; then `retl check`"
)
_OWN = re.compile(
    "(['\"`])(maxmemory|no|yes|set|hset|hdel|expire|exists|eval|unlink|h?mget|l(?:push|trim|pos))\\1"
)
_QUOTE = re.compile("(?<!\\w)['\"`]|['\"`](?!\\w)")  # an apostrophe inside a word is none
_CODE = re.compile("|".join(rf"\b{code}\b" for code in _SENTENCES))
_HELLO: Command = ("HELLO",)  # every account may ask; an old server refuses it
CHUNK = 500  # commands sent before the replies to the previous chunk are read
CHUNK_BYTES = 1 << 20


def judge(refusal: Refusal, values: Iterable[str] = ()) -> tuple[str, str]:
    """The code of a refusal, also from inside a script, and a sentence: ours, and the server's own words
    without what it quotes and without these values, which were sent."""
    text = str(refusal)
    start = re.split("['\"`]", text, maxsplit=1)[0]
    code = found[0] if (found := _CODE.search(start)) else start.split(" ", 1)[0]
    sentence = _SENTENCES.get(code, "the server refused the command")
    words = scrub(_unquoted(text.partition(" ")[2]), values)
    return code, f"{sentence}: {words}" if words else sentence


def stops(server: str, refusal: Refusal, values: Iterable[str] = (), mode: str | None = None) -> Systemic:
    """The error of a refusal that every command would get. `values`: what was sent."""
    code, sentence = judge(refusal, values)
    hints = _SENTINEL_HINTS if mode == "sentinel" else _HINTS
    return Systemic(code, f"{server}: {sentence}", hint=hints.get(code))


def _unquoted(text: str) -> str:
    """The text up to its first quotation: it may be what was sent, which may contain quotation marks. The
    server's own names stay."""
    parts = _QUOTE.split(_OWN.sub(r"\2", text), maxsplit=1)
    return parts[0] if len(parts) == 1 else f"{parts[0]}…"


def _said(reply: Any, what: bytes) -> str | None:
    """What a reply to HELLO says of `mode` (standalone, cluster, sentinel) or `role` (master, replica); None
    if it does not say."""
    if not isinstance(reply, list):
        return None
    found = dict(zip(reply[::2], reply[1::2], strict=False)).get(what)
    return found.decode(errors="replace") if isinstance(found, bytes) else None


class Account(Struct, frozen=True):
    """How we connect. `login`: password, or user and password; `own`: files of our certificate and key."""

    login: Command | None
    tls: bool
    ca_file: str | None
    own: tuple[str, str] | None
    connect_timeout: float
    timeout: float


class Packed(NamedTuple):
    """Commands as bytes, and their number."""

    data: bytes
    commands: int


class Wire:
    """One connection to one server, opened when it is needed; `server` is its name without credentials.

    `locate` gives host and port for each new connection; if it `follows` a primary, another server may be it
    next time. `mode`: what the server must be. A chunk of at most 500 commands and its replies may take
    `timeout` seconds.
    """

    def __init__(
        self,
        server: str,
        locate: Callable[[], tuple[str, int]],
        account: Account,
        db: int = 0,
        *,
        follows: bool = False,
        mode: Mode = "standalone",
    ) -> None:
        self.server, self._locate, self._account = server, locate, account
        self.follows = follows
        self._mode = mode
        self._greeting: list[Command] = [("AUTH", *account.login)] if account.login else []
        self._greeting += [_HELLO, *([("SELECT", db)] if mode == "standalone" else []), ("PING",)]
        self._socket: TimedSocket | None = None
        self._reader = hiredis.Reader()

    def exchange(
        self, commands: Iterable[Command | Packed], count_bytes: Callable[[int], None] = lambda size: None
    ) -> list[Any]:
        """One reply per command; a refused command has a `Refusal` as its reply. OSError if the connection
        breaks: it is not known how much was done. Unavailable or Systemic if there is no connection, or if
        the server that was the primary is a replica now."""
        self.open()
        replies: list[Any] = []
        for _ in self.steps(commands, replies, count_bytes):
            pass
        if self.follows and any(isinstance(r, Refusal) and judge(r)[0] == "READONLY" for r in replies):
            self.close()
            raise Unavailable("NO_PRIMARY", f"{self.server}: this server is not the primary any more")
        return replies

    def open(self) -> None:
        """Connect, unless there is a connection that works. Unavailable or Systemic."""
        if (
            self._socket is None or not self._socket.is_quiet()
        ):  # data without a question: the server closed it
            self._connect()

    def steps(
        self,
        commands: Iterable[Command | Packed],
        replies: list[Any],
        count_bytes: Callable[[int], None] = lambda size: None,
    ) -> Generator[None, None, None]:
        """`exchange` over an open connection, which puts the replies into a list: a step for each chunk that
        was sent. A caller that does not take all of them closes the iterator, and with it the connection."""
        sent = 0
        try:
            for data, count in _chunks(commands):
                sent += count
                self._send(data, replies, sent)
                count_bytes(len(data))
                yield
                self._read(replies, sent - count)  # the server works on this chunk meanwhile
            self._read(replies, sent)
        except BaseException:
            self.close()  # its next reply would belong to an older command
            raise

    def ask(self, commands: Iterable[Command]) -> list[Any]:
        """`exchange` for commands that change nothing: a lost reply is only Unavailable."""
        try:
            return self.exchange(commands)
        except OSError as error:
            raise Unavailable("NO_ANSWER", f"{self.server} did not answer: {why(error)}") from error

    def probe(self, commands: Sequence[Command]) -> list[Any]:
        """The replies of every server: this is the only one."""
        return self.ask(commands)

    def each(self) -> list[Wire]:
        """The connections to all servers that store rows."""
        return [self]

    def close(self) -> None:
        """Close the connection; never raises."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _connect(self) -> None:
        self.close()
        host, port = self._locate()
        account = self._account
        try:
            self._socket = tls.connect(
                host,
                port,
                Deadline(account.connect_timeout),
                server=self.server,
                context=tls.context(account.ca_file, own=account.own) if account.tls else None,
            )
            self._reader = hiredis.Reader()
            replies: list[Any] = []
            for count, command in enumerate(self._greeting, 1):
                self._send(pack(command), replies, count)
                self._read(replies, count)
                if command == _HELLO:
                    self._refuse_others(_said(replies[-1], b"mode"), _said(replies[-1], b"role"))
                elif isinstance(replies[-1], Refusal):
                    code, sentence = judge(replies[-1])
                    if code in AGAIN:
                        raise Unavailable(code, f"{self.server}: {sentence}")
                    raise stops(self.server, replies[-1], mode=self._mode)
        except ssl.SSLError as error:
            self.close()
            raise Systemic("TLS", f"{self.server}: TLS failed: {error.reason or why(error)}") from error
        except OSError as error:
            self.close()
            raise Unavailable(
                "CONNECT",
                f"cannot connect to {self.server}: {why(error)}",
                hint="check host and port, and that the server runs; then run again",
            ) from error
        except TargetError:
            self.close()
            raise

    def _refuse_others(self, mode: str | None, role: str | None) -> None:
        """Systemic if this is another kind of server than was expected. Unavailable if it was to be a
        primary."""
        if mode == "cluster" != self._mode:
            raise Systemic(
                "REDIS_CLUSTER",
                f"{self.server} is a node of a Redis Cluster, which stores only a part of the keys",
                hint="name the nodes as `cluster: [HOST:PORT, …]`, instead of host and port",
            )
        if self._mode == "cluster" and mode == "standalone":
            raise Systemic(
                "REDIS_CLUSTER",
                f"{self.server} is not a node of a Redis Cluster",
                hint="set host and port, instead of `cluster`",
            )
        if mode == "sentinel" != self._mode:
            raise Systemic(
                "REDIS_SENTINEL",
                f"{self.server} is a Sentinel, which stores no rows",
                hint="use `sentinels` and `service`, or set host and port to the primary's",
            )
        if self._mode == "sentinel" and mode not in ("sentinel", None):
            raise Systemic("REDIS_SENTINEL", f"{self.server} is not a Sentinel, but a {mode} server")
        if self.follows and role not in ("master", None):
            raise Unavailable("NO_PRIMARY", f"the Sentinels of {self.server} name a server that is a {role}")

    def _send(self, data: bytes, replies: list[Any], sent: int) -> None:
        assert self._socket is not None
        try:
            self._socket.wait_until(Deadline(self._account.timeout))
            self._socket.sendall(data)
        except OSError:
            self._read(replies, sent)  # the server may have sent an error before it closed the connection
            raise

    def _read(self, replies: list[Any], until: int) -> None:
        """Read until there are `until` replies. OSError, or Poisoned if the server closes the connection
        because of a value."""
        assert self._socket is not None
        self._socket.wait_until(Deadline(self._account.timeout))
        while len(replies) < until:
            try:
                while (reply := self._reader.gets()) is False:
                    if not (data := self._socket.recv(1 << 16)):
                        raise ConnectionResetError("the server closed the connection")
                    self._reader.feed(data)
            except hiredis.ProtocolError:
                raise ConnectionError("the reply is not RESP") from None
            if isinstance(reply, Refusal) and str(reply).startswith("ERR Protocol error"):
                raise Poisoned("BULK_LENGTH", "a value is longer than the server takes")
            replies.append(reply)


def why(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def pack(command: Command) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows 1-tuples only
    return packed


def key_of(command: Command) -> str | bytes:
    """The first key of a command."""
    key = command[3 if command[0] == "EVAL" else 1]
    assert not isinstance(key, int)
    return key


def joined(lines: Sequence[bytes]) -> Iterator[Packed]:
    """Packed commands, as many at once as are sent at once."""
    for n in range(0, len(lines), CHUNK):
        some = lines[n : n + CHUNK]
        packed = b"".join(some)
        if len(packed) <= CHUNK_BYTES:
            yield Packed(packed, len(some))
        else:
            yield from (Packed(one, 1) for one in some)


def _chunks(commands: Iterable[Command | Packed]) -> Iterator[Packed]:
    chunk: list[bytes] = []
    size = count = 0
    for command in commands:
        packed = command if isinstance(command, Packed) else Packed(pack(command), 1)
        chunk.append(packed.data)
        size += len(packed.data)
        count += packed.commands
        if count >= CHUNK or size >= CHUNK_BYTES:
            yield Packed(b"".join(chunk), count)
            chunk, size, count = [], 0, 0
    if chunk:
        yield Packed(b"".join(chunk), count)
