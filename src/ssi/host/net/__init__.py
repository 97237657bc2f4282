"""The virtual network: a switch in user space, its faults, its way out."""
