"""Documentation pages made from the code, and the files of the guides, copied into their pages.

`python -m pages` (or `make docs`) writes docs/reference/ and docs/destinations/, and puts every file that a
page under docs/guides/ names as the title of a block (```` ```ini title="retl.service" ````) into that page.
It reads no project and contacts no server.
"""
