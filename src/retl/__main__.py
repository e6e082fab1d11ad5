"""`python -m retl`."""

from retl.cli import process

if __name__ == "__main__":
    process()
