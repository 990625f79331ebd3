"""What attention of a generated token starts from: its query in every variant, and its row in a slot."""
