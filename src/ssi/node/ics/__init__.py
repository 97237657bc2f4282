"""Internode communication: how the nodes' daemons ask each other (docs/protocol.md)."""
