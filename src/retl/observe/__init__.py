"""What a run tells while it works, and who listens. Nothing here changes what a run does."""
