"""What depends on what in a program: read off its tensor operations, and also measured."""
