"""A single system image cluster for Linux, in user space."""
