"""What an answer is worth: every metric takes the model's text and the right answers, and gives 0 to 1."""
