"""`retl docs`: a site that is whole, the same for the same inputs, and without a key or a secret."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import screenshots, served
from tests.commands import Workshop
from tests.served import LOUD, MAIL
from tests.test_report import Elements


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = served.shop(tmp_path_factory.mktemp("site") / "shop")
    served.troubled(made)
    return made


def built(made: Workshop, folder: Path, **more: str) -> Mapping[str, str]:
    """The site's files."""
    pages = made.json("docs", "--out", str(folder), **more)["pages"]
    found = {str(one.relative_to(folder)): one.read_text() for one in folder.rglob("*.html")}
    assert sorted(found) == pages
    return found


def words(document: str) -> str:
    return " ".join(" ".join(Elements(document).texts).split())


def test_the_site_tells_every_sync_and_every_link_in_it_leads_somewhere(
    shop: Workshop, tmp_path: Path
) -> None:
    site = built(shop, tmp_path / "site")
    assert {"index.html", "runs.html", "rejects.html", "lineage.html", "syncs/visits.html"} <= site.keys()
    for path, text in site.items():
        elements = Elements(text)
        assert elements.open == []
        assert {tag for tag, _ in elements.found}.isdisjoint({"script", "form", "img", "iframe", "object"})
        for _, attributes in elements.found:
            to = str(attributes.get("href", "#content"))
            if not to.startswith(("#", "data:,")):
                assert posixpath.normpath(posixpath.join(posixpath.dirname(path), to)) in site, (path, to)
    sync = words(site["syncs/customers.html"])
    for said in ("What the CRM knows", "Mail email trim, then lower; sensitive", "OUT_OF_RANGE 2", "1 d 2 h"):
        assert said in sync
    assert "users email customers sqlite:data/crm.db" in words(site["lineage.html"])
    assert "customers 2 contract OUT_OF_RANGE" in words(site["rejects.html"])
    assert "customers SUCCESS_WITH_REJECTS" in words(site["index.html"])
    assert sum(path.startswith("runs/") for path in site) == 3


def test_the_site_has_no_key_and_no_value(shop: Workshop, tmp_path: Path) -> None:
    for text in built(shop, tmp_path / "site").values():
        assert MAIL not in text
        assert "<code>29</code>" not in text
        assert "<code>***</code>" not in text


def test_the_same_files_and_ledger_make_the_same_bytes(shop: Workshop, tmp_path: Path) -> None:
    first = built(shop, tmp_path / "first")
    elsewhere = served.copy(shop, tmp_path / "elsewhere")
    assert built(elsewhere, tmp_path / "second") == first


def test_the_site_needs_no_secret_and_says_what_it_lacks(tmp_path: Path) -> None:
    made = Workshop(tmp_path / "shop")
    made.write(
        "retl.yml",
        'state: {url: "${STATE}"}\nconnections: {crm: {type: postgres, host: crm.internal, password: "${CRM}"}}\n',
    )
    made.sync("users", destination="{connection: crm, table: crm.users}", description="For the CRM")
    site = built(made, made.folder / "site")
    assert "without the ledger: it has no runs. It needs the variable STATE" in words(site["index.html"])
    assert "users users crm, postgres For the CRM" in words(site["index.html"])
    assert "every column of the mart" in words(site["syncs/users.html"])
    made.sync("part", destination="{connection: crm, table: crm.part}", contract='{"*": {nullable: true}}')
    assert "It is written for some columns" in words(built(made, made.folder / "site")["syncs/part.html"])
    made.write("retl.yml", "connections: {crm: {type: postgres, host: crm.internal}}\n")
    assert "users NEVER never" in words(built(made, made.folder / "site")["index.html"])


def test_no_text_in_the_site_is_more_than_text(shop: Workshop, tmp_path: Path) -> None:
    made = served.copy(shop, tmp_path / "shop")
    served.customers(made, description=f'"{LOUD.replace(chr(34), "")}"', tags="['<script>']")
    served.hostile(made)
    for text in built(made, tmp_path / "site").values():
        assert "<script" not in text
        assert "<img" not in text
        assert "\u202e" not in text


def test_the_docs_show_every_picture_at_the_width_it_names() -> None:
    guide = (screenshots.FOLDER.parent / "guides" / "observing.md").read_text(encoding="utf-8")
    assert {one.name for one in screenshots.FOLDER.glob("*.png")} == screenshots.NAMES
    for name in screenshots.NAMES:
        head = (screenshots.FOLDER / name).read_bytes()[:24]
        size = name.removesuffix(".png").rpartition("-")[2]
        assert head.startswith(b"\x89PNG")
        assert (int.from_bytes(head[16:20]), int.from_bytes(head[20:])) == screenshots.SIZES[size]
        assert f"../screenshots/{name}" in guide


def test_a_folder_of_somebody_else_is_left_alone_and_old_pages_go(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.html").write_text("a cat")
    assert "SITE_UNWRITABLE" in shop.retl("docs", "--out", str(tmp_path / "photos")).err
    assert "SITE_UNWRITABLE" in shop.retl("docs", "--out", str(tmp_path / "photos" / "cat.html")).err
    made = served.copy(shop, tmp_path / "shop")
    built(made, tmp_path / "site")
    (made.folder / "syncs" / "visits.yml").unlink()
    assert "syncs/visits.html" not in built(made, tmp_path / "site")
