"""Sockets whose other ends are on other nodes."""
