"""FIFOs of the shared root: one pipe for all nodes."""
