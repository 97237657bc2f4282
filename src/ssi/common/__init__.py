"""What every part speaks: errors, node numbers, the wire."""
