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
        "mode": "`changes` (rows that changed) or `snapshot` (the table holds the mart and nothing else).",
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
PARTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "Keys of an operation": {
            "method": "POST, PUT, PATCH or DELETE.",
            "path": "Below `base_url`, with a query if needed; `{user_id}` is a field of the row.",
            "wrap": 'Where in the body the list of rows is, such as `recipients`; `""`: the body is the list.'
            " Without it each row is a request.",
            "envelope": "The rest of the body beside `wrap`.",
            "row": "A row's form: `$user_id` is a field, `$fields` all of them, `$others` the rest of them.",
            "cast": "How values are written.",
            "encoding": "How the body is written.",
            "lines": "With ndjson: `row` is a list, and each item a line.",
            "headers": "Sent with each request; `{$user_id}` is a field of its row.",
            "then": "After a delete: the path of one more DELETE.",
            "max_rows": "The most rows of one request. Without it as many as `batch` of the sync has.",
            "max_bytes": "The most bytes of one body.",
            "max_row_bytes": "A row with more bytes is a reject.",
            "outcome": "What an answer to this operation means, in place of `outcome` of the destination.",
            "job": "If the answer names a job instead of results.",
        },
        "Keys of `outcome`": {
            "ok": "The statuses of success: 200, 201, 202 and 204 unless written.",
            "partial": "The statuses of an answer in which some rows may be bad, such as 207.",
            "ok_when": "What the body of a success says; without it the answer is a refusal.",
            "rows": "How an answer names rows: all or none, by position, name or number, or not.",
            "at": "Where the items are: one path or several, with dots.",
            "errors_at": "With `listed`: where a second list is, of bad rows.",
            "failed": "Where the number of bad rows is.",
            "retry_at": "With `listed`: where the rows are that were not processed.",
            "inside": "Where the answer is in base64, inside JSON.",
            "index": "With `errors_by_index`: where an item says its number.",
            "first": "The number of the first row there: 0 or 1.",
            "match": "How an item names its row: `at` in the item, `to` a field.",
            "row_ok": "What an item of a good row says.",
            "row_kept": "What an item says of a row that the target left as it was.",
            "row_absent": "What an item says of an object that is not there.",
            "row_changed": "What an item says of an object that somebody else changed.",
            "row_retry": "What an item says of a row that is to be sent again.",
            "code": "Where the code of an error is.",
            "reason": "Where the text of an error is.",
            "ref": "Where the target's own id of a row is.",
            "retry_after": "A header that says how long to wait.",
            "wait": "How long to wait if nothing says it.",
            "usage": "Where answers say how much of the quota is used.",
            "budget": "The same for the quota of the day.",
            "cases": "What certain statuses or texts mean, before everything else.",
        },
    }
)
