"""The account and region of DynamoDB, its client, and its errors in our own words.

It knows requests and no rows. The client sends each request once: delivery decides what is sent again. No
error repeats what DynamoDB answered, because an answer may quote values.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from retl.destinations.api import needs
from retl.errors import Ambiguous, Poisoned, Systemic, TargetError, Unavailable
from retl.model import Definition, Duration, require_endpoint
from retl.net.gate import Gate

THROTTLED = frozenset(
    {
        *("ProvisionedThroughputExceeded", "ProvisionedThroughputExceededException"),
        *("ThrottlingError", "ThrottlingException", "Throttling", "ThrottledException"),
        *("RequestLimitExceeded", "LimitExceededException", "ReplicatedWriteConflictException"),
        *("TransactionConflict", "TransactionConflictException", "ResourceInUseException"),
    }
)
_LOGIN = frozenset(
    {
        *("UnrecognizedClientException", "InvalidSignatureException", "SignatureDoesNotMatch"),
        *("IncompleteSignature", "IncompleteSignatureException", "InvalidClientTokenId", "AuthFailure"),
        *("MissingAuthenticationToken", "MissingAuthenticationTokenException", "RequestExpired"),
        *("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "OptInRequired"),
    }
)
_FORBIDDEN = frozenset({"AccessDeniedException", "AccessDenied", "UnauthorizedOperation"})
_GONE = "ResourceNotFoundException"
_BAD_ROW = frozenset(
    {"ValidationException", "SerializationException", "ItemCollectionSizeLimitExceededException"}
)
# No address, or one of the region's own: usual, of both kinds of IP, FIPS.
_AMAZONS = r"|dynamodb(?:-fips)?\.{0}\.(?:amazonaws\.com(?:\.cn)?|api\.aws)(?::443)?"
_WORD = re.compile(r"\w{1,60}")
_CHECKED = "compare `region` and the keys or the profile of the connection with the account"


class DynamoDBConnection(Definition):
    """The region and the account. Without keys those of the environment, of `profile`, or of the machine's
    role are used."""

    region: str = Field(description="Such as eu-central-1.")
    endpoint: str | None = Field(None, description="Another address than the region's own.")
    profile: str | None = Field(None, description="A profile of the AWS configuration files.")
    access_key_id: str | None = Field(None, description="The account's own key, with `secret_access_key`.")
    secret_access_key: SecretStr | None = Field(None, description="The secret of `access_key_id`.")
    session_token: SecretStr | None = Field(None, description="Of a temporary `access_key_id`.")
    allow_plaintext: bool = False
    connect_timeout: Duration = 10.0
    timeout: Duration = Field(30.0, description="Of one request.")

    @model_validator(mode="after")
    def _fits(self) -> DynamoDBConnection:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("`access_key_id` and `secret_access_key` belong together")
        if self.session_token and not self.access_key_id:
            raise ValueError("`session_token` belongs to an `access_key_id`")
        if self.profile and self.access_key_id:
            raise ValueError("`profile` names keys: `access_key_id` is not beside it")
        require_endpoint(self.endpoint, allow_plaintext=self.allow_plaintext)
        return self

    @property
    def name(self) -> str:
        """The server as errors name it."""
        return urlsplit(self.endpoint).netloc.lower() if self.endpoint else self.region

    @property
    def identity(self) -> str:
        """The region, however its own address is written, or another server and the region there: one that
        stands for Amazon's has tables of each."""
        host = urlsplit(self.endpoint or "").netloc.lower()
        return (
            self.region
            if re.fullmatch(_AMAZONS.format(re.escape(self.region)), host)
            else f"{host}/{self.region}"
        )


