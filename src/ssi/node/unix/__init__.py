"""Unix sockets that are bound on the shared root: connections from other nodes."""
