"""Who listens to events: nothing here changes what a run does."""
