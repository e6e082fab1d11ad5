"""Judges rows: a Pydantic model, and a SQL prefilter for the rows that it surely accepts."""
