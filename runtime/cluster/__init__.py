"""The processes of a cluster on this host: their start, their watch and their end."""
