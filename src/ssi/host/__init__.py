"""The host: builds images, runs virtual nodes, owns clusters."""
