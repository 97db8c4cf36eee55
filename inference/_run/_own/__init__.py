"""The pieces of the second look at what is called exact: a batch run plainly, the posterior it implies, and what must agree."""
