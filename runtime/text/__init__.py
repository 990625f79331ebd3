"""The text process: tokenising and chat templates outside the server, under limits of time and memory."""
