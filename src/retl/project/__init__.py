"""The files of a project, read and checked: text becomes definitions; errors name file, line and column."""
