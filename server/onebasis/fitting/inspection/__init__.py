"""What is in a file of ours, and whether a server would take it."""
