"""One User-Mode Linux kernel as a process."""
