"""
Old Faithful by one and by two Gaussians
========================================

Old Faithful, a geyser, erupts for two to five minutes, and the wait for the next eruption is longer after a longer one.
One Gaussian describes the means, the spreads and the correlation, and is densest where there are few eruptions: between two
groups. A mixture of two Gaussians has a latent variable for each eruption, the group that it belongs to.
Nobody has observed it, and EM needs nobody to: it sums over both groups. The log-likelihood says what is gained, and since the
posterior of a mixture is exact, so is that number.
"""

import numpy as np
from scipy.stats import multivariate_normal

from latent_zoo import run

one = run("gmm", data="faithful", method="em", components=1)
two = run("gmm", data="faithful", method="em", components=2)
for fit in (one, two):
    print(fit.claimed)

# %%
# The first has a closed form: the density at the sample's mean and covariance.
x = one.x
assert np.isclose(one.claimed.value, multivariate_normal(x.mean(0), np.cov(x.T, ddof=0)).logpdf(x).sum())

# %%
# One Gaussian: a line through the middle of two groups.
one.plot("clusters")

# %%
# Two Gaussians: colour is the posterior probability of the group.
two.plot("clusters")

# %%
# Is the second Gaussian worth its six parameters? BIC counts them: k log n / 2 nats.
gain = two.claimed.value - one.claimed.value
asked = 6 * 0.5 * np.log(len(x))
print(f"{gain:.1f} nats gained, for {asked:.1f} nats that BIC asks")
assert gain > asked

# %%
# The command that makes it: ``zoo run gmm --data faithful --set components=2 --out runs/two`` and ``zoo plot runs/two``.
