"""The clusterwide /proc: a FUSE file system over the kernel's own, in the userland."""
