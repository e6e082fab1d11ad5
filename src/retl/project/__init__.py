"""The files of a project, read and checked: from text to definitions, every error with file, line and column."""
