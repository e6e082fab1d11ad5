"""DuckDB 1.5 as a writer of Iceberg tables: run by the Python of an environment that has it and its extensions.

Arguments: the catalog's address, the storage's host and port, user, secret, and SQL statements as a JSON list.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import duckdb

uri, storage, user, secret, statements = sys.argv[1:]
connection = duckdb.connect()
for name in ("avro", "httpfs", "iceberg"):
    folder = Path(str(importlib.import_module(f"duckdb_extension_{name}").__file__)).parent
    (extension,) = folder.rglob("*.duckdb_extension")
    connection.execute(f"LOAD '{extension}'")
connection.execute(
    f"CREATE SECRET storage (TYPE s3, KEY_ID '{user}', SECRET '{secret}', ENDPOINT '{storage}', URL_STYLE 'path',"
    " USE_SSL false, REGION 'us-east-1')"
)
connection.execute(
    f"CREATE SECRET catalog (TYPE iceberg, CLIENT_ID '{user}', CLIENT_SECRET '{secret}',"
    f" OAUTH2_SERVER_URI '{uri}/v1/oauth/tokens')"
)
connection.execute(f"ATTACH 'lake' AS lake (TYPE iceberg, ENDPOINT '{uri}', SECRET catalog)")
for statement in json.loads(statements):
    connection.execute(statement)
