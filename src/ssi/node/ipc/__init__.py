"""System V IPC: one space of keys and identifiers over all nodes."""
