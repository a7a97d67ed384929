"""iREPA in JAX: diffusion transformers trained with representation alignment."""

__version__ = '0.1.0'  # the only place; setup.py and CITATION.cff follow it
