"""One module for each revision, in a single line from the first to the head."""
