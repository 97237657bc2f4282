"""Kernel, ramdisk and root: what is stale, why, and how it is made."""
