"""The chat page: its files, and routes that it needs beside those of the APIs."""
