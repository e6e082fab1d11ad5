"""Whether Microsoft's driver for SQL Server can be loaded on this machine."""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


AVAILABLE = find_spec("mssql_python") is not None and (sys.platform != "linux" or _loads("libltdl.so.7"))
