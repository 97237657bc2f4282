"""What the cluster has one of: its init, which runs inittab.ssi's entries, events and shutdowns."""
