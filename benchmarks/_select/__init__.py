"""Choosing among models: a program over a grid of its options, by BIC, ICL, AIC, held-out log p(x) or evidence."""
