"""Object stores: the address of a bucket, its keys, the client that reaches it, and a bucket for a reader.

It serves S3 and what speaks its protocol, Google Cloud Storage, Azure, and OneLake of Microsoft Fabric. It
knows no rows and never writes: the target `files` writes with the same client.
A connection is encrypted and verified except on this machine or where `allow_plaintext` says so. Without keys
it takes those that the cloud's own environment has. No error repeats what a store answered, because an
answer may quote a signed request.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn, Self
from urllib.parse import urlsplit

from msgspec import Struct
from pydantic import Field, SecretStr, model_validator

from retl.errors import SourceError
from retl.model import Definition, require_endpoint

Cloud = Literal["s3", "gs", "az"]
SCHEMES: dict[str, Cloud] = {"s3": "s3", "gs": "gs", "az": "az", "abfss": "az"}
_AT_ONCE = 8 << 20  # bytes of one request, so that each is bounded in time and memory
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_AZURE = re.compile(r"(?P<container>[a-z0-9-]+)@(?P<account>[a-z0-9]+)\.dfs\.core\.windows\.net")
# OneLake of Fabric: the workspace is the container, the account is always the same, or a region's.
_ONELAKE = re.compile(
    r"(?P<container>[A-Za-z0-9_.-]+)@(?P<account>(?:[a-z0-9]+-)?onelake)\.dfs\.fabric\.microsoft\.com"
)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")


STORAGE = (
    "How a bucket is reached. S3: `region`, `endpoint`, `access_key_id` with `secret_access_key` and"
    " `session_token`. Google: `service_account_file`. Azure: `account_name`, `endpoint`, and `account_key`,"
    " `sas_token` or `tenant_id` with `client_id` and `client_secret`. `anonymous: true`: nothing is signed."
    " `allow_plaintext: true`: the `endpoint` may be http although it is on another machine."
)


class Storage(Definition):
    """How a bucket is reached; without keys those of the environment, or of the machine's role, are used."""

    region: str | None = None
    endpoint: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    service_account_file: str | None = None
    account_name: str | None = None
    account_key: SecretStr | None = None
    sas_token: SecretStr | None = None
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: SecretStr | None = None
    anonymous: bool = False
    allow_plaintext: bool = False

    @model_validator(mode="after")
    def _reachable(self) -> Storage:
        _together(self, "access_key_id", "secret_access_key")
        _together(self, "tenant_id", "client_id", "client_secret")
        if self.session_token and not self.access_key_id:
            raise ValueError("`session_token` belongs to an `access_key_id`")
        require_endpoint(self.endpoint, allow_plaintext=self.allow_plaintext)
        return self

    def check(self, address: Address) -> None:
        """ValueError if an option is of another cloud."""
        for name in sorted(self.model_fields_set - _OPTIONS[address.cloud]):
            raise ValueError(f"`{name}` is no option of {address.cloud}://")
        if address.fabric and (self.account_key or self.account_name):
            raise ValueError(
                "OneLake has no account keys: it takes `tenant_id`, `client_id` and `client_secret` of Entra"
            )


_OPTIONS: dict[Cloud, set[str]] = {
    "s3": {
        *("region", "endpoint", "access_key_id", "secret_access_key", "session_token"),
        *("anonymous", "allow_plaintext"),
    },
    "gs": {"service_account_file", "anonymous"},
    "az": {
        *("account_name", "account_key", "sas_token", "tenant_id", "client_id", "client_secret"),
        *("endpoint", "anonymous", "allow_plaintext"),
    },
}


def _together(storage: Storage, *names: str) -> None:
    given = [name for name in names if getattr(storage, name) is not None]
    if given and len(given) < len(names):
        raise ValueError(f"{', '.join(f'`{name}`' for name in names)} belong together")


