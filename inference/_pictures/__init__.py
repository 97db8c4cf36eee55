"""The pictures of a run, one a file: `subject(run)` says what it draws of the run or None, `draw(run, subject)` draws it."""
