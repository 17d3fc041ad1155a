"""ijepa_ds: a DeepSpeed scale-out toolkit for pretraining image joint-embedding predictive models (I-JEPA)."""

__version__ = "0.1.0"
