"""Who asks, what they may do and how much of it, and a record of what they changed. No torch, no HTTP."""
