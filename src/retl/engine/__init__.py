"""All SQL over rows. It knows no target and no ledger, and keeps nothing after the run."""
