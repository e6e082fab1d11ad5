"""Signed plans: `retl apply --signature`, and syncs that deliver nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROWS, Workshop
from tests.servers import Database
from tests.test_plans_and_state import TABLE, column

PLAN = "plan.json"


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    for name in ("ada", "eve"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    key = (tmp_path / "ada.pub").read_text().rsplit(" ", 1)[0]
    made.write("keys/allowed_signers", f"ada@example.com {key}\n")
    made.write("retl.yml", "allowed_signers: keys/allowed_signers\n")
    made.sync("users", destination=TABLE, require="approval")
    return made


def planned(workshop: Workshop) -> None:
    workshop.json("plan", "--sync", "users", "--out", PLAN)


def signed(workshop: Workshop, name: str = "ada", namespace: str = "retl-plan") -> str:
    path = workshop.folder / f"{PLAN}.sig"
    path.unlink(missing_ok=True)
    key = str(workshop.folder.parent / name)
    command = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", key, str(workshop.folder / PLAN)]
    subprocess.run(command, check=True, capture_output=True)
    return f"{PLAN}.sig"


def applied(workshop: Workshop, *words: str, code: int = 0) -> Any:
    said = workshop.retl("apply", PLAN, *words, "--output", "json")
    assert said.code == code, said.err
    return said


def test_only_a_signed_plan_is_delivered_once_and_the_run_says_who_signed(
    workshop: Workshop, postgres: Database
) -> None:
    refused = workshop.retl("sync")
    assert (refused.code, "APPROVAL_REQUIRED" in refused.err) == (3, True)
    assert workshop.retl("sync", "--dry-run").code == 0
    planned(workshop)
    assert "APPROVAL_REQUIRED" in applied(workshop, code=3).err
    planned(workshop)
    signature = signed(workshop)
    (done,) = applied(workshop, "--signature", signature).document["syncs"]
    assert done["inserted"] == ROWS
    shown = workshop.json("show", done["run_id"])
    assert (shown["approved_by"], len(shown["options"]["plan"])) == ("ada@example.com", 64)
    lines = [line.split() for line in workshop.retl("show", done["run_id"]).out.splitlines()]
    assert ["approved", "by", "ada@example.com"] in lines
    assert workshop.retl("log", "verify").code == 0
    spent = applied(workshop, "--signature", signature, code=3).err
    assert ("PLAN_MOVED" in spent, "retl plan users --out FILE" in spent, "sync users" in spent) == (
        True, True, False,
    )  # fmt: skip
    assert column(postgres, "SELECT count(*) FROM crm.users") == [ROWS]
    refused = workshop.retl("sync", "--accept", "APPROVAL_REQUIRED")
    assert (refused.code, "GUARD_UNKNOWN" in refused.err) == (2, True)


def test_a_signature_of_another_person_plan_or_purpose_is_none(
    workshop: Workshop, postgres: Database
) -> None:
    planned(workshop)
    for name, namespace in (("eve", "retl-plan"), ("ada", "file")):
        said = applied(workshop, "--signature", signed(workshop, name, namespace), code=3)
        assert "SIGNATURE_INVALID" in said.err
    signature = signed(workshop)
    path = workshop.folder / PLAN
    path.write_bytes(path.read_bytes() + b" ")
    assert "SIGNATURE_INVALID" in applied(workshop, "--signature", signature, code=3).err
    (workshop.folder / signature).write_text("no signature")
    assert "SIGNATURE_INVALID" in applied(workshop, "--signature", signature, code=3).err
    assert "SIGNATURE_FILE" in applied(workshop, "--signature", "missing.sig", code=2).err
    assert column(postgres, "SELECT count(*) FROM pg_tables WHERE schemaname = 'crm'") == [0]


def test_who_may_sign_must_be_said_and_ssh_keygen_must_be_there(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(workshop)
    signature = signed(workshop)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert "SIGNATURE_TOOL" in applied(workshop, "--signature", signature, code=2).err
    monkeypatch.undo()
    workshop.write("retl.yml", "{}\n")
    said = workshop.retl("validate")
    assert said.code == 2
    assert "SIGNERS_MISSING" in said.err + said.out
