"""Approval: a plan that another person signed with an SSH key, as `ssh-keygen -Y sign -n retl-plan` does.

A name on a command line proves nothing; a signature does. ssh-keygen verifies it: nothing is verified here by
our own code. Who may sign is a file of the project (`allowed_signers`, see ssh-keygen(1)).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from retl.errors import DefinitionError, Mismatch

NAMESPACE = "retl-plan"
_SECONDS = 30.0


def approver(plan: bytes, signature: Path, signers: Path) -> str:
    """Who signed exactly these bytes. Mismatch SIGNATURE_INVALID if nobody in `signers` did; DefinitionError
    if a file or ssh-keygen is missing."""
    for path, what in ((signature, "signature"), (signers, "`allowed_signers` file")):
        if not path.is_file():
            raise DefinitionError("SIGNATURE_FILE", f"there is no {what} {path}")
    tool = shutil.which("ssh-keygen")
    if tool is None:
        raise DefinitionError(
            "SIGNATURE_TOOL",
            "ssh-keygen, which verifies signatures, is not installed",
            hint="install the OpenSSH client",
        )
    with tempfile.TemporaryDirectory(prefix="retl-signature-") as folder:
        # copies: what is verified must not change between two calls
        mine, theirs = Path(folder) / "sig", Path(folder) / "signers"
        mine.write_bytes(signature.read_bytes())
        theirs.write_bytes(signers.read_bytes())
        found = _ask(tool, "find-principals", "-s", mine, "-f", theirs)
        for name in found.stdout.decode(errors="replace").splitlines():
            known = ("-I", name, "-n", NAMESPACE, "-s", mine, "-f", theirs)
            if name and _ask(tool, "verify", *known, given=plan).returncode == 0:
                return name
    raise Mismatch(
        "SIGNATURE_INVALID",
        "the signature is not one of this plan by an allowed signer",
        hint=f"`ssh-keygen -Y sign -n {NAMESPACE} -f KEY PLAN` makes one; the signer's key must be in"
        " `allowed_signers`",
    )


def _ask(tool: str, what: str, *words: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(  # noqa: S603 - a fixed program, and no shell
            [tool, "-Y", what, *map(str, words)],
            input=given,
            capture_output=True,
            timeout=_SECONDS,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DefinitionError("SIGNATURE_TOOL", f"ssh-keygen did not answer within {_SECONDS:g} s") from None
