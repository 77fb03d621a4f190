"""The head of the network in one GPU kernel forward and three backward (Triton).

Of each epoch: its stem channels and the token of the pyramid that it may know, normalised together,
one product to C channels, what the refit in force adds, GELU (by tanh), one product to a logit.
The refit in force is the same for all rows of a batch: epochs start[j] <= i < start[j + 1] hear the
opinion j, and epochs before start[0] none.
"""

import torch
import triton
import triton.language as tl

GROUP = 4  # epochs that share a token
LINE = tl.constexpr(0.7978845608028654)
CUBE = tl.constexpr(0.044715)


@triton.jit
def _tanh(x):
    """tanh by one exponential that cannot overflow."""
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def _inputs(X, T, i, a, c, G, Z, eps, L, N, S: tl.constexpr, C: tl.constexpr):
    """Both parts of the input, normalised (hat) and with gain and shift (n)."""
    m = (i >= 0) & (i < L)
    x = tl.load(X + i[:, None] * S + a[None, :], mask=m[:, None], other=0.0).to(tl.float32)
    t = (i + 1) // 4 - 1
    known = m & (t >= 0) & (t < N)
    y = tl.load(T + t[:, None] * C + c[None, :], mask=known[:, None], other=0.0).to(tl.float32)
    mean = (tl.sum(x, 1) + tl.sum(y, 1)) / (S + C)
    dx = x - mean[:, None]
    dy = y - mean[:, None]
    r = 1.0 / tl.sqrt((tl.sum(dx * dx, 1) + tl.sum(dy * dy, 1)) / (S + C) + eps)
    hx = tl.where(m[:, None], dx * r[:, None], 0.0)
    hy = tl.where(m[:, None], dy * r[:, None], 0.0)
    nx = hx * tl.load(G + a)[None, :] + tl.load(Z + a)[None, :]
    ny = hy * tl.load(G + S + c)[None, :] + tl.load(Z + S + c)[None, :]
    nx = tl.where(m[:, None], nx, 0.0)
    ny = tl.where(m[:, None], ny, 0.0)
    return m, hx, hy, nx, ny, r


@triton.jit
def head_forward(X, T, SAID, FORCE, G, Z, W, B, V, VB, OUT, L, N, J, eps,
                 S: tl.constexpr, C: tl.constexpr, BL: tl.constexpr):  # fmt: skip
    """Logits of BL epochs of a row; program (tile, row)."""
    row = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BL + tl.arange(0, BL)
    a = tl.arange(0, S)
    c = tl.arange(0, C)
    kind = X.dtype.element_ty
    m, hx, hy, nx, ny, r = _inputs(X + row * L * S, T + row * N * C, i, a, c, G, Z, eps, L, N, S, C)
    wx = tl.load(W + c[None, :] * (S + C) + a[:, None])  # (in, out)
    wy = tl.load(W + c[None, :] * (S + C) + S + c[:, None])
    wide = tl.dot(nx.to(kind), wx, allow_tf32=False)
    wide = tl.dot(ny.to(kind), wy, wide, allow_tf32=False) + tl.load(B + c)[None, :]
    j = tl.load(FORCE + i, mask=m, other=0) - 1
    heard = (m & (j >= 0))[:, None]
    wide += tl.load(SAID + row * J * C + j[:, None] * C + c[None, :], mask=heard, other=0.0).to(
        tl.float32
    )
    gate = _tanh(LINE * (wide + CUBE * wide * wide * wide))
    bent = 0.5 * wide * (1.0 + gate)
    logit = tl.sum(bent * tl.load(V + c)[None, :], 1) + tl.load(VB)
    tl.store(OUT + row * L + i, logit, mask=m)


