"""A Delta table as a target: a batch is a commit of its log."""
