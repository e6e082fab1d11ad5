"""Databases that take a batch the common way: stage it, apply the stage, mark it, in one transaction."""
