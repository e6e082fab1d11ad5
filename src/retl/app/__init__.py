"""What runs above one sync: the opened project, its jobs in order, and who is told of them."""
