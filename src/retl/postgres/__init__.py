"""PostgreSQL's own words: SQL text, error codes, the catalog and what it says of a sync.

Nothing here decides when to connect or what to send: that is the destination's.
"""
