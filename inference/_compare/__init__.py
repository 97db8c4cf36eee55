"""Methods side by side: how far each one's evidence and posterior are from a reference, and which to take."""
