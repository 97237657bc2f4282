"""What answers the programs of the userland: see ssi.node.local."""
