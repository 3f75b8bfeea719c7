"""The adapter's own keys in a RecBole configuration."""

from __future__ import annotations

from typing import Any

# The adapter's own keys in a RecBole configuration, with their defaults.
KEYS: dict[str, Any] = {
    "features": None,  # {modality: path}; default: every DATASET.MODALITY.safetensors beside the .inter file
    "shuffle_features": False,  # the control: content vectors dealt out to other items
    "drop_features": 0.0,  # a study: this share of the items that have a content vector loses it
    "drop_features_together": False,  # an item loses its vectors of all modalities, not of each on its own
    "drop_seed": 0,  # which items
    "factors": None,  # path of a factor schema; default: DATASET.factors.json beside the .inter file
    "factor_min_group": None,  # values of fewer items are rolled up; default: 0.1 % of them, at least 5; 0: never
    "factor_control": None,  # a control: "shuffled" profiles (of other items), or "random" groups of equal sizes
    "trim_padding": None,  # default: on with a plugin, where it is exact
    "fast_propagation": None,  # default: on with a plugin, and with enable_amp
    "mask_history": False,  # rank without the items that a user has had
    "resumable": True,  # write the state after every epoch, for --resume
    "adapter": None,  # an adapter.safetensors, or a run that has one, to begin from
    "warm_start": None,  # a RecBole checkpoint, or a run that has one: the backbone's parameters to begin from
    "trust_checkpoint": False,  # read files to begin from that hold more than numbers; they can run code
    "cold_below": None,  # report the test apart for items with fewer training interactions than this
    "amp_dtype": None,  # what enable_amp computes in: "bf16" or "fp16"; default: torch's choice for the device
    "score_block": None,  # users that a plugin's own scores are made for at once; default: a whole evaluation batch
}
