"""How often a target may be asked, and how long to wait. It knows no target."""
