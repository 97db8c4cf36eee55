"""What each tensor operation does to dependence: for every entry of its result, the sources it comes from and its degree.

A `Shadow` stands beside a tensor, entry by entry: `mask` (a bit for each source the entry depends on) and `degree` (of the
entry as a polynomial in the continuous local latents: 0, 1, 2, or `OTHER`). The rules here are those of whole groups of
operations: entrywise ones, sums along a dimension, products of matrices, factorisations, moves. What belongs to no group
depends on all that went in, is of no known degree, and carries the bit `UNKNOWN`.

A sum keeps the degree of its terms, and a product adds the degrees of its factors: (2 z₁ + 1) · 3 has degree 1, z₁ · z₂ degree
2, and tanh(z₁) has the degree OTHER, however small z₁ is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from zoo._reading.shadow import NO_DEGREE, NOTHING, Operation, Shadow, constant

OTHER = 3  # no polynomial of degree 2 or less, or none that could be proved
MISSING = 1 << 62  # of a mask: an entry of the data that is missing
UNKNOWN = 1 << 15  # of a mask: an operation without a rule lies on the way

LINEAR = {"neg", "positive", "clone", "alias"}
SUMS = {"add", "sub", "rsub"}
CONSTANTS = {"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full",
             "zero", "fill"}  # fmt: skip
ENTRYWISE = {"floor_divide", "_to_copy", "masked_fill", "copy", "where", "nan_to_num", "binary_cross_entropy_with_logits",
             "binary_cross_entropy", "mse_loss", "bucketize", "log_sigmoid_forward", "_prelu_kernel", "hardswish", "complex",
             "polar", "huber_loss", "smooth_l1_loss"}  # fmt: skip
ALONG = {"sum", "mean", "nansum", "amax", "amin", "max", "min", "prod", "all", "any", "argmax", "argmin", "logsumexp",
         "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm", "median", "nanmedian", "cumsum",
         "cumprod", "logcumsumexp", "_softmax", "_log_softmax", "sort", "argsort", "topk", "cummax", "cummin",
         "count_nonzero", "kthvalue", "mode", "_safe_softmax", "_fft_r2c", "_fft_c2c", "_fft_c2r"}  # fmt: skip
LINEAR_ALONG = {"sum", "mean", "cumsum"}
PRODUCTS = {"mm", "bmm", "mv", "dot", "vdot"}
ADDED_PRODUCTS = {"addmm", "addmv", "baddbmm"}
# how many of the first arguments are moved
MOVES = {"cat": 1, "stack": 1, "flip": 1, "roll": 1, "repeat": 1, "tril": 1, "triu": 1, "constant_pad_nd": 1, "diag_embed": 1,
         "index_select": 1, "gather": 1, "rot90": 1, "unfold": 1, "select_scatter": 2, "slice_scatter": 2, "block_diag": 1,
         "diagonal_copy": 1, "view_copy": 1, "expand_copy": 1, "permute_copy": 1}  # fmt: skip
MATRICES = {"linalg_cholesky_ex", "cholesky", "cholesky_inverse", "linalg_inv_ex", "linalg_lu_factor_ex", "linalg_lu",
            "_linalg_slogdet", "_linalg_det", "_linalg_eigh", "linalg_eigh", "linalg_qr", "_linalg_svd", "linalg_matrix_exp",
            "linalg_eig", "linalg_householder_product"}  # fmt: skip
SOLVES = {
    "linalg_solve_triangular": 0,
    "cholesky_solve": 1,
    "_linalg_solve_ex": 0,
    "triangular_solve": 1,
}  # where the matrix is
DISTANCES = {"_euclidean_dist", "_cdist_forward"}
SCATTERS = {"scatter", "scatter_add", "scatter_reduce"}
BY_FIRST_DIMENSION = {"convolution", "mkldnn_convolution", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d",
                      "upsample_nearest2d", "upsample_bilinear2d", "native_group_norm", "avg_pool1d", "_adaptive_avg_pool3d",
                      "pixel_shuffle", "im2col", "col2im"}  # fmt: skip


def apply(op: Operation) -> list[Shadow]:
    """The shadows of the results `outs` of an operation; `of` gives the shadow of an argument."""
    if op.name in RULE_OF:
        return RULE_OF[op.name](op)
    if op.name in CONSTANTS:
        return [constant(o) for o in op.outs]
    if op.name == "isnan":  # that an entry is missing may be known; what stands there may not
        source = op.of(op.args[0])
        return [Shadow(source.mask & ~MISSING, curved(source.degree))]
    if op.name.startswith("native_layer_norm"):
        return _normalised(op)
    return entrywise(op) if op.name in ENTRYWISE or torch.Tag.pointwise in op.func.tags else unknown(op)


def unknown(op: Operation) -> list[Shadow]:
    """Nothing is known: every entry of the results depends on every entry of the arguments."""
    bits, degree = 0, 0
    for t in op.tensors():
        more, high = op.of(t).union()
        bits, degree = bits | more, max(degree, high)
    bits |= UNKNOWN if bits else 0
    return [_full(o, bits, OTHER if degree else 0) for o in op.outs]


def _full(o: Tensor, bits: int, degree: int) -> Shadow:
    return Shadow(torch.full(o.shape, bits, dtype=torch.int64), torch.full(o.shape, degree, dtype=torch.int8))


def _or(mask: Tensor, dims: Sequence[int], keep: bool = True) -> Tensor:
    if mask.dim() == 0 or not dims:
        return mask
    whole, axes = mask.numpy(), tuple(sorted({d % mask.dim() for d in dims}))
    kept = np.bitwise_or.reduce(whole, axis=axes, keepdims=True) if keep else np.bitwise_or.reduce(whole, axis=axes)
    return torch.from_numpy(np.ascontiguousarray(kept))


def _most(degree: Tensor, dims: Sequence[int], keep: bool = True) -> Tensor:
    if degree.dim() == 0 or not dims:
        return degree
    if any(degree.shape[d] == 0 for d in dims):
        return degree.sum(tuple(dims), keepdim=keep).to(torch.int8)
    return degree.amax(tuple(sorted({d % degree.dim() for d in dims})), keepdim=keep)


def curved(degree: Tensor) -> Tensor:
    """The degree of a function that is no polynomial: still a constant where its arguments are."""
    return torch.where(degree > 0, torch.full_like(degree, OTHER), degree)


def _capped(degree: Tensor) -> Tensor:
    return torch.where(degree > 2, torch.full_like(degree, OTHER), degree)


# ------------------------------------------------------------------------------------------------ entry by entry


def entrywise(op: Operation) -> list[Shadow]:
    out = op.outs[0]
    parts = [op.of(t) for t in op.tensors()]
    if out.dim() == 0 and any(t.dim() for t in op.tensors()):
        return unknown(op)  # a loss that is summed over all of it
    if op.name == "bucketize":
        bits, high = op.of(op.args[1]).union()
        parts = [Shadow(parts[0].mask | bits, torch.full_like(parts[0].degree, OTHER) if high else parts[0].degree)]
    mask = parts[0].mask if parts else NOTHING
    for p in parts[1:]:
        mask = mask | p.mask
    if all(p.union()[1] == 0 for p in parts):  # no latent comes in, so none comes out
        return [Shadow(mask.expand(o.shape), NO_DEGREE.expand(o.shape), True) for o in op.outs]
    degree = _degree(op, [p.degree for p in parts])
    return [Shadow(mask.expand(o.shape), degree.expand(o.shape)) for o in op.outs]


def _degree(op: Operation, degrees: list[Tensor]) -> Tensor:
    """Entry by entry, for an operation that works so."""
    name, args, kwargs = op.name, op.args, op.kwargs
    zero = torch.zeros(op.outs[0].shape, dtype=torch.int8)
    first = isinstance(args[0], Tensor) if args else False
    d = degrees
    if name in LINEAR:
        return zero + d[0]
    if name == "copy":
        return zero + d[-1]
    if name == "_to_copy":
        narrow = narrower(kwargs.get("dtype"), args[0].dtype)
        return zero + (curved(d[0]) if narrow else d[0])
    if name in SUMS:
        return zero + (torch.maximum(*torch.broadcast_tensors(d[0], d[1])) if len(d) == 2 else d[0])
    if name == "mul":
        return _capped(zero + (d[0] + d[1] if len(d) == 2 else d[0]))
    if name == "div" and kwargs.get("rounding_mode") is None and first:
        by = d[1] if len(d) == 2 else zero
        return torch.where(zero + by > 0, torch.full_like(zero, OTHER), zero + d[0])
    power = (
        args[1] if name == "pow" and len(d) == 1 and first else None
    )  # a number: a tensor may be another one elsewhere
    if name == "square" or power == 2:
        return _capped(zero + 2 * d[0])
    if power == 1:
        return zero + d[0]
    if name == "addcmul":
        return torch.maximum(zero + d[0], _capped(zero + d[1] + d[2]))
    if name == "addcdiv":
        return torch.maximum(zero + d[0], torch.where(zero + d[2] > 0, torch.full_like(zero, OTHER), zero + d[1]))
    if name == "where" and len(d) == 3:
        return torch.where(zero + d[0] > 0, torch.full_like(zero, OTHER), torch.maximum(zero + d[1], zero + d[2]))
    if name == "masked_fill":
        put = zero + d[2] if len(d) == 3 else zero
        return torch.where(zero + d[1] > 0, torch.full_like(zero, OTHER), torch.maximum(zero + d[0], put))
    if name == "where" and len(d) == 2:  # one of the branches is a number
        condition = d[0] if isinstance(args[0], Tensor) else zero
        return torch.where(zero + condition > 0, torch.full_like(zero, OTHER), zero + d[1])
    if name == "lerp" and len(d) == 2:
        return torch.maximum(zero + d[0], zero + d[1])
    highest = zero
    for each in d:
        highest = torch.maximum(highest, zero + each)
    return curved(highest)


def narrower(dtype: torch.dtype | None, before: torch.dtype) -> bool:
    """Whether a cast may lose digits."""
    if dtype is None or dtype == before:
        return False
    return not (dtype.is_floating_point and before.is_floating_point and dtype.itemsize >= before.itemsize)


# ------------------------------------------------------------------------------------------------ along dimensions


def along(shadow: Shadow, dims: Sequence[int]) -> Shadow:
    """The sum along those dimensions."""
    if not dims:
        return shadow
    mask = _or(shadow.mask, dims, keep=False)
    if shadow.flat:
        return Shadow(mask, NO_DEGREE.expand(mask.shape), True)
    return Shadow(mask, _most(shadow.degree, dims, keep=False))


def _along(op: Operation) -> list[Shadow]:
    if len(op.tensors()) == 2 and op.name in ("max", "min"):  # of two tensors, entry by entry
        return entrywise(op)
    source = op.of(op.args[0])
    dim = op.argument("dim")
    dims = list(range(source.mask.dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    mask, flat = _or(source.mask, dims), source.flat
    degree = NO_DEGREE.expand(mask.shape) if flat else _most(source.degree, dims)
    if op.name not in LINEAR_ALONG and not flat:
        degree = curved(degree)
    shadows = []
    for o in op.outs:
        if o.dim() == mask.dim():
            shadows.append(Shadow(mask.expand(o.shape), degree.expand(o.shape), flat))
        else:
            kept = [s for d, s in enumerate(mask.shape) if d not in {i % max(1, mask.dim()) for i in dims}]
            shadows.append(Shadow(mask.reshape(kept).expand(o.shape), degree.reshape(kept).expand(o.shape), flat))
    return shadows


def _normalised(op: Operation) -> list[Shadow]:
    """Layer normalisation: each vector over its last dimensions by itself."""
    source, dims = op.of(op.args[0]), list(range(-len(op.args[1]), 0))
    mask, degree = _or(source.mask, dims), curved(_most(source.degree, dims))
    for t in op.tensors(2):
        more, high = op.of(t).union()
        mask, degree = mask | more, torch.full_like(degree, OTHER) if high else degree
    return [Shadow(mask.expand(o.shape), degree.expand(o.shape)) for o in op.outs]


def _by_first(op: Operation) -> list[Shadow]:
    """Convolutions and pooling: each entry of the first dimension by itself."""
    source = op.of(op.args[0])
    dims = list(range(1, source.mask.dim()))
    mask, degree = _or(source.mask, dims, keep=False), _most(source.degree, dims, keep=False)
    others = [op.of(t).union() for t in op.tensors(1)]
    for more, high in others:
        mask = mask | more
        degree = torch.full_like(degree, OTHER) if high else degree
    if "convolution" not in op.name and not op.name.startswith(("avg", "_adaptive_avg")):
        degree = curved(degree)
    shadows = []
    for o in op.outs:
        if o.dim() == 0 or o.shape[0] != mask.shape[0]:
            return unknown(op)
        shape = (-1, *(1,) * (o.dim() - 1))
        shadows.append(Shadow(mask.reshape(shape).expand(o.shape), degree.reshape(shape).expand(o.shape)))
    return shadows


# --------------------------------------------------------------------------------------------------------- matrices


def _product(a: Shadow, b: Shadow) -> Shadow:
    """Entry (i, j) of a product depends on row i of a [..., I, K] and column j of b [..., K, J]; of vectors likewise."""
    rows, columns = (-1,), (-2,) if b.mask.dim() > 1 else (-1,)
    left = Shadow(_or(a.mask, rows, keep=False), _most(a.degree, rows, keep=False))
    right = Shadow(_or(b.mask, columns, keep=False), _most(b.degree, columns, keep=False))
    if a.mask.dim() > 1 and b.mask.dim() > 1:
        left = Shadow(left.mask.unsqueeze(-1), left.degree.unsqueeze(-1))
        right = Shadow(right.mask.unsqueeze(-2), right.degree.unsqueeze(-2))
    return Shadow(left.mask | right.mask, _capped(left.degree + right.degree))


def _products(op: Operation) -> list[Shadow]:
    found = _product(op.of(op.args[0]), op.of(op.args[1]))
    return [Shadow(found.mask.expand(op.outs[0].shape), found.degree.expand(op.outs[0].shape))]


def _added_products(op: Operation) -> list[Shadow]:
    found, start = _product(op.of(op.args[1]), op.of(op.args[2])), op.of(op.args[0])
    mask = (found.mask | start.mask).expand(op.outs[0].shape)
    high = torch.maximum(*torch.broadcast_tensors(found.degree, start.degree)).expand(op.outs[0].shape)
    return [Shadow(mask, high)]


def _matrices(op: Operation) -> list[Shadow]:
    """Factors, inverses, determinants: all of one matrix of a batch together, and every matrix by itself."""
    if len(op.tensors()) > 1:  # reflections, with their lengths
        return unknown(op)
    source = op.of(op.args[0])
    mask, degree = _or(source.mask, (-2, -1), keep=False), curved(_most(source.degree, (-2, -1), keep=False))
    return [_batched(mask, degree, o) for o in op.outs]


def _batched(mask: Tensor, degree: Tensor, out: Tensor) -> Shadow:
    shape = (*mask.shape, *(1,) * (out.dim() - mask.dim()))
    return Shadow(mask.reshape(shape).expand(out.shape), degree.reshape(shape).expand(out.shape))


def _solves(op: Operation) -> list[Shadow]:
    """A⁻¹ B: each column of B by itself, with all of A; linear in B."""
    which = SOLVES[op.name]
    matrix, right = op.of(op.args[which]), op.of(op.args[1 - which])
    vector = op.name == "_linalg_solve_ex" and right.mask.shape == matrix.mask.shape[:-1]
    columns = [-1] if vector or op.argument("left", True) is False else [-2]
    a_mask, a_degree = _or(matrix.mask, (-2, -1)), _most(matrix.degree, (-2, -1))
    if vector:
        a_mask, a_degree = a_mask.squeeze(-1), a_degree.squeeze(-1)
    mask = _or(right.mask, columns) | a_mask
    degree = torch.where(a_degree > 0, torch.full_like(a_degree, OTHER), _most(right.degree, columns))
    shadows = [Shadow(mask.expand(op.outs[0].shape), degree.expand(op.outs[0].shape))]
    for o in op.outs[1:]:  # factors and flags of the matrix
        shadows.append(_full(o, *matrix.union()))
    return shadows


def _distances(op: Operation) -> list[Shadow]:
    """Of each row of one matrix from each row of the other."""
    other = op.of(op.args[1])
    found = _product(op.of(op.args[0]), Shadow(other.mask.mT, other.degree.mT))
    return [Shadow(found.mask.expand(op.outs[0].shape), curved(found.degree).expand(op.outs[0].shape))]


# ------------------------------------------------------------------------------------------------------------ moves


def _scatters(op: Operation) -> list[Shadow]:
    """Each line along a dimension by itself: what it held, what is written, and where to."""
    into, dim, index = op.of(op.args[0]), op.args[1], op.of(op.args[2])
    source = op.of(op.args[3]) if len(op.args) > 3 and isinstance(op.args[3], Tensor) else None
    mask, degree = into.mask | _or(index.mask, [dim]), into.degree.clone()
    if source is not None:
        mask = mask | _or(source.mask, [dim])
        degree = torch.maximum(*torch.broadcast_tensors(degree, _most(source.degree, [dim])))
    if op.name == "scatter_reduce" or op.argument("reduce") is not None:
        degree = curved(degree)
    varies = (_most(index.degree, [dim]) > 0).expand(degree.shape)
    return [Shadow(mask.expand(op.outs[0].shape), torch.where(varies, torch.full_like(degree, OTHER), degree))]


def _moves(op: Operation) -> list[Shadow]:
    """Entries are put elsewhere: so are their shadows. Where an index decides, what it depends on goes along.

    An index that depends on anything may be another one in other rows or at other values: all that it can reach counts.
    """
    count = MOVES[op.name]
    rest = list(op.args[count:])
    if op.name == "constant_pad_nd":
        rest = rest[:1]  # what is padded with depends on nothing

    indices = op.tensors(count)
    reached = [op.args[1]] if any(op.of(i).union()[0] for i in indices) else []

    def moved(pick: Callable[[Shadow], Tensor]) -> Tensor:
        some = tree_map_only(Tensor, lambda t: pick(_reached(op.of(t), reached)), list(op.args[:count]))
        return op.func(*some, *rest, **op.kwargs)

    mask, degree = moved(lambda s: s.mask), moved(lambda s: s.degree)
    if indices:
        index = op.of(indices[0])
        if op.name == "index_select":
            shape = [1] * mask.dim()
            shape[op.args[1]] = -1
            index = Shadow(index.mask.reshape(shape), index.degree.reshape(shape))
        mask, degree = mask | index.mask, torch.where(index.degree > 0, torch.full_like(degree, OTHER), degree)
    return [Shadow(mask, degree)]


def _reached(shadow: Shadow, dims: Sequence[int]) -> Shadow:
    """As if each entry was all of those that an index along these dimensions can reach."""
    mask, degree = _or(shadow.mask, dims), shadow.degree if shadow.flat else _most(shadow.degree, dims)
    return Shadow(mask.expand(shadow.mask.shape), degree.expand(shadow.mask.shape), shadow.flat)


def _index(op: Operation) -> list[Shadow]:
    """x[i, j, …]: the entry's own sources, and those of its indices; all that these can reach, where they may change."""
    source, indices = op.of(op.args[0]), list(op.args[1])
    used = [i for i, index in enumerate(indices) if index is not None]
    moving = [i for i in used if op.of(indices[i]).union()[0]]
    if any(indices[i].dtype in (torch.bool, torch.uint8) for i in moving):
        return unknown(op)
    if moving and not any(indices[i].dtype in (torch.bool, torch.uint8) for i in used):
        source = _reached(source, moving)
    elif moving:  # a fixed pattern beside: its dimensions are not counted like the others
        return unknown(op)
    each = [op.of(indices[i]) for i in used]
    flat = all(s.union()[1] == 0 for s in (source, *each))
    mask = op.func(source.mask, indices)
    degree = NO_DEGREE.expand(mask.shape) if flat else op.func(source.degree, indices)
    if any(indices[i].dtype in (torch.bool, torch.uint8) for i in used):  # a fixed pattern
        return [Shadow(mask, degree, flat)]
    shape = np.broadcast_shapes(*(indices[i].shape for i in used))
    together = used == list(range(used[0], used[-1] + 1))
    after = source.mask.dim() - used[-1] - 1 if together else mask.dim() - len(shape)
    place, highest = (*shape, *(1,) * after), torch.zeros(shape, dtype=torch.int8)
    for s in each:
        mask = mask | s.mask.expand(shape).reshape(place)
        highest = highest if flat else torch.maximum(highest, s.degree.expand(shape))
    if flat:
        return [Shadow(mask, degree, flat)]
    varies = (highest.reshape(place) > 0).expand(degree.shape)
    return [Shadow(mask, torch.where(varies, torch.full_like(degree, OTHER), degree))]


