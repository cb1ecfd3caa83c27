"""The HTTP side of the workflow server: what clients send and read."""
