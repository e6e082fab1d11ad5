"""Topics of a Kafka cluster as a target: a row is a record, a batch is a transaction."""
