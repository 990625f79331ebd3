"""Tool calls in the text of answers: a file for each format in which models write them, and one parser for JSON."""
