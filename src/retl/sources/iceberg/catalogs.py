"""Catalogs: where a table's name becomes its metadata, and the storage that holds its files.

Each model opens one kind of catalog, to read only: PyIceberg's own configuration files and variables are not
used, nothing is created, and off this machine everything is encrypted unless `allow_plaintext` says so.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from retl.errors import SourceError
from retl.model import Definition, needs_tls
from retl.net.client import Address
from retl.net.postgres import PostgresConnection
from retl.sources.iceberg.calls import Redirected

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

CONNECT, IDLE = 10.0, 60.0  # seconds: to open a connection, and for one answer

# What PyIceberg is given as it stands; every other property has an option, or chooses code to run.
_PASSED = ("s3.", "adls.", "gcs.", "hdfs.", "hf.", "glue.", "hive.", "header.", "client.", "rest.")
_ALSO_PASSED = {"audience", "resource", "namespace-separator", "rest-page-size", "snapshot-loading-mode"}
_HAVE_OPTIONS = {
    "s3.endpoint": "storage.endpoint",
    "s3.region": "storage.region",
    "s3.access-key-id": "storage.access_key_id",
    "s3.secret-access-key": "storage.secret_access_key",
    "s3.session-token": "storage.session_token",
    "glue.region": "catalog.region",
    "glue.endpoint": "catalog.endpoint",
    "glue.access-key-id": "catalog.access_key_id",
    "glue.secret-access-key": "catalog.secret_access_key",
    "glue.session-token": "catalog.session_token",
}


class _Catalog(Definition):
    properties: dict[str, SecretStr] = Field(
        {},
        description="Other properties of PyIceberg, such as `adls.account-key` or `gcs.oauth2.token`; their"
        " values are secrets.",
    )

    @field_validator("properties")
    @classmethod
    def _known(cls, given: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name in given:
            if option := _HAVE_OPTIONS.get(name):
                raise ValueError(f"{name} has an option of its own: {option}")
            if not (name.startswith(_PASSED) or name in _ALSO_PASSED) or name.endswith("-impl"):
                raise ValueError(f"{name} is no property that is passed on")
        return given

    @property
    def place(self) -> str:
        """Where the catalog is, without a secret."""
        raise NotImplementedError

    def urls(self) -> Iterator[str]:
        """The addresses that it sends to."""
        yield from ()

    def open(self, folder: Path, properties: dict[str, str]) -> Catalog:
        """The catalog. Errors are PyIceberg's own."""
        raise NotImplementedError


class Rest(_Catalog):
    """Iceberg's REST protocol: Polaris, Lakekeeper, Unity, Gravitino, Nessie (`…/iceberg`), S3 Tables."""

    type: Literal["rest"]
    uri: str
    warehouse: str | None = None
    prefix: str | None = None
    token: SecretStr | None = None
    credential: SecretStr | None = None
    oauth2_server_uri: str | None = None
    scope: str | None = None

    @model_validator(mode="after")
    def _one_credential(self) -> Rest:
        if self.token is not None and self.credential is not None:
            raise ValueError("a catalog has a `token` or a `credential`, not both")
        if self.credential is None and (self.oauth2_server_uri or self.scope):
            raise ValueError("`oauth2_server_uri` and `scope` need a `credential`")
        return self

    @property
    def place(self) -> str:
        return " ".join(part for part in (self.uri, self.prefix, self.warehouse) if part)

    def urls(self) -> Iterator[str]:
        yield self.uri
        if self.oauth2_server_uri:
            yield self.oauth2_server_uri

    def open(self, folder: Path, properties: dict[str, str]) -> Catalog:
        from pyiceberg.catalog.rest import RestCatalog

        class Guarded(RestCatalog):
            def _config_headers(self, session: Any) -> None:  # before the session sends anything
                _guard(session)
                super()._config_headers(session)

        given = {
            "uri": self.uri,
            "warehouse": self.warehouse,
            "prefix": self.prefix,
            "token": _plain(self.token),
            "credential": _plain(self.credential),
            "oauth2-server-uri": self.oauth2_server_uri or f"{self.uri.rstrip('/')}/v1/oauth/tokens",
            "scope": self.scope,
        }
        return Guarded("retl", **_given(given), **properties)


