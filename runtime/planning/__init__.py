"""What a cluster needs, told before it starts: memory, lengths, the host, a Ray cluster to join."""
