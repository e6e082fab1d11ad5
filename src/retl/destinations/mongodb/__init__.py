"""Documents of a MongoDB collection as a target: a row is a document, by its key."""
