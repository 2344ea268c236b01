"""What to say to a model, and what it said: no SQL, no HTTP."""
