"""The files of a project, read and checked: text becomes definitions, and errors name file, line and
column."""
