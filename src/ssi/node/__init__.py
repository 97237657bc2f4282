"""What runs in a node, from the ramdisk."""
