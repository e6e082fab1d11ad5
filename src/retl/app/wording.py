"""What options mean that have one name and one meaning in many types: the words of the reference for them.

An option whose own model describes it needs none. A test reads every page: no option is without words.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CONNECTION: Mapping[str, str] = MappingProxyType(
    {
        "account": "The account's identifier, as in its address.",
        "allow_plaintext": "Send without TLS to another machine. This machine needs no TLS.",
        "auth": "How requests are authenticated: `bearer`, `basic`, `header`, `oauth2` and others.",
        "base_url": "The address that every path is relative to.",
        "catalog": "The catalog in which names of tables are looked up.",
        "compression": "How records are compressed.",
        "connect_timeout": "Seconds to wait for a connection.",
        "credentials_file": "A file with the account's credentials.",
        "csrf": "Where a token comes from that every write needs.",
        "database": "The database in which names of tables are looked up.",
        "dataset": "The dataset in which names of tables are looked up.",
        "db": "The number of the database.",
        "dbname": "The name of the database.",
        "dbt": "dbt's target folder, with its manifest and results.",
        "headers": "Sent with every request; they count as secrets.",
        "host": "The server's name or address.",
        "http_path": "The path of the SQL warehouse.",
        "limits": "How often the server may be asked, as for a connection.",
        "location": "The region in which queries run.",
        "lock_wait": "How long to wait while another process writes to the file: seconds, or 10m.",
        "login": "The kind of account: `sql`, or one of the directory.",
        "max_bytes": "A query that would read more bytes is refused.",
        "password": "The account's password.",
        "path": "The database's file; a relative path begins at the project's folder.",
        "port": "The server's port.",
        "private_key": "The account's private key, as PEM.",
        "private_key_file": "A file with the account's private key.",
        "private_key_password": "The password of the private key.",
        "project": "The project that pays for queries.",
        "read_paths": "Files and folders that views of the warehouse may read.",
        "retry": "How often, and for how long, a request without an answer is repeated.",
        "role": "The role that the session takes.",
        "schema": "The schema in which names of tables are looked up.",
        "snapshot": "Whether rows are read in snapshot isolation.",
        "sslmode": "`verify-full`, or another word of libpq. Only on this machine may it verify nothing.",
        "sslrootcert": "A file with the certificates that vouch for the server; default: the system's.",
        "timeout": "Seconds to wait for an answer.",
        "timeouts": "Seconds for a request: `connect`, `idle` (nothing arrives), and `total`.",
        "timezone": "The zone in which times without one are read.",
        "tls": "Whether, or how, the connection is encrypted.",
        "tls_ca_file": "A file with the certificates that vouch for the server; default: the system's.",
        "token": "The access token.",
        "user": "The account's name.",
        "warehouse": "The warehouse that computes queries.",
    }
)
DESTINATION: Mapping[str, str] = MappingProxyType(
    {
        "check": "A request that `retl check` and every run send first.",
        "compression": "How records are compressed.",
        "create": "Make the table if it is missing, and later add columns that it lacks.",
        "delete": "The request that deletes.",
        "find": "The request that finds the id of an object.",
        "batch": "Address, rows and headers of one OData $batch for many rows that `find` looks for.",
        "folds": "What the API does not distinguish in keys: `case`, `accents`, `blanks`.",
        "idempotency": "A key in each request by which the API recognises one that it got before.",
        "insert": "The request that makes a new object.",
        "job": "How a bulk job is opened, started and asked, and where its errors are.",
        "cast": "How values are written, in all operations without a `cast` of their own.",
        "outcome": "What an answer says about each row.",
        "read": "The request that reads an object.",
        "reply_to": "The address for answers.",
        "subject": "The subject of the mail.",
        "table": "The table, as `schema.table` or with the default schema; spelled as in the catalog.",
        "topic": "The topic.",
        "update": "The request that changes an object.",
        "upsert": "The request that makes or changes an object.",
        "version": "Where an answer says which version of the object it is.",
    }
)
SOURCE: Mapping[str, str] = MappingProxyType(
    {
        "at": "A version or a time: the table as it was then.",
        "dbt": "A model of dbt: the relation that dbt made for it.",
        "file": "A file with a SELECT; the path begins at the project's folder.",
        "max_age": "Refuse a mart that dbt built longer ago: seconds, or 26h.",
        "path": "Where the rows are, below the source's own address.",
        "sql": "A SELECT.",
        "table": "A table or a view.",
    }
)
