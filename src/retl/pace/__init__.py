"""How often retl may call a target, and how long it waits. It knows no target."""
