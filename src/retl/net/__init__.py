"""Connections to servers, with TLS and deadlines. Nothing here knows what a row is."""
