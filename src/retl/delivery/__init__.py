"""How batches reach the target: lanes, attempts, halves, and when to stop."""
