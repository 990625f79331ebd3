"""How far from full attention is what a model says when its decode steps attend selected keys only."""
