"""What the documentation says of the code, made from the code; and files of the guides, shown in their pages.

`python -m pages` (or `make docs`) writes docs/reference/ and docs/destinations/, and puts every file that a
page under docs/guides/ names as the title of a block (```` ```ini title="retl.service" ````) into that page.
It reads no project and asks no server.
"""
