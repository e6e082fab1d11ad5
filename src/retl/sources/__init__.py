"""Marts: each kind becomes a SELECT that DuckDB can answer, is read once, and let go."""