@triton.jit
def head_backward_x(X, T, SAID, FORCE, G, Z, W, B, V, DOUT, DX, DT, DWIDE, PART, L, N, J, eps,
                    S: tl.constexpr, C: tl.constexpr, BL: tl.constexpr):  # fmt: skip
    """Gradients in x and tokens; that in front of GELU is kept (bf16) for the kernels below."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BL
    i = first - 1 + tl.arange(0, BL)  # groups of epochs that share a token stay together
    a = tl.arange(0, S)
    c = tl.arange(0, C)
    kind = X.dtype.element_ty
    m, hx, hy, nx, ny, r = _inputs(X + row * L * S, T + row * N * C, i, a, c, G, Z, eps, L, N, S, C)
    wx = tl.load(W + c[None, :] * (S + C) + a[:, None])  # (in, out)
    wy = tl.load(W + c[None, :] * (S + C) + S + c[:, None])
    wide = tl.dot(nx.to(kind), wx, allow_tf32=False)
    wide = tl.dot(ny.to(kind), wy, wide, allow_tf32=False) + tl.load(B + c)[None, :]
    j = tl.load(FORCE + i, mask=m, other=0) - 1
    heard = (m & (j >= 0))[:, None]
    wide += tl.load(SAID + row * J * C + j[:, None] * C + c[None, :], mask=heard, other=0.0).to(
        tl.float32
    )
    gate = _tanh(LINE * (wide + CUBE * wide * wide * wide))
    d = tl.load(DOUT + row * L + i, mask=m, other=0.0)
    own = PART + (row * tl.num_programs(0) + tl.program_id(0)) * (2 * (S + C) + 2 * C + 2)
    tl.store(own + 2 * (S + C) + C + c, tl.sum(d[:, None] * (0.5 * wide * (1.0 + gate)), 0))
    tl.store(own + 2 * (S + C) + 2 * C, tl.sum(d, 0))
    slope = 0.5 * (1.0 + gate)
    slope += 0.5 * wide * (1.0 - gate * gate) * LINE * (1.0 + 3.0 * CUBE * wide * wide)
    dwide = d[:, None] * tl.load(V + c)[None, :] * slope
    tl.store(own + 2 * (S + C) + c, tl.sum(dwide, 0))
    d16 = dwide.to(kind)
    tl.store(DWIDE + (row * L + i[:, None]) * C + c[None, :], d16, mask=m[:, None])
    ex = tl.dot(d16, tl.trans(wx), allow_tf32=False)
    ey = tl.dot(d16, tl.trans(wy), allow_tf32=False)
    tl.store(own + a, tl.sum(ex * hx, 0))
    tl.store(own + S + c, tl.sum(ey * hy, 0))
    tl.store(own + S + C + a, tl.sum(ex, 0))
    tl.store(own + 2 * S + C + c, tl.sum(ey, 0))
    ex *= tl.load(G + a)[None, :]
    ey *= tl.load(G + S + c)[None, :]
    mean = (tl.sum(ex, 1) + tl.sum(ey, 1)) / (S + C)
    along = (tl.sum(ex * hx, 1) + tl.sum(ey * hy, 1)) / (S + C)
    ex = (ex - mean[:, None] - hx * along[:, None]) * r[:, None]
    ey = (ey - mean[:, None] - hy * along[:, None]) * r[:, None]
    tl.store(DX + row * L * S + i[:, None] * S + a[None, :], ex.to(kind), mask=m[:, None])
    ey = tl.where(m[:, None], ey, 0.0)
    groups = tl.sum(tl.reshape(ey, [BL // 4, 4, C]), 1)
    t = first // 4 - 1 + tl.arange(0, BL // 4)
    tl.store(
        DT + row * N * C + t[:, None] * C + c[None, :], groups.to(kind),
        mask=((t >= 0) & (t < N))[:, None],
    )  # fmt: skip


@triton.jit
def head_backward_w(X, T, G, Z, DWIDE, PART, L, N, rows, tiles, eps,
                    S: tl.constexpr, C: tl.constexpr, BL: tl.constexpr):  # fmt: skip
    """Gradient in the weights of the first product; persistent programs."""
    a = tl.arange(0, S)
    c = tl.arange(0, C)
    kind = X.dtype.element_ty
    ax = tl.zeros([C, S], tl.float32)
    ay = tl.zeros([C, C], tl.float32)
    for tile in range(tl.program_id(0), rows * tiles, tl.num_programs(0)):
        row = (tile // tiles).to(tl.int64)
        i = (tile % tiles) * BL + tl.arange(0, BL)
        m, hx, hy, nx, ny, r = _inputs(
            X + row * L * S, T + row * N * C, i, a, c, G, Z, eps, L, N, S, C
        )
        d = tl.load(DWIDE + (row * L + i[:, None]) * C + c[None, :], mask=m[:, None], other=0.0)
        turned = tl.trans(d)
        ax = tl.dot(turned, nx.to(kind), ax, allow_tf32=False)
        ay = tl.dot(turned, ny.to(kind), ay, allow_tf32=False)
    own = PART + tl.program_id(0).to(tl.int64) * (C * (S + C))
    tl.store(own + c[:, None] * (S + C) + a[None, :], ax)
    tl.store(own + c[:, None] * (S + C) + S + c[None, :], ay)


@triton.jit
def opinions_backward(DWIDE, START, DSAID, L, J, C: tl.constexpr, BL: tl.constexpr):
    """Sum of what the epochs hand back to each opinion: a program for each (row, refit)."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1)
    c = tl.arange(0, C)
    total = tl.zeros([C], tl.float32)
    first, stop = tl.load(START + j), tl.load(START + j + 1)
    for f in range(first, stop, BL):
        i = f + tl.arange(0, BL)
        d = tl.load(
            DWIDE + (row * L + i[:, None]) * C + c[None, :], mask=(i < stop)[:, None], other=0.0
        )
        total += tl.sum(d.to(tl.float32), 0)
    tl.store(DSAID + (row * J + j) * C + c, total.to(DSAID.dtype.element_ty))


