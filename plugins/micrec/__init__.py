"""MICRec (arXiv 2510.21812): template representations, content neighbours, and transfer between two domains."""

from recplug.plugins.micrec.content import Content, content_vectors, user_content
from recplug.plugins.micrec.module import Micrec, MicrecNodes
from recplug.plugins.micrec.neighbours import nearest, refine
from recplug.plugins.micrec.settings import MicrecSettings
from recplug.plugins.micrec.templates import Templates
from recplug.plugins.micrec.transfer import Transfer

__all__ = [
    "Content",
    "Micrec",
    "MicrecNodes",
    "MicrecSettings",
    "Templates",
    "Transfer",
    "content_vectors",
    "nearest",
    "refine",
    "user_content",
]
