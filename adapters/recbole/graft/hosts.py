"""Which RecBole models can be grafted onto, how far, and why; the docs' table and the errors are made from it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from recplug.plugins.contract import BOTH_HALVES, Family, Half, Role, Seam
from recplug.plugins.errors import RecplugError

Status = Literal["supported", "restricted", "refused"]


@dataclass(frozen=True)
class Host:
    """What the adapter knows of one RecBole model.

    Attributes:
        name: RecBole's class name.
        family: its family.
        status: ``"supported"``, ``"restricted"`` (``reason`` says to what) or ``"refused"``.
        reason: one line; empty where nothing needs saying.
        table: the attribute that holds the item embedding; empty where there is none.
        users: the attribute that holds the user embedding; empty where there is none.
        nodes: what gives propagated nodes ``(users, items)``: ``"forward"``, the attribute of a submodule, or empty.
        graph: the attribute that holds the normalised graph of users and items over which it propagates; empty where
            there is none, or one of another form.
        node_arguments: the attributes that are passed to it where it works on the training graph.
        free_width: whether the nodes are scored by their dot product and read by nothing else, so that their width may
            change.
        others_nodes: whether the loss reads users, or nodes, that are not in the batch.
        trim: whether encoding without padding is exact for it (tested).
        dot: whether ``forward`` returns one vector a user, scored by its dot product with the candidate table.
        losses: the ``loss_type`` values that work; empty where the model has only one loss.
        role: the role of every lookup in the item table, where the dimensions of the index do not tell it.
        loss_sum: whether the loss is the sum over the batch, not its mean.
        warm_up: whether its trainer drops the loss's last part in the first epochs.
        only: a configuration key and the one value that works, or None.
        beyond_batch: whether its loss asks for items that the batch does not hold.
        needs: a module that it imports in training and RecBole does not install; empty where there is none.
        pair_loss: the attribute of its ``BPRLoss``, which compares the plain scores of the batch's pairs; empty where
            plugins cannot change scores in training.
        no_scores: why they cannot.
    """

    name: str
    family: Family = "sequential"
    status: Status = "supported"
    reason: str = ""
    table: str = "item_embedding"
    users: str = ""
    nodes: str = ""
    graph: str = ""
    node_arguments: tuple[str, ...] = ()
    free_width: bool = False
    others_nodes: bool = False
    trim: bool = False
    dot: bool = False
    losses: tuple[str, ...] = ("CE", "BPR")
    role: Role | None = None
    loss_sum: bool = False
    warm_up: bool = False
    only: tuple[str, str] | None = None
    beyond_batch: bool = False
    needs: str = ""
    pair_loss: str = ""
    no_scores: str = "it scores histories, not users"

    def seams(self) -> frozenset[Seam]:
        """Where augmentations can act."""
        found: set[Seam] = {"losses", "score"}
        if self.table:
            found |= {"items", "tables"}
        if self.users:
            found |= {"users"}
        if self.nodes:
            found |= {"propagated"}
        if self.graph:
            found |= {"graph"}
        return frozenset(found)

    def halves(self) -> frozenset[Half]:
        """The halves of the score seam: every host ranks, and some compare pairs in training."""
        return BOTH_HALVES if self.pair_loss else frozenset({"ranking"})

    def why(self) -> dict[Seam | Half, str]:
        """For a seam, or a half of the score seam, that is not offered: the reason, and what to do."""
        found: dict[Seam | Half, str] = {}
        with_graph = ", ".join(host.name for host in HOSTS.values() if host.graph)
        found["graph"] = f"edges are dropped on {with_graph} with fast_propagation, not here; set edge_dropout to 0"
        if not self.pair_loss:
            others = ", ".join(host.name for host in HOSTS.values() if host.pair_loss)
            found["training"] = f"{self.no_scores}; use the plugin's node mode, if it has one, or one of {others}"
        return found


def _refused(name: str, reason: str, family: Family = "sequential") -> Host:
    return Host(name, family, status="refused", reason=reason, table="", losses=())


def _restricted(name: str, reason: str, **more: object) -> Host:
    return Host(name, status="restricted", reason=reason, **more)  # type: ignore[arg-type]


def _graph(name: str, reason: str = "", status: Status = "supported", **more: object) -> Host:
    """A general model: every lookup is of one item for itself, and there is one loss."""
    found = {"users": "user_embedding", "role": "candidate", "losses": (), **more}
    return Host(name, "graph", status, reason, **found)  # type: ignore[arg-type]


_PENALTY = "with fused candidates its L2 penalty on the item table acts on the fused table"
_FEATURES = "the item table only; its own feature fields need an .item file"
_NO_PREDICT = "its predict() fails upstream: full ranking only"
_FIELDS = "it embeds all item fields together and has no item table"
_HISTORY = "histories only: it scores against a second item table"
_SGL = "its contrast of two subgraphs sees the plain nodes"
_NCL = "needs faiss; its contrasts see the plain nodes"
_LABELS = "its loss judges each score by itself, as a yes or no, and compares no pairs"
_COLUMNS = "an autoencoder: its items are columns of linear layers, not a table"
_AUTOENCODERS = ("CDAE", "MultiDAE", "MultiVAE", "RecVAE", "RaCT", "DiffRec", "LDiffRec")
_CLOSED = "it is solved or counted, not trained: there are no vectors to augment"
_UNTRAINED = ("ADMMSLIM", "EASE", "SLIMElastic", "ItemKNN", "AsymKNN", "NCEPLRec", "Pop", "Random")

# `trim` and `dot` are measured, model by model, in tests/adapters/recbole/graft/test_trimming.py; comments say why not.
HOSTS: dict[str, Host] = {
    host.name: host
    for host in (
        Host("SASRec", trim=True, dot=True),
        Host("GRU4Rec", trim=True, dot=True),
        Host("LightSANs", dot=True),  # its low-rank attention averages over padding too
        Host("NARM", trim=True, dot=True),
        Host("STAMP", dot=True),  # it sums the padding row, which its initialisation makes non-zero
        Host("CORE", trim=True, losses=("CE",)),  # scores by cosine
        Host("SINE", dot=True),  # it attends to padding, and reshapes to the full length
        Host("SRGNN", trim=True, dot=True),
        Host("FEARec", dot=True, beyond_batch=True),  # it filters frequencies of the full length
        Host("SHAN", dot=True),  # it reads the last places, and what stands there depends on the length
        Host("HRM", dot=True),  # it takes the maximum over the last two places, padding where there is one item
        Host("FOSSIL", dot=True),  # it counts places from the full length, and sums the padding row
        Host("NPE"),  # it sums the padding row; scores by rectified rows
        Host("GCSAN", trim=True, dot=True, reason=_PENALTY),
        Host("NextItNet", dot=True, reason=_PENALTY),  # it reads its convolutions' last place, which is padding
        Host("Caser", dot=True, reason=_PENALTY),  # its filters are as long as the full length
        Host("SASRecF", trim=True, dot=True, reason=_FEATURES),
        Host("GRU4RecF", trim=True, dot=True, reason=_FEATURES),
        Host("FDSA", trim=True, dot=True, reason=_FEATURES),
        Host("KSR", trim=True, reason="the item table only; needs a knowledge graph with pretrained vectors"),
        Host("GRU4RecKG", trim=True, dot=True, reason="the item table only; needs pretrained entity vectors"),
        # Both read the last place for their mixture of softmaxes, which is padding.
        Host("SASRecCPR", losses=("CE",), reason=_NO_PREDICT),
        Host("GRU4RecCPR", losses=("CE",), reason=_NO_PREDICT),
        # An output bias beside the dot product.
        _restricted(
            "BERT4Rec", "cross-entropy only: its BPR loss reads candidates as sequences", trim=True, losses=("CE",)
        ),
        # Nothing to trim: it gathers one item. Scores by distance.
        _restricted("TransRec", "no history: modules see the last item alone", losses=(), role="input"),
        # It sums and averages over padding.
        _restricted("HGN", "input side only: it scores against a table of its own", losses=("CE",)),
        # Its layers are as long as the full length.
        _restricted("RepeatNet", "input side only: it scores by a linear layer", table="item_matrix", losses=()),
        _restricted(
            "S3Rec",
            "fine-tuning only: pre-training reads candidates as sequences",
            trim=True,
            only=("train_stage", "finetune"),
        ),
        _refused("FPMC", "it has four factor tables and no item embedding"),
        _refused("DIN", _FIELDS),
        _refused("DIEN", _FIELDS),
        # Propagated nodes, scored by their dot product.
        _graph("LightGCN", nodes="forward", graph="norm_adj_matrix", free_width=True, pair_loss="mf_loss"),
        _graph("NGCF", nodes="forward", graph="norm_adj_matrix", free_width=True, pair_loss="mf_loss"),
        _graph("SpectralCF", nodes="forward", free_width=True, pair_loss="mf_loss"),
        _graph(
            "SGL",
            _SGL,
            nodes="forward",
            graph="train_graph",
            node_arguments=("train_graph",),
            free_width=True,
            loss_sum=True,
            no_scores="it compares and sums scores itself, without a loss module of its own",
        ),
        _graph(
            "NCL",
            _NCL,
            nodes="forward",
            graph="norm_adj_mat",
            free_width=True,
            warm_up=True,
            needs="faiss",
            no_scores="two of its three losses contrast nodes and would not see the scores",
        ),
        # Its loss compares slices of the nodes' width, of nodes drawn at random.
        _graph("DGCF", nodes="forward", others_nodes=True, pair_loss="mf_loss"),
        _graph(
            "GCMC",
            "propagated nodes only: its inputs are one-hot, and it has no embedding of items or users",
            "restricted",
            table="",
            users="",
            nodes="GcEncoder",
            node_arguments=("user_features", "item_features"),
            no_scores="it classifies ratings by a softmax",
        ),
        # Two tables, nothing propagated.
        _graph("BPR", pair_loss="loss"),
        _graph("LINE", "of its second order, the first tables only", others_nodes=True, no_scores=_LABELS),
        _graph("ENMF", loss_sum=True, beyond_batch=True, no_scores="its loss is of all items at once"),
        _graph("ConvNCF", _PENALTY, loss_sum=True, no_scores="its loss is one of its own, and a sum"),
        _graph(
            "SimpleX",
            table="item_emb",
            users="user_emb",
            beyond_batch=True,
            no_scores="its loss compares cosines with many negatives",
        ),
        _graph(
            "NeuMF",
            "its factorisation branch only: the other has tables of its own",
            "restricted",
            table="item_mf_embedding",
            users="user_mf_embedding",
            no_scores=_LABELS,
        ),
        _graph("NNCF", "the pair's own tables only: its neighbourhoods have others", "restricted", no_scores=_LABELS),
        _graph(
            "FISM",
            _HISTORY,
            "restricted",
            table="item_src_embedding",
            users="",
            beyond_batch=True,
            no_scores=_LABELS,
        ),
        _graph(
            "NAIS",
            _HISTORY,
            "restricted",
            table="item_src_embedding",
            users="",
            beyond_batch=True,
            no_scores=_LABELS,
        ),
        _graph(
            "MacridVAE",
            "the item table only: users are encoded from their rows",
            "restricted",
            users="",
            no_scores="its loss is a softmax over all items",
        ),
        _refused("DMF", "its vectors are layers over rows and columns of the interactions, not tables", "graph"),
        *(_refused(name, _COLUMNS, "graph") for name in _AUTOENCODERS),
        *(_refused(name, _CLOSED, "graph") for name in _UNTRAINED),
    )
}


def host_of(name: str) -> Host:
    """What is known of one of RecBole's models.

    Raises:
        RecplugError: if it is refused, naming alternatives.
    """
    host = HOSTS[name]
    if host.status == "refused":
        others = ", ".join(first_choices(host.family))
        raise RecplugError(f"plugins cannot be grafted onto {name}: {host.reason}; use {others} instead")
    return host


def check_installed(host: Host) -> None:
    """Look for what a host imports in the middle of its training.

    Raises:
        RecplugError: where it is not installed.
    """
    if host.needs and importlib.util.find_spec(host.needs) is None:
        raise RecplugError(
            f"{host.name} needs {host.needs}, which is not installed (RecBole asks it for a GPU); install a build with "
            "GPU support, or use LightGCN or SGL"
        )


def first_choices(family: Family) -> list[str]:
    """The models to name when another is refused."""
    if family == "graph":
        return ["LightGCN", "NGCF", "SGL", "BPR", "SimpleX"]
    return ["SASRec", "GRU4Rec", "BERT4Rec", "NARM", "CORE"]
