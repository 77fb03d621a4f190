"""A causal block, forward and backward, in three GPU kernels (Triton).

x is (B, L, C), contiguous, bfloat16 or float32. One kernel forward (layer norm, convolution over
three tokens, ReLU, mix, residual); backward one for the gradient in x and one, of persistent
programs, for the gradients of the weights. What is summed over programs is written by each program
in its own place and summed afterwards, so the same input gives the same bits.

The plain form writes and reads each of normed, convolved and mixed tokens, and casts between.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _normed(ptr, p, c, m, g, s, eps, C: tl.constexpr):
    """Tokens `p` (where `m`): as they are, normalised, 1 / scatter, with gain and shift."""
    x = tl.load(ptr + p[:, None] * C + c[None, :], mask=m[:, None], other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / C
    d = x - mean[:, None]
    r = 1.0 / tl.sqrt(tl.sum(d * d, 1) / C + eps)
    hat = d * r[:, None]
    n = tl.where(m[:, None], hat * g[None, :] + s[None, :], 0.0)
    return x, hat, r, n


@triton.jit
def block_forward(X, G, S, WC, BC, WM, BM, Y, H, L, eps,
                  C: tl.constexpr, D: tl.constexpr, BL: tl.constexpr):  # fmt: skip
    """Output Y and hidden tokens H of BL tokens of a row; program (tile, row).

    WC (C, 3 C) has the taps of the convolution side by side, the earliest first; D is the dilation.
    """
    row = tl.program_id(1).to(tl.int64) * L * C
    i = tl.program_id(0) * BL + tl.arange(0, BL)
    c = tl.arange(0, C)
    g, s = tl.load(G + c).to(tl.float32), tl.load(S + c).to(tl.float32)
    kind = X.dtype.element_ty
    acc = tl.zeros([BL, C], tl.float32)
    x = tl.zeros([BL, C], tl.float32)
    for k in tl.static_range(3):
        p = i - (2 - k) * D
        m = (p >= 0) & (p < L)
        x, hat, r, n = _normed(X + row, p, c, m, g, s, eps, C)
        w = tl.load(WC + c[None, :] * (3 * C) + k * C + c[:, None])  # (in, out)
        acc = tl.dot(n.to(kind), w, acc, allow_tf32=False)
    h = tl.maximum(acc + tl.load(BC + c).to(tl.float32)[None, :], 0.0).to(kind)
    inside = (i < L)[:, None]
    tl.store(H + row + i[:, None] * C + c[None, :], h, mask=inside)
    wm = tl.load(WM + c[None, :] * C + c[:, None])
    y = tl.dot(h, wm, allow_tf32=False) + tl.load(BM + c).to(tl.float32)[None, :] + x
    tl.store(Y + row + i[:, None] * C + c[None, :], y.to(kind), mask=inside)


@triton.jit
def block_backward_x(X, H, DY, G, S, WC, WM, DX, PART, L, eps,
                     C: tl.constexpr, D: tl.constexpr, BL: tl.constexpr):  # fmt: skip
    """Gradient in BL tokens of a row, and this program's share of those of G and S.

    The token i was read by the tokens i, i + D and i + 2 D: their hidden gradients are made again
    from DY and H, so nothing is kept between the two.
    """
    row = tl.program_id(1).to(tl.int64) * L * C
    i = tl.program_id(0) * BL + tl.arange(0, BL)
    c = tl.arange(0, C)
    kind = X.dtype.element_ty
    wm = tl.load(WM + c[:, None] * C + c[None, :])  # (out, in)
    acc = tl.zeros([BL, C], tl.float32)
    dy = tl.zeros([BL, C], kind)
    for j in tl.static_range(3):
        k = j  # tap k reads token i - (2 - k) D, so token i is read by i + (2 - k) D
        p = i + (2 - k) * D
        m = p < L
        at = row + p[:, None] * C + c[None, :]
        dy = tl.load(DY + at, mask=m[:, None], other=0.0)
        h = tl.load(H + at, mask=m[:, None], other=0.0)
        dh = tl.dot(dy, wm, allow_tf32=False)
        dh = tl.where(h > 0, dh, 0.0).to(kind)
        w = tl.load(WC + c[:, None] * (3 * C) + k * C + c[None, :])  # (out, in)
        acc = tl.dot(dh, w, acc, allow_tf32=False)
    g, s = tl.load(G + c).to(tl.float32), tl.load(S + c).to(tl.float32)
    m = i < L
    x, hat, r, n = _normed(X + row, i, c, m, g, s, eps, C)
    acc = tl.where(m[:, None], acc, 0.0)
    wide = acc * g[None, :]
    inner = wide - tl.sum(wide, 1)[:, None] / C - hat * (tl.sum(wide * hat, 1)[:, None] / C)
    dx = inner * r[:, None] + dy.to(tl.float32)
    tl.store(DX + row + i[:, None] * C + c[None, :], dx.to(kind), mask=m[:, None])
    own = PART + (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * (2 * C)
    tl.store(own + c, tl.sum(acc * hat, 0))
    tl.store(own + C + c, tl.sum(acc, 0))


@triton.jit
def block_backward_w(X, H, DY, G, S, WM, PART, L, rows, tiles, eps,
                     C: tl.constexpr, D: tl.constexpr, BL: tl.constexpr):  # fmt: skip
    """This program's share of the gradients of both weights and biases.

    Persistent: a program takes tiles of all rows in turn of all rows and keeps four C x C sums in
    registers. PART (programs, 4 C C + 2 C): taps and mix, then the biases.
    """
    c = tl.arange(0, C)
    kind = X.dtype.element_ty
    g, s = tl.load(G + c).to(tl.float32), tl.load(S + c).to(tl.float32)
    wm = tl.load(WM + c[:, None] * C + c[None, :])
    a0 = tl.zeros([C, C], tl.float32)
    a1 = tl.zeros([C, C], tl.float32)
    a2 = tl.zeros([C, C], tl.float32)
    am = tl.zeros([C, C], tl.float32)
    bc = tl.zeros([C], tl.float32)
    bm = tl.zeros([C], tl.float32)
    for tile in range(tl.program_id(0), rows * tiles, tl.num_programs(0)):
        row = (tile // tiles).to(tl.int64) * L * C
        i = (tile % tiles) * BL + tl.arange(0, BL)
        m = i < L
        at = row + i[:, None] * C + c[None, :]
        dy = tl.load(DY + at, mask=m[:, None], other=0.0)
        h = tl.load(H + at, mask=m[:, None], other=0.0)
        dh32 = tl.where(h > 0, tl.dot(dy, wm, allow_tf32=False), 0.0)
        dh = dh32.to(kind)
        bc += tl.sum(dh32, 0)
        bm += tl.sum(dy.to(tl.float32), 0)
        am = tl.dot(tl.trans(dy), h, am, allow_tf32=False)
        turned = tl.trans(dh)
        p = i - 2 * D
        x, hat, r, n = _normed(X + row, p, c, (p >= 0) & m, g, s, eps, C)
        a0 = tl.dot(turned, n.to(kind), a0, allow_tf32=False)
        p = i - D
        x, hat, r, n = _normed(X + row, p, c, (p >= 0) & m, g, s, eps, C)
        a1 = tl.dot(turned, n.to(kind), a1, allow_tf32=False)
        x, hat, r, n = _normed(X + row, i, c, m, g, s, eps, C)
        a2 = tl.dot(turned, n.to(kind), a2, allow_tf32=False)
    own = PART + tl.program_id(0).to(tl.int64) * (4 * C * C + 2 * C)
    o = own + c[:, None] * (3 * C) + c[None, :]
    tl.store(o, a0)
    tl.store(o + C, a1)
    tl.store(o + 2 * C, a2)
    tl.store(own + 3 * C * C + c[:, None] * C + c[None, :], am)
    tl.store(own + 4 * C * C + c, bc)
    tl.store(own + 4 * C * C + C + c, bm)


class Block(torch.autograd.Function):
    """`CausalBlock.forward` and its gradient."""

    BL = 64  # tokens of a program
    PROGRAMS = {32: 528, 64: 264}  # persistent ones, by channels
    WARPS = {32: 4, 64: 8}  # of these; with 4 and 64 channels registers spill

    @staticmethod
    def forward(ctx, x, gain, shift, wc, bc, wm, bm, dilation, eps):
        B, L, C = x.shape
        kind = x.dtype
        y, h = torch.empty_like(x), torch.empty_like(x)
        w = [p.to(kind).contiguous() for p in (wc, wm)]
        grid = (triton.cdiv(L, Block.BL), B)
        block_forward[grid](
            x, gain, shift, w[0], bc, w[1], bm, y, h, L, eps, C=C, D=dilation, BL=Block.BL
        )
        ctx.save_for_backward(x, h, gain, shift, *w)
        ctx.rest = dilation, eps
        return y

    @staticmethod
    def backward(ctx, dy):
        x, h, gain, shift, wc, wm = ctx.saved_tensors
        dilation, eps = ctx.rest
        B, L, C = x.shape
        dy = dy.to(x.dtype).contiguous()
        dx = torch.empty_like(x)
        tiles = triton.cdiv(L, Block.BL)
        many = min(Block.PROGRAMS.get(C, 264), B * tiles)
        wide = 4 * C * C + 2 * C
        of_x = torch.empty(B * tiles, 2 * C, dtype=torch.float32, device=x.device)
        of_w = torch.empty(many, wide, dtype=torch.float32, device=x.device)
        block_backward_x[(tiles, B)](
            x, h, dy, gain, shift, wc, wm, dx, of_x, L, eps, C=C, D=dilation, BL=Block.BL
        )
        block_backward_w[(many,)](
            x, h, dy, gain, shift, wm, of_w, L, B, tiles, eps, C=C, D=dilation, BL=Block.BL,
            num_warps=Block.WARPS.get(C, 8),
        )  # fmt: skip
        dg, ds = of_x.sum(0).split(C)
        dwc, dwm, dbc, dbm = of_w.sum(0).split([3 * C * C, C * C, C, C])
        return dx, dg, ds, dwc.view(C, 3 * C), dbc, dwm.view(C, C), dbm, None, None


def forward(block, x):
    """`CausalBlock.forward` by these kernels."""
    return Block.apply(
        x.contiguous(), block.norm.weight, block.norm.bias, block.conv.weight, block.conv.bias,
        block.mix.weight, block.mix.bias, block.dilation, block.norm.eps,
    )  # fmt: skip
