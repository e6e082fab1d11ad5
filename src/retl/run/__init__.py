"""One run: the data path, the plan, and one file for each command that uses them."""
