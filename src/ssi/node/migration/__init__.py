"""Moving processes: what CRIU dumps on one node is restored on another."""
