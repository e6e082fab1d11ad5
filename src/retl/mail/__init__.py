"""Mail: rows into messages (`letters`), and the connection that takes them (`wire`)."""
