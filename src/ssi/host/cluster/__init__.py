"""A cluster on this host: its supervisor and the requests to it."""
