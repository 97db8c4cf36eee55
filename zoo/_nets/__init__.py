"""Networks that models are made of: decoders, distributions of pixels one after the other, learned priors."""
