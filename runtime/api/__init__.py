"""The network side of the server: validation of what clients ask, uploads, and a package for each protocol."""