def _masked_put(op: Operation) -> list[Shadow]:
    """x[mask] = number, with a mask entry by entry: each entry depends on itself and its mask."""
    source, indices = op.of(op.args[0]), op.args[1]
    if len(indices) != 1 or indices[0].dtype != torch.bool or indices[0].shape != source.mask.shape:
        return unknown(op)
    if op.args[2].numel() != 1 or op.argument("accumulate"):
        return unknown(op)
    chosen, (bits, high) = op.of(indices[0]), op.of(op.args[2]).union()
    varies = torch.where((chosen.degree > 0) | (high > 0), torch.full_like(source.degree, OTHER), source.degree)
    return [Shadow(source.mask | chosen.mask | bits, curved(varies))]


def _embedding(op: Operation) -> list[Shadow]:
    weight, index = op.of(op.args[0]), op.of(op.args[1])
    bits, high = weight.union()
    mask = (index.mask | bits).unsqueeze(-1).expand(op.outs[0].shape)
    degree = curved(torch.full_like(index.degree, high) + index.degree).unsqueeze(-1).expand(op.outs[0].shape)
    return [Shadow(mask, degree)]


Rule = Callable[[Operation], list[Shadow]]
RULES: list[tuple[Collection[str], Rule]] = [
    (ALONG, _along),
    (PRODUCTS, _products),
    (ADDED_PRODUCTS, _added_products),
    (MATRICES, _matrices),
    (SOLVES, _solves),
    (DISTANCES, _distances),
    (SCATTERS, _scatters),
    (MOVES, _moves),
    ({"index"}, _index),
    ({"index_put"}, _masked_put),
    ({"embedding"}, _embedding),
    (BY_FIRST_DIMENSION, _by_first),
]
RULE_OF = {name: rule for names, rule in RULES for name in names}
