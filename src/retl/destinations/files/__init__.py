"""Files in a folder or a bucket as a target: change files with a log, or whole snapshots."""