class Root(Definition):
    """Where files are: a folder of this machine, or of a bucket."""

    root: str = Field(description="A folder of the project, an absolute path, or the address of a bucket.")
    storage: Storage = Field(Storage(), description=STORAGE)

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if "${" in self.root:  # an unset variable is reported later
            return self
        address = Address.of(self.root)
        if address is None and self.storage != Storage():
            raise ValueError("`storage` is for a bucket: a `root` that begins with s3://, gs:// or az://")
        if address is not None:
            self.storage.check(address)
        return self

    @property
    def identity(self) -> str:
        """The folder, without secrets."""
        address = Address.of(self.root)
        if address is None:
            return f"file://{self.root.rstrip('/')}"
        server = address.account or self.storage.account_name or urlsplit(self.storage.endpoint or "").netloc
        return "/".join(filter(None, (f"{address.cloud}:/", server, address.bucket, address.prefix)))

    def placed_in(self, folder: Path) -> Self:
        root, storage = self.root, self.storage
        if "${" not in root and Address.of(root) is None:
            root = str((folder / root).resolve())
        if storage.service_account_file:
            file = str(folder / storage.service_account_file)
            storage = storage.model_copy(update={"service_account_file": file})
        return self.model_copy(update={"root": root, "storage": storage})


class Address(Struct, frozen=True):
    """A folder of a bucket; `prefix` has no slash at its ends. `fabric`: it is in OneLake, where `bucket` is
    a workspace and `prefix` begins with an item."""

    cloud: Cloud
    bucket: str
    prefix: str
    account: str | None = None
    fabric: bool = False

    @classmethod
    def of(cls, url: str) -> Address | None:
        """`s3://bucket/folder`; None if a text is no address of a bucket. ValueError if it is a wrong one."""
        scheme, colon, rest = url.partition("://")
        cloud = SCHEMES.get(scheme)
        if not colon or cloud is None:
            if colon:
                raise ValueError(f"an address begins with one of {', '.join(f'{s}://' for s in SCHEMES)}")
            return None
        bucket, _, prefix = rest.partition("/")
        account, fabric = None, False
        if scheme == "abfss":
            onelake = _ONELAKE.fullmatch(bucket)
            found = onelake or _AZURE.fullmatch(bucket)
            if found is None:
                raise ValueError(
                    "write abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER, or for OneLake"
                    " abfss://WORKSPACE@onelake.dfs.fabric.microsoft.com/ITEM/FOLDER"
                )
            bucket, account, fabric = found["container"], found["account"], onelake is not None
        if not _NAME.fullmatch(bucket):
            raise ValueError(f"write {scheme}://BUCKET/FOLDER; keys belong under `storage`")
        if any(part in ("", ".", "..") for part in prefix.strip("/").split("/")) and prefix.strip("/"):
            raise ValueError("a folder has no empty part and no `..`")
        if fabric and not prefix.strip("/"):
            raise ValueError("an address of OneLake goes on with an item, such as sales.Lakehouse/Files")
        return cls(cloud, bucket, prefix.strip("/"), account, fabric)


class Object(Struct, frozen=True):
    """An object at one moment: its key, bytes and ETag."""

    key: str
    size: int
    etag: str


class Bucket:
    """A bucket as a reader sees it. Errors are SourceError MART_UNREADABLE."""

    def __init__(self, address: Address, storage: Storage, folder: Path) -> None:
        """`folder`: relative paths of key files are relative to it. ImportError without the client."""
        self._address = address
        with self._translated():
            self._store = opened(address, storage, folder, retries=4)

    def list(self, folder: str) -> Iterator[Object]:
        """The objects in a folder and the folders below it; keys begin with `folder`."""
        import obstore

        with self._translated():
            for page in obstore.list(self._store, prefix=folder or None, chunk_size=1000):
                for one in page:
                    if not one["e_tag"]:
                        raise self._unreadable("it gives no ETags, so a change cannot be seen")
                    yield Object(one["path"], one["size"], one["e_tag"])

    def read(self, key: str) -> bytes | None:
        """An object as it is now; None if there is none."""
        import obstore
        from obstore.exceptions import NotFoundError

        try:
            with self._translated():
                return bytes(obstore.get(self._store, key).bytes())
        except (NotFoundError, FileNotFoundError):
            return None

    def download(self, one: Object, path: Path, check: Callable[[], object]) -> bool:
        """Write an object into a new file (0600); False if it changed or vanished. `check` is called between
        requests and may raise."""
        import obstore
        from obstore.exceptions import PreconditionError

        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for start in range(0, one.size, _AT_ONCE):
                check()
                end = min(start + _AT_ONCE, one.size)
                wanted: Any = {"if_match": one.etag, "range": (start, end)}
                try:
                    with self._translated():
                        part = obstore.get(self._store, one.key, options=wanted).bytes()
                except (PreconditionError, FileNotFoundError):
                    return False
                if len(part) != end - start:
                    return False
                file.write(memoryview(part))
        return True

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The client's errors as our own; a changed or vanished object stays what it is."""
        from obstore.exceptions import BaseError, NotFoundError, PreconditionError

        try:
            yield
        except (PreconditionError, NotFoundError, FileNotFoundError):
            raise
        except (BaseError, ValueError, OSError) as problem:
            self._refuse(str(problem))

    def _refuse(self, text: str) -> NoReturn:
        raise self._unreadable(answer(text).why)

    def _unreadable(self, why: str) -> SourceError:
        address = self._address
        return SourceError(
            "MART_UNREADABLE",
            f"the bucket {address.cloud}://{address.bucket} cannot be read: {why}",
            hint="compare `root` and `storage` of the source with the bucket, its region and its permissions",
        )