class Sql(_Catalog):
    """PyIceberg's SQL catalog (also Java's JDBC catalog) in a SQLite file or in PostgreSQL. `name` is the
    catalog's name in its own tables."""

    type: Literal["sql"]
    name: str = "default"
    path: str | None = None
    postgres: PostgresConnection | None = None
    warehouse: str | None = None

    @model_validator(mode="after")
    def _one_database(self) -> Sql:
        if (self.path is None) == (self.postgres is None):
            raise ValueError("a SQL catalog has a `path` (SQLite) or `postgres`")
        return self

    @property
    def place(self) -> str:
        return f"{self.path or (self.postgres and self.postgres.address)} {self.name}"

    def open(self, folder: Path, properties: dict[str, str]) -> Catalog:
        from pyiceberg.catalog.sql import SqlCatalog

        given = {"warehouse": self.warehouse, "init_catalog_tables": "false"}
        return SqlCatalog(self.name, uri=self._uri(folder), **_given(given), **properties)

    def _uri(self, folder: Path) -> str:
        """The database for SQLAlchemy, to read only."""
        if self.path is not None:
            path = (folder / self.path).absolute()
            if not path.is_file():
                raise SourceError(
                    "MART_MISSING",
                    f"there is no SQL catalog at {self.path}",
                    hint="correct `catalog.path`; it is relative to the project",
                )
            return f"sqlite:///file:{quote(str(path))}?mode=ro&uri=true"
        assert self.postgres is not None
        words = {name: str(value) for name, value in self.postgres.keywords("retl").items()}
        user, password = (quote(words.pop(name, ""), safe="") for name in ("user", "password"))
        database = quote(words.pop("dbname"), safe="")
        limit = round(1000 * self.postgres.timeout)
        words["options"] = f"-c default_transaction_read_only=on -c statement_timeout={limit}"
        return f"postgresql+psycopg://{user}:{password}@/{database}?{urlencode(words)}"


class Glue(_Catalog):
    """The AWS Glue Data Catalog. Without keys the AWS client looks for them where it always does."""

    type: Literal["glue"]
    region: str | None = None
    id: str | None = None
    endpoint: str | None = None
    profile: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None

    @property
    def place(self) -> str:
        return " ".join(part for part in ("glue", self.region, self.id) if part)

    def urls(self) -> Iterator[str]:
        if self.endpoint:
            yield self.endpoint

    def open(self, folder: Path, properties: dict[str, str]) -> Catalog:
        with _client("glue"):
            from pyiceberg.catalog.glue import GlueCatalog

        given = {
            "glue.region": self.region,
            "glue.id": self.id,
            "glue.endpoint": self.endpoint,
            "glue.profile-name": self.profile,
            "glue.access-key-id": self.access_key_id,
            "glue.secret-access-key": _plain(self.secret_access_key),
            "glue.session-token": _plain(self.session_token),
        }
        return GlueCatalog("retl", **_given(given), **properties)


class Hive(_Catalog):
    """A Hive metastore by Thrift, which has no encryption: off this machine it needs `allow_plaintext`."""

    type: Literal["hive"]
    uri: str
    warehouse: str | None = None

    @field_validator("uri")
    @classmethod
    def _thrift(cls, uri: str) -> str:
        parts = urlsplit(uri)
        if parts.scheme != "thrift" or not parts.hostname or parts.username is not None or parts.query:
            raise ValueError("a metastore's address looks like thrift://metastore.internal:9083")
        return uri

    @property
    def place(self) -> str:
        return self.uri

    def open(self, folder: Path, properties: dict[str, str]) -> Catalog:
        with _client("hive"):
            from pyiceberg.catalog.hive import HiveCatalog

        return HiveCatalog("retl", uri=self.uri, **_given({"warehouse": self.warehouse}), **properties)


AnyCatalog = Annotated[Rest | Sql | Glue | Hive, Field(discriminator="type")]


