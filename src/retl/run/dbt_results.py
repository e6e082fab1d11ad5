"""dbt's results across runs: dbt keeps those of its last command, and the ledger what a run has seen."""

from __future__ import annotations

from retl.run.job import Job
from retl.sources.api import Description
from retl.sources.dbt_results import Build, Reported


def known(job: Job, description: Description) -> tuple[Build, ...]:
    """dbt's last results of the models that a source reads."""
    return tuple(_remembered(job, one).build() for one in description.health)


def remember(job: Job, description: Description) -> None:
    """Keep what the files say now for later runs."""
    for one in description.health:
        text = _remembered(job, one).memory.text()
        if text != job.ledger.kept(_name(one)):
            job.ledger.keep(_name(one), text)


def _remembered(job: Job, reported: Reported) -> Reported:
    return reported.after(job.ledger.kept(_name(reported)))


def _name(reported: Reported) -> str:
    return f"dbt {reported.id} {reported.relation}"