class Answered(Struct, frozen=True):
    """What a store said: the HTTP status if it answered at all, and a sentence without its words. `keyless`:
    it was not asked, because there are no keys."""

    why: str
    status: int | None = None
    keyless: bool = False


def answer(text: str) -> Answered:
    """What the text of a client's error says."""
    status, code = _STATUS.search(text), _CODE.search(text)
    if "/latest/" in text or "/computeMetadata/" in text or "/metadata/identity" in text:
        return Answered(
            "there are no keys: neither `storage`, the environment nor a role has any", None, True
        )
    if status is None:
        return Answered("it did not answer in time" if "timed out" in text else "it cannot be reached")
    return Answered(f"it answers {status[1]}{f' ({code[1]})' if code else ''}", int(status[1]))


def opened(
    address: Address,
    storage: Storage,
    folder: Path,
    *,
    retries: int,
    seconds: float = 60.0,
    connect: float = 10.0,
) -> Any:
    """The client's store, with this many retries of its own. Its own environment must not mix with keys that
    are given: they come alone."""
    from obstore.store import AzureStore, GCSStore, S3Store

    plain = urlsplit(storage.endpoint or "").scheme == "http"  # allowed by `Storage`
    shared: dict[str, Any] = {
        "client_options": {
            "allow_http": plain,
            "allow_invalid_certificates": False,
            "connect_timeout": timedelta(seconds=connect),
            "timeout": timedelta(seconds=seconds),
        },
        "retry_config": {"max_retries": retries, "retry_timeout": timedelta(seconds=60)},
    }
    if storage.anonymous:
        shared["skip_signature"] = True
    if address.cloud == "gs":
        if storage.service_account_file:
            shared["service_account"] = str(folder / storage.service_account_file)
        return GCSStore(address.bucket, **shared)
    if storage.endpoint:
        shared["endpoint"] = storage.endpoint
    if address.cloud == "az":
        return AzureStore(address.bucket, **shared, **_azure(address, storage))
    return S3Store(address.bucket, **shared, **_s3(storage))


def _azure(address: Address, storage: Storage) -> dict[str, Any]:
    """What obstore's AzureStore is given of an account."""
    named = address.account or storage.account_name
    texts = {"account_name": named, "tenant_id": storage.tenant_id, "client_id": storage.client_id}
    secrets = {
        "account_key": storage.account_key,
        "sas_key": storage.sas_token,
        "client_secret": storage.client_secret,
    }
    return {
        **{name: text for name, text in texts.items() if text},
        **{name: one.get_secret_value() for name, one in secrets.items() if one},
        **({"use_fabric_endpoint": True} if address.fabric else {}),
    }


def _s3(storage: Storage) -> dict[str, Any]:
    """What obstore's S3Store is given of an account."""
    given: dict[str, Any] = {"region": storage.region} if storage.region else {}
    if storage.access_key_id and storage.secret_access_key:
        token = storage.session_token
        keys = {
            "access_key_id": storage.access_key_id,
            "secret_access_key": storage.secret_access_key.get_secret_value(),
            "token": token.get_secret_value() if token else None,
            "expires_at": None,
        }
        given["credential_provider"] = lambda: keys
    return given
