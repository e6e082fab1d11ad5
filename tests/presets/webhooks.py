"""The path of a webhook that is a secret itself."""

from tests.api import TOKEN

PATH = f"/hooks/{TOKEN}?sig={TOKEN}"
