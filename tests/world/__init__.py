"""The suite of the world: somebody else acts between, before and during runs, and nothing may be lost.

`scenes` says what happens, `targets` where it is delivered and what must be there, `play` runs a scene and
judges every run of it, `hosts` has the servers. `make test-world` plays everything and prints a table;
test_world.py plays the scenes that cost little. Nothing here reads a target through retl.
"""
