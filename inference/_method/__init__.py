"""What a method is given (a Task) and what it gives (a Fit). Read these to write one."""