class Client:
    """Requests of one lane. `sent`: bytes of their bodies so far."""

    def __init__(self, connection: DynamoDBConnection, gate: Gate) -> None:
        self._connection, self._gate, self._permit = connection, gate, gate.permits()
        self._client: Any = None
        self.sent = 0

    def ask(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one request that changes nothing. Systemic, Unavailable; Missing without a table."""
        return self._answered(operation, parameters, writes=False)

    def write(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """The same for one that does: Ambiguous if nobody knows whether it was applied, Poisoned if it has a
        bad row, Cancelled with the reason of each row of a transaction."""
        return self._answered(operation, parameters, writes=True)

    def _answered(self, operation: str, parameters: dict[str, Any], *, writes: bool) -> dict[str, Any]:
        client = self._opened()
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

        with self._permit(None):
            try:
                found: dict[str, Any] = getattr(client, operation)(**parameters)
            except ClientError as problem:
                self._gate.on_status(problem.response["ResponseMetadata"]["HTTPStatusCode"])
                raise self._refused(problem.response, writes=writes) from None
            except (ConnectionError, HTTPClientError) as problem:
                raise self._lost(problem, writes=writes) from None
            except BotoCoreError as problem:
                raise self._unsent(problem) from None
        self._gate.on_status(found["ResponseMetadata"]["HTTPStatusCode"])
        return found

    def _opened(self) -> Any:
        """Systemic CLIENT_MISSING, AWS_LOGIN."""
        if self._client is not None:
            return self._client
        with needs("dynamodb"):
            from boto3.session import Session
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
            from botocore.session import Session as CoreSession
        to, shown = self._connection, SecretStr.get_secret_value
        config = Config(
            connect_timeout=to.connect_timeout,
            read_timeout=to.timeout,
            retries={"total_max_attempts": 1},
            max_pool_connections=1,
        )
        try:
            core = CoreSession(profile=to.profile)
            core.register_component("data_loader", _loader())
            session = Session(
                aws_access_key_id=to.access_key_id,
                aws_secret_access_key=to.secret_access_key and shown(to.secret_access_key),
                aws_session_token=to.session_token and shown(to.session_token),
                region_name=to.region,
                botocore_session=core,
            )
            self._client = session.client("dynamodb", endpoint_url=to.endpoint, config=config)
        except (BotoCoreError, ValueError) as problem:
            raise self._unsent(problem) from None
        self._client.meta.events.register("before-send.dynamodb", self._count)
        return self._client

    def _count(self, request: Any, **_: Any) -> None:
        self.sent += len(request.body or b"")

    def _refused(self, response: dict[str, Any], *, writes: bool) -> TargetError:
        code, server = str(response["Error"].get("Code", "")), self._connection.name
        if code == "TransactionCanceledException":
            return Cancelled([str(one.get("Code")) for one in response.get("CancellationReasons", [])])
        if code in THROTTLED:
            return Unavailable("THROTTLED", f"DynamoDB in {server} takes no more writes for now")
        if code in _LOGIN:
            return Systemic("AWS_LOGIN", f"DynamoDB in {server} refuses the account", hint=_CHECKED)
        if code in _FORBIDDEN:
            return Systemic(
                "NOPERM",
                f"DynamoDB in {server}: this account may not do that with the table",
                hint="allow the account what the target's page lists",
            )
        if code == _GONE:
            return Missing("TABLE_MISSING", f"there is no such table in {server}", hint="run `retl check`")
        if writes and code in _BAD_ROW:
            return Poisoned("ITEM_REFUSED", "DynamoDB refuses the row for a reason of its own")
        if response["ResponseMetadata"]["HTTPStatusCode"] >= 500 or code == "TransactionInProgressException":
            return self._unanswered("an error of its own", writes=writes)
        word = code if _WORD.fullmatch(code) else "no code"
        return Systemic("AWS_REFUSED", f"DynamoDB in {server} refuses the request ({word})", hint=_CHECKED)

    def _lost(self, problem: Exception, *, writes: bool) -> TargetError:
        """The connection failed: before anything was sent, or nobody knows when."""
        from botocore.exceptions import (
            ConnectTimeoutError,
            EndpointConnectionError,
            ProxyConnectionError,
            SSLError,
        )

        if isinstance(problem, SSLError):
            return Systemic("TLS_UNVERIFIED", f"{self._connection.name} is not who it claims to be")
        if isinstance(problem, ConnectTimeoutError | EndpointConnectionError | ProxyConnectionError):
            return Unavailable("UNREACHABLE", f"DynamoDB in {self._connection.name} cannot be reached")
        return self._unanswered("no answer", writes=writes)

    def _unanswered(self, what: str, *, writes: bool) -> TargetError:
        kind = Ambiguous if writes else Unavailable
        return kind("NO_ANSWER", f"DynamoDB in {self._connection.name}: {what}")

    def _unsent(self, problem: Exception) -> Systemic:
        """Without credentials, or with settings that the client refuses, nothing is sent."""
        why = type(problem).__name__
        return Systemic(
            "AWS_LOGIN", f"there is no account for DynamoDB in {self._connection.name} ({why})", hint=_CHECKED
        )

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


@cache
def _loader() -> Any:
    """What reads the description of DynamoDB's API, once for all lanes: it is large."""
    from botocore.loaders import create_loader

    return create_loader()


class Missing(Systemic):
    """There is no such table."""


class Cancelled(Unavailable):
    """Nothing of a transaction was applied. `codes`: why, for each row; "None" if not for its sake."""

    def __init__(self, codes: list[str]) -> None:
        super().__init__("THROTTLED", "DynamoDB cancelled a transaction")
        self.codes = codes
