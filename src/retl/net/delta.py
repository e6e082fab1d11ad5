"""A bucket's keys and deadlines as the client of Delta tables spells them, for sources and targets."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from retl.net.bucket import Address, Cloud, Storage

_SPELLED: dict[Cloud, dict[str, str]] = {
    "s3": {
        "region": "aws_region",
        "endpoint": "aws_endpoint",
        "access_key_id": "aws_access_key_id",
        "secret_access_key": "aws_secret_access_key",
        "session_token": "aws_session_token",
        "anonymous": "aws_skip_signature",
    },
    "gs": {"service_account_file": "google_service_account", "anonymous": "google_skip_signature"},
    "az": {
        "endpoint": "azure_storage_endpoint",
        "account_name": "azure_storage_account_name",
        "account_key": "azure_storage_account_key",
        "sas_token": "azure_storage_sas_key",
        "tenant_id": "azure_storage_tenant_id",
        "client_id": "azure_storage_client_id",
        "client_secret": "azure_storage_client_secret",
        "anonymous": "azure_skip_signature",
    },
}


def options(
    address: Address,
    storage: Storage,
    folder: Path,
    *,
    retries: int = 4,
    seconds: float = 60.0,
    connect: float = 10.0,
) -> dict[str, str]:
    """The client's options for a bucket, with this many retries of its own. `seconds` are for one request.
    `folder`: relative paths of key files are relative to it."""
    plain = urlsplit(storage.endpoint or "").scheme == "http"  # allowed by `Storage`
    made = {
        "connect_timeout": f"{connect:g}s",
        "timeout": f"{seconds:g}s",
        "retry_timeout": f"{seconds:g}s",
        "max_retries": str(retries),
        "allow_http": str(plain).lower(),
    }
    for name, spelled in _SPELLED[address.cloud].items():
        value = getattr(storage, name)
        if isinstance(value, SecretStr):
            made[spelled] = value.get_secret_value()
        elif name == "service_account_file" and value:
            made[spelled] = str(folder / value)
        elif value:
            made[spelled] = str(value).lower() if value is True else str(value)
    if storage.access_key_id and not storage.session_token and "AWS_SESSION_TOKEN" in os.environ:
        made["aws_session_token"] = ""  # that of the environment is of other keys
    if address.account:
        made["azure_storage_account_name"] = address.account
    if address.fabric:
        made["azure_use_fabric_endpoint"] = "true"
    return made