class Head(torch.autograd.Function):
    """Logits (B, L) float32 of x (B, L, S), tokens (B, N, C) and opinions (B, J, C)."""

    BL = 64
    PROGRAMS, WARPS = 528, 4

    @staticmethod
    def forward(ctx, x, tokens, said, force, start, gain, shift, w, b, v, vb, eps):
        B, L, S = x.shape
        N, C = tokens.shape[1:]
        J = said.shape[1]
        x, tokens, said = x.contiguous(), tokens.contiguous(), said.contiguous()
        w = w.to(x.dtype).contiguous()
        out = torch.empty(B, L, dtype=torch.float32, device=x.device)
        head_forward[(triton.cdiv(L, Head.BL), B)](
            x, tokens, said, force, gain, shift, w, b, v, vb, out, L, N, J, eps,
            S=S, C=C, BL=Head.BL,
        )  # fmt: skip
        ctx.save_for_backward(x, tokens, said, force, start, gain, shift, w, b, v)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, dout):
        x, tokens, said, force, start, gain, shift, w, b, v = ctx.saved_tensors
        B, L, S = x.shape
        N, C = tokens.shape[1:]
        J, BL = said.shape[1], Head.BL
        dx, dt, dsaid = (torch.empty_like(y) for y in (x, tokens, said))
        dwide = torch.empty(B, L, C, dtype=x.dtype, device=x.device)
        tiles = triton.cdiv(L + 1, BL)
        sizes = [S + C, S + C, C, C, 2]
        of_x = torch.empty(B * tiles, sum(sizes), dtype=torch.float32, device=x.device)
        head_backward_x[(tiles, B)](
            x, tokens, said, force, gain, shift, w, b, v, dout.contiguous(), dx, dt, dwide, of_x,
            L, N, J, ctx.eps, S=S, C=C, BL=BL,
        )  # fmt: skip
        opinions_backward[(B, J)](dwide, start, dsaid, L, J, C=C, BL=32)
        tiles = triton.cdiv(L, BL)
        many = min(Head.PROGRAMS, B * tiles)
        of_w = torch.empty(many, C * (S + C), dtype=torch.float32, device=x.device)
        head_backward_w[(many,)](
            x, tokens, gain, shift, dwide, of_w, L, N, B, tiles, ctx.eps, S=S, C=C, BL=BL,
            num_warps=Head.WARPS,
        )  # fmt: skip
        dg, dz, db, dv, dvb = of_x.sum(0).split(sizes)
        dw, dv, dvb = of_w.sum(0).view(C, S + C), dv.view(1, C), dvb[:1]
        return dx, dt, dsaid, None, None, dg, dz, dw, db, dv, dvb, None


def forward(head, x, tokens, said, force, start):
    """What `Network.forward` does from its last tokens on: logits (B, L) float32.

    `force` (L,) int32 and `start` (J + 1,) int32: see the module.
    """
    norm, widen, _, narrow = head
    return Head.apply(
        x, tokens, said, force, start, norm.weight, norm.bias, widen.weight, widen.bias,
        narrow.weight, narrow.bias, norm.eps,
    )  # fmt: skip
