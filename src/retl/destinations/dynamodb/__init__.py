"""Items of a DynamoDB table as a target: a row is an item, by its key."""
