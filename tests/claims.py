"""Which test holds which sentence of README and of the guides: claims.tsv, and what it says of the pages.

A line is a page, the first words of a sentence, a digest, and the test. It is about that sentence and those after
it in the same paragraph, up to the next line's. The digest is that of their text, so that a sentence that is
changed, added or taken out makes somebody look at the test again. Several lines with the same words name several
tests. `-` instead of a test says that the sentences claim nothing about behaviour: advice, what others do, where
to read on.

`python -m tests.claims` lists what is wrong, with the digests as they would be; `--stamp` writes them, once
somebody has looked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "claims.tsv"
PAGES = ("README.md", *sorted(str(one.relative_to(ROOT)) for one in (ROOT / "docs" / "guides").rglob("*.md")))
FENCE = re.compile(
    r"^```.*?^```$|<!-- measured: begin.*?measured: end -->|<!--.*?-->", re.MULTILINE | re.DOTALL
)
SENTENCE = re.compile(
    r"(?<=[.!?])(?<!\b\d\.) (?=[A-Z`*\[(<\"~$\d-])"  # a sentence; 1. begins an item
    r"|(?<=[.;:)`a-z0-9]) (?=- (?:[A-Z`*\[|]))"  # an item of a list
    r"|(?<=[.;:)`]) (?=\d+\. )"
)
RULE = re.compile(r"\|(?: ?:?-+:? ?\|)+ ")  # between the head of a table and its rows
MARKS = re.compile(r"^(?:[-|] |\d+\. )?\**")  # before the first word


class Claim(Struct, frozen=True):
    page: str
    words: str
    digest: str
    test: str


def claims() -> list[Claim]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return [Claim(*line.split("\t")) for line in lines]


@cache
def paragraphs(page: str) -> list[list[str]]:
    """The sentences of each paragraph, without code, headings and pictures. A list and a table are one paragraph
    each; the rows of a table are its sentences."""
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = (re.sub(r"^#+ .*\n?", "", one, flags=re.MULTILINE) for one in re.split(r"\n\s*\n", text))
    lines = (" ".join(one.split()) for one in found)
    return [list(_sentences(one)) for one in lines if one and not one.startswith("![")]


def _sentences(paragraph: str) -> Iterator[str]:
    if paragraph.startswith("|"):
        yield from re.split(r"(?<=\|) (?=\| )", RULE.split(paragraph, maxsplit=1)[-1])
    else:
        yield from SENTENCE.split(paragraph)


def begins(sentence: str, words: str) -> bool:
    return MARKS.sub("", sentence).startswith(MARKS.sub("", words))


def digest(sentences: Sequence[str]) -> str:
    return sha256(" ".join(sentences).encode()).hexdigest()[:8]


def stretches(page: str, words: set[str]) -> Iterator[tuple[str | None, list[str]]]:
    """The sentences of a page from each claim to the next; without words where no claim begins a paragraph."""
    for paragraph in paragraphs(page):
        begun: tuple[str | None, list[str]] = (None, [])
        for sentence in paragraph:
            mine = [one for one in words if begins(sentence, one)]
            if mine:
                if begun[1]:
                    yield begun
                begun = (max(mine, key=len), [])
            begun[1].append(sentence)
        yield begun


def faults(table: Sequence[Claim]) -> list[str]:
    """What is wrong between the pages and the table, a line each."""
    found = list[str]()
    for page in PAGES:
        mine = [one for one in table if one.page == page]
        seen = dict[str, str]()
        for words, sentences in stretches(page, {one.words for one in mine}):
            if words is None:
                found.append(f"{page}: no line for: {sentences[0][:80]}")
            elif words in seen:
                found.append(f"{page}: these words begin two sentences: {words}")
            else:
                seen[words] = digest(sentences)
        for one in mine:
            if one.words not in seen:
                found.append(f"{page}: no sentence begins so any more: {one.words}")
            elif seen[one.words] != one.digest:
                found.append(
                    f"{page}: changed, or something was added after it: {one.words!r}. Does {one.test} still"
                    f" hold it? Then its digest is {seen[one.words]}"
                )
    return found


def stamped(table: Sequence[Claim]) -> list[Claim]:
    """The table with the digests of the pages as they are."""
    now = {
        (page, words): digest(sentences)
        for page in PAGES
        for words, sentences in stretches(page, {one.words for one in table if one.page == page})
        if words is not None
    }
    return [replace(one, digest=now.get((one.page, one.words), one.digest)) for one in table]


def written(table: Sequence[Claim]) -> str:
    return "".join(f"{one.page}\t{one.words}\t{one.digest}\t{one.test}\n" for one in table)


@cache
def names_in(file: str) -> set[str]:
    return set(re.findall(r"^ *def (test_\w+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))


if __name__ == "__main__":
    print("\n".join(faults(claims())))
    if sys.argv[1:] == ["--stamp"]:
        TABLE.write_text(written(stamped(claims())), encoding="utf-8")
