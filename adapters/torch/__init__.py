"""Plugins on any PyTorch recommender, in its own training loop."""

from recplug.adapters.torch.attach import Attachment, attach

__all__ = ["Attachment", "attach"]
