"""The order of the gallery: first steps, then the methods, then one's own code, then what comes after training."""

from __future__ import annotations

PAGES = (
    "plot_first_run.py",
    "plot_ssr_bands.py",
    "plot_mars_factors.py",
    "plot_magnet_routing.py",
    "plot_micrec_new_users.py",
    "plot_plain_torch.py",
    "plot_own_recbole_model.py",
    "plot_write_a_plugin.py",
    "plot_features_from_images.py",
    "plot_compare.py",
    "plot_report.py",
    "plot_serve.py",
)


class Order:
    """sphinx-gallery's sort key; a page that is not listed fails the build."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, name: str) -> int:
        return PAGES.index(name)
