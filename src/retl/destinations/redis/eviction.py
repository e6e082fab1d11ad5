"""What a server does with rows when its memory is full, as far as the account may know."""

from __future__ import annotations

import re

from retl.destinations.redis.resp import Wire


def policy(server: Wire) -> str | None:
    """What the server does when its memory is full; None if the account may not know."""
    info, config = server.ask([("INFO", "memory"), ("CONFIG", "GET", "maxmemory-policy")])
    found = re.search(rb"^maxmemory_policy:(\S+)", info, re.MULTILINE) if isinstance(info, bytes) else None
    held = found[1] if found else config[1] if isinstance(config, list) and len(config) == 2 else None
    return held.decode(errors="replace") if isinstance(held, bytes) else None


def notes(held: str | None) -> list[str]:
    """What this policy means for rows without TTL. None: it is not known."""
    if held is None:
        return [
            "this account may not ask for the eviction policy (it lacks +info): with any but noeviction, rows"
            " can vanish, and the next run calls them unchanged"
        ]
    full = f"maxmemory-policy is {held}: when its memory is full the server removes"
    if held.startswith("volatile-"):
        return [f"{full} keys that have a TTL; rows with `ttl: none` stay unless somebody sets one"]
    if held != "noeviction":
        return [
            f"{full} any keys, also rows with `ttl: none`, and the next run calls them unchanged; set"
            " noeviction, or a `ttl`"
        ]
    return []
