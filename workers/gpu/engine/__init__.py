"""Steps: sessions and their slots, the forward pass, and what comes out."""
