"""The list of sabotages: each is one mistake, as it might have been made, and the public check that has to notice it."""

from __future__ import annotations

from sabotage import Sabotage

ENGINE, CHAINS = "inference/_exact/", "inference/_mcmc/chains.py"
SEEDS = """seeds = np.random.SeedSequence(seed).spawn(len(starts))
        nowhere = Point(np.zeros(0), 0.0, np.zeros(0))
        self.chains = [_Chain(np.random.default_rng(s), nowhere) for s in seeds]
        self._put(starts)"""
ONE_SEED = SEEDS.replace(".spawn(len(starts))", ".spawn(1) * len(starts)").replace("put(starts)", "put(0 * starts)")
TIMES = 'outside = outside + (value * node["scale"]).sum()'

# what, file, old, new, check
SABOTAGES = [
    Sabotage(*one)
    for one in [
        (
            "off by one in enumeration",
            "zoo/_program/latents.py",
            "[range(len(supports[name])) for",
            "[[0, *range(len(supports[name]) - 1)] for",
            "run mixture by em",
        ),
        (
            "labels permuted in one field",
            ENGINE + "enumeration.py",
            "out[rows] = _posterior(self.log_joint(rows, views, parameters, globals))[0]",
            "out[rows] = _posterior(self.log_joint(rows, views, parameters, globals))[0].flip(1)",
            "run mixture by em",
        ),
        (
            "labels drawn without their probabilities",
            ENGINE + "enumeration.py",
            "torch.multinomial(responsibilities, draws",
            "torch.multinomial(torch.ones_like(responsibilities), draws",
            "run mixture by em",
        ),
        (
            "wrong sign in a normaliser",
            "inference/_families/normal.py",
            "precision + LOG_2PI)",
            "precision - LOG_2PI)",
            "run mixture by em",
        ),
        (
            "missing entries counted as zero",
            "inference/_families/_elementwise.py",
            "else [seen, ",
            "else [torch.ones_like(seen), ",
            "run mixture with holes by em",
        ),
        (
            "2π to the wrong power",
            ENGINE + "linear.py",
            "log_p = 0.5 * self.L * LOG_2PI - (log_det",
            "log_p = self.L * LOG_2PI - (log_det",
            "run ppca with holes by em",
        ),
        (
            "wrong sign of a log-determinant",
            ENGINE + "quadratic.py",
            "log_p = at_mean + 0.5 * self.L * LOG_2PI - log_det",
            "log_p = at_mean + 0.5 * self.L * LOG_2PI + log_det",
            "run factors by em",
        ),
        (
            "transposed Cholesky factor",
            ENGINE + "moments.py",
            "noise @ tril[0, 0].mT",
            "noise @ tril[0, 0]",
            "run factors by em",
        ),
        (
            "draws with half their sd",
            ENGINE + "moments.py",
            "noise @ tril[0, 0].mT",
            "0.5 * noise @ tril[0, 0].mT",
            "run factors by em",
        ),
        (
            "variances in place of sds",
            ENGINE + "normal_engine.py",
            ".clamp(min=0).sqrt()",
            ".clamp(min=0)",
            "run factors by em",
        ),
        (
            "natural parameter off by one",
            "zoo/_reading/conjugate.py",
            "dist.Gamma(c[..., 0] + 1",
            "dist.Gamma(c[..., 0] + 2",
            "run counts by em",
        ),
        (
            "a factor of a chain dropped",
            ENGINE + "_sums/chain.py",
            "+ len(own) * scale +",
            "+ (len(own) - 1) * scale +",
            "run chain by em",
        ),
        (
            "stale parameters in the evidence",
            "inference/em.py",
            'claimed = Evidence.from_per_datum(per_datum, "exact", given=given, weights=task.times).plus(',
            'claimed = Evidence(climb.objective[-2], 0.0, "exact").plus(',
            "run gmm by em, 1 iteration",
        ),
        (
            "evidence of rows averaged",
            "inference/_method/fit.py",
            "float(np.sum(weighed(per_datum",
            "float(np.mean(weighed(per_datum",
            "check gmm-faithful by em",
        ),
        (
            "wrong sign of the entropy in weights",
            "inference/_sampling/weights.py",
            "return self.log_p - self.log_proposal",
            "return self.log_p + self.log_proposal",
            "run one by importance",
        ),
        (
            "resampling without weights",
            "inference/importance.py",
            "torch.multinomial(share.mT, task.draws",
            "torch.multinomial(torch.ones_like(share.mT), task.draws",
            "compare one by importance",
        ),
        (
            "wrong sign of the divergence in svi",
            "inference/_training/elbo.py",
            "total = total - self._shaped(per_datum(node, divergence",
            "total = total + self._shaped(per_datum(node, divergence",
            "compare one by svi",
        ),
        (
            "log prior of globals N times",
            "inference/_training/elbo.py",
            "share = self._globals(q, p) / self.task.count if",
            "share = self._globals(q, p) if",
            "check normal_normal by svi",
        ),
        (
            "log prior of globals twice",
            "zoo/_program/trace.py",
            "total = total + _whole(node if values",
            "total = total + 2 * _whole(node if values",
            "check normal_normal by laplace",
        ),
        (
            "log prior of globals twice in chains",
            "inference/_mcmc/posterior.py",
            TIMES,
            TIMES.replace("(value", "2 * (value"),
            "check beta_binomial by nuts",
        ),
        (
            "no Jacobian in laplace",
            "inference/_laplace/search.py",
            "return found + self.layout.log_abs_det(flat[:, self.places])",
            "return found",
            "compare beta_binomial by laplace",
        ),
        (
            "no Jacobian in chains",
            "inference/_mcmc/posterior.py",
            "(0.0 if log_det is None else log_det.sum())",
            "0.0",
            "check beta_binomial by nuts",
        ),
        (
            "no Jacobian in importance",
            "inference/_mcmc/posterior.py",
            "(0.0 if log_det is None else log_det.sum())",
            "0.0",
            "check beta_binomial by importance",
        ),
        (
            "no Jacobian for latents of rows",
            "inference/_density/local.py",
            'log_det = transform.log_abs_det_jacobian(free, msg["value"])',
            'log_det = 0 * transform.log_abs_det_jacobian(free, msg["value"])',
            "compare spread by laplace",
        ),
        (
            "no Jacobian in svi",
            "guides/_heads.py",
            "        q = dist.TransformedDistribution(q, [transform])\n",
            "        q = dist.Delta(transform(q()), log_density=q.log_prob(q.mean))\n",
            "check beta_binomial by svi",
        ),
        (
            "half the variance in laplace",
            "inference/_density/newton.py",
            "        tril.reshape(n, A, L, L),",
            "        (0.5**0.5 * tril).reshape(n, A, L, L),",
            "compare ability by laplace",
        ),
        ("one seed and start for all chains", CHAINS, SEEDS, ONE_SEED, "run normal_normal by nuts"),
    ]
]
