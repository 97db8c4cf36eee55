"""Commands of `zoo`, by what they are about. Like `zoo.__main__`, they import what they need when they need it."""
