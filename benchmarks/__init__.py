"""retl against what its users could do by hand: same rows, same servers, same minute. No product code."""
