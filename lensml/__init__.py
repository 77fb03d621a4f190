"""lensml: can a causal 1-D CNN tell, while an event unfolds, whether the lens is binary?"""

__version__ = "0.1.0"
