"""Speaking HTTP: what is sent (`body`), who sends it (`client`, `auth`), what the answer means (`outcome`).

Shared by every target reached over HTTP. It knows no vendor and no sync: vendors are data.
"""
