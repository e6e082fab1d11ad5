"""One run: the path of the rows, the plan, and one file for each thing that can be done with them."""
