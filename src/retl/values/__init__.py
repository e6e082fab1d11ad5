"""The types of values and the form each takes in DuckDB, JSON, CSV and keys."""