class Storage(Definition):
    """S3, or a store that speaks like it. A REST catalog usually hands out keys itself; without any the AWS
    client looks for them where it always does. Other stores: `catalog.properties`."""

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None

    def properties(self) -> dict[str, str]:
        """What PyIceberg calls them."""
        return _given(
            {
                "s3.endpoint": self.endpoint,
                "s3.region": self.region,
                "s3.access-key-id": self.access_key_id,
                "s3.secret-access-key": _plain(self.secret_access_key),
                "s3.session-token": _plain(self.session_token),
            }
        )


class Lake(Definition):
    """A catalog and the storage of its tables. `timezone` applies to timestamps without one."""

    type: Literal["iceberg"] = "iceberg"
    catalog: AnyCatalog = Field(
        description="`type: rest` (`uri`, `warehouse`, `prefix`, `token` or `credential` with"
        " `oauth2_server_uri` and `scope`), `sql` (`path` or `postgres`, `name`), `glue` (`region`, `id`,"
        " `profile`, `endpoint`, keys) or `hive` (`uri`); each also `properties`, passed to PyIceberg."
    )
    storage: Storage = Field(
        Storage(),
        description="S3 if the catalog does not hand it out: `endpoint`, `region`, `access_key_id`,"
        " `secret_access_key`, `session_token`.",
    )
    timezone: str = "UTC"
    allow_plaintext: bool = Field(
        False, description="true allows unencrypted connections to another machine."
    )

    @field_validator("catalog", "storage")
    @classmethod
    def _addresses(cls, part: Any, info: ValidationInfo) -> Any:
        urls = part.urls() if isinstance(part, _Catalog) else filter(None, [part.endpoint])
        for url in urls:
            try:
                Address.parse(url)
            except ValueError:
                raise ValueError(
                    "an address looks like https://host/path: without user, password, query and fragment"
                ) from None
        return part

    @model_validator(mode="after")
    def _encrypted(self) -> Lake:
        urls = [*self.catalog.urls(), *filter(None, [self.storage.endpoint])]
        urls += [self.catalog.uri] if isinstance(self.catalog, Hive) else []
        for url in urls:
            self.require_encryption(url)
        return self

    def require_encryption(self, url: str) -> None:
        """ValueError for an address of another machine that is not encrypted, if that is not allowed."""
        parts = urlsplit(url)
        if parts.scheme != "https" and needs_tls(parts.hostname or "", allow_plaintext=self.allow_plaintext):
            raise ValueError(f"{parts.hostname} is another machine: use https, or set allow_plaintext: true")

    def open(self, folder: Path) -> Catalog:
        """The catalog. SourceError CLIENT_MISSING; other errors are PyIceberg's own."""
        passed = {name: value.get_secret_value() for name, value in self.catalog.properties.items()}
        limits = {"s3.connect-timeout": str(CONNECT), "s3.request-timeout": str(IDLE)}
        properties = {**limits, **self.storage.properties(), **passed}
        return self.catalog.open(folder, properties)


def _guard(session: Any) -> None:
    """Limit the time of each request, follow no redirect, and use no proxy or password that nobody asked
    for. The authorities are those of every other connection."""
    session.trust_env = False
    session.verify = ssl.get_default_verify_paths().cafile or True
    send = session.send

    def limited(request: Any, **options: Any) -> Any:
        answer = send(request, **{**options, "timeout": (CONNECT, IDLE), "allow_redirects": False})
        if 300 <= answer.status_code < 400:
            raise Redirected
        return answer

    session.send = limited


@contextmanager
def _client(extra: str) -> Iterator[None]:
    """Import what a catalog needs beside our extra inside this: SourceError CLIENT_MISSING names it."""
    try:
        yield
    except ImportError as problem:
        raise SourceError(
            "CLIENT_MISSING",
            f"a {extra} catalog needs a package that is not installed ({problem.name})",
            hint=f"pip install 'pyiceberg[{extra}]'",
        ) from problem


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _given(properties: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in properties.items() if value is not None}
