"""`retl demo`: a sample warehouse, real servers from wheels and the sample syncs, on any laptop."""
