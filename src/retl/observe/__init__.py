"""The events of a run and their listeners: log, progress, metrics, traces. Nothing here changes what a run
does."""
