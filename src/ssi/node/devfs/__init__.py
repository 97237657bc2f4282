"""Devices of all nodes, as files of each."""
