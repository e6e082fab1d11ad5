"""What a row must be: a Pydantic model, and the SQL that clears the rows it would surely accept."""
