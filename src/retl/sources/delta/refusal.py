"""What an error of the reader means, in one sentence.

The reader's own text may quote values, and it has the addresses of requests, so only what is recognised in
it is repeated. `--debug` shows the rest.
"""

from __future__ import annotations

import re

from retl.errors import SourceError
from retl.sources.api import unsupported

# Text of an error → code, message and hint; the first that is found counts. {} is what the group matched.
_MEANINGS = (
    (
        r"NoSuchBucket|No files in log segment|Invalid table location|you don't have access",
        *("MART_MISSING", "there is no {table}", "check `root` and the table's name"),
    ),
    (
        r"privileges|Unauthenticated|\b40[13] |[Cc]redential|Permission denied|IMDS",
        *(
            "MART_UNREADABLE",
            "{table} may not be read, or the keys are wrong",
            "check `storage` and the rights",
        ),
    ),
    (
        r"\(Connect\)|dns error|timed out|connection (?:closed|reset)|error sending request|retry_timeout",
        *("UNREACHABLE", "the storage of {table} does not answer", "check `endpoint` and the network"),
    ),
    (
        r"end version|Invalid table version|InvalidVersion|Invalid version",
        *("MART_MISSING", "{table} has no such version, or its log no longer has it", "name another in `at`"),
    ),
    (
        r"No table metadata or protocol found|missing|gap|contiguous",
        *("MART_UNREADABLE", "the log of {table} is not complete", "restore it, or let its writer repair it"),
    ),
    (
        r"Object at location .* not found|No such file",
        *(
            "MART_UNREADABLE",
            "files of this version of {table} are not there",
            "read a newer version if they were vacuumed",
        ),
    ),
)
_FEATURES = (
    (r"Feature '([\w-]+)' is not supported", "the feature {}"),
    (r"(catalog)-managed", "the feature catalogManaged"),
    (r"Unsupported table features required: \[(\w+)", "the feature {}"),
    (r"Unsupported Delta table type: '([^']+)'", "a column of type {}"),
    (r"Table contains (\w+)", "a column of type {} without the feature for it"),
)
HINT = "drop the feature where the table is written, or copy what the sync needs into a table without it"


def no_version(table: str) -> SourceError:
    """The error for a version that the log of a table does not lead to."""
    return SourceError(
        "MART_MISSING",
        f"{table} has no such version, or its log no longer has it",
        hint="name another in `at`",
    )


def refusal(problem: Exception, table: str) -> SourceError:
    """The error as ours."""
    text = str(problem)
    for pattern, feature in _FEATURES:
        if found := re.search(pattern, text):
            return unsupported(table, feature.format(found[1]), HINT)
    for pattern, code, message, hint in _MEANINGS:
        if re.search(pattern, text):
            return SourceError(code, message.format(table=table), hint=hint)
    message = f"{table} cannot be read: the reader refused with {type(problem).__name__}"
    return SourceError("MART_UNREADABLE", message, hint="`--debug` shows its own words")
