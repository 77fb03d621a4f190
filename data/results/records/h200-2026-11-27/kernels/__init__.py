"""GPU kernels (Triton) and a captured training step for `lensml`; verified on an H200.

refits    all refits of a curve in one program
maps      residual maps and scalars of refits; residuals of every epoch
block     causal block, forward and backward
head      head of the network, forward and backward
expert    encoder of residual maps as matrix products (plain torch)
graph     a training step as one captured graph
apply     puts them into the package as of commit b93ca74
"""
