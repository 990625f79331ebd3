"""What attention of generated tokens starts from: queries in every variant, and new rows in their slots."""
