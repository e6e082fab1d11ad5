"""Everything above a single sync: the opened project, its jobs in order, alerts, reports."""
