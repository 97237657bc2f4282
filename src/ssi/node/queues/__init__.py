"""POSIX message queues: one space of names over all nodes."""
