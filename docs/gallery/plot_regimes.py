"""
Quiet and busy years of the earth
=================================

The number of major earthquakes in each year from 1900 to 2006 (Zucchini & MacDonald 2009) varies more than a Poisson
variable of one rate would. A hidden Markov model says that each year is in one of a few states, that a state has a
rate of its own, and that a state tends to last. Its sum over all 3¹⁰⁷ paths of states is exact, since the program is
a chain: the tool reads that from the program, and no formula of the forward algorithm stands in the model. The
posterior of each year's state looks at all years, before and after, and shows long spells.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import gammaln

from latent_zoo import run

SMALL = "ZOO_GALLERY_SMALL" in os.environ  # two states in place of three, for the tests
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})
K = 2 if SMALL else 3

fit = run("hidden_markov", "earthquakes", "em", states=K, emission="poisson", max_iter=5 if SMALL else 1000)
print(fit)

# %%
# log p(x) by the forward algorithm, written out: the same number. A single Poisson rate, for comparison, fits much
# worse.

counts = fit.x.ravel()
order = np.argsort(fit.parameters["rates"].ravel())
rates = fit.parameters["rates"].ravel()[order]
moves, start = fit.parameters["transitions"][np.ix_(order, order)], fit.parameters["start"][order]
log_p, now = 0.0, start
for count in counts:
    joint = now * np.exp(count * np.log(rates) - rates - gammaln(count + 1))
    log_p, now = log_p + np.log(joint.sum()), joint / joint.sum() @ moves
one_rate = (counts * np.log(counts.mean()) - counts.mean() - gammaln(counts + 1)).sum()
assert np.isclose(log_p, fit.claimed.value)
print(f"one rate: {one_rate:.1f} nats; {K} states: {fit.claimed}")

# %%

states = np.array([fit.fit.probabilities[f"z{t}"][0] for t in range(len(counts))])[:, order]  # [years, K]
assert np.allclose(states.sum(1), 1)
years = np.arange(1900, 1900 + len(counts))
colors = ("#56B4E9", "#E69F00", "#D55E00")[-K:]
figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, height_ratios=(1.6, 1))
above.plot(years, counts, color="0.6", lw=1)
above.scatter(years, counts, s=16, color=np.array(colors)[states.argmax(1)], zorder=3)
above.plot(years, states @ rates, color="k", lw=1.6, label="posterior mean of the rate")
above.set(ylabel="major earthquakes a year", ylim=(0, None))
above.legend(frameon=False, loc="upper right")
below.stackplot(years, states.T, colors=colors, labels=[f"{r:.0f} a year" for r in rates])
below.set(xlim=(years[0], years[-1]), ylim=(0, 1), xlabel="year", ylabel="p(state | all years)")
below.legend(title="rate of the state", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
figure.suptitle("Quiet and busy spells: the hidden states of a century of earthquakes", x=0.01, ha="left")

# %%
# The command: ``zoo run hidden_markov --data earthquakes --set states=3 --set emission=poisson --out runs/earth``,
# then ``zoo plot runs/earth``, which draws this.

fit.plot("series")
