"""The one process space: calls that name a process of another node."""
