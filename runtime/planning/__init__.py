"""What a cluster needs, found before it starts: memory, lengths, the host, a Ray cluster to join."""
