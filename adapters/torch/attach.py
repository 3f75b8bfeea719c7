"""``attach``: graft plugins onto the item table of a PyTorch model, whatever its training loop looks like."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from recplug.adapters.chain_builder import build_chain, resolve
from recplug.adapters.factors import FactorTable
from recplug.adapters.features import FeatureTable
from recplug.adapters.files import replacing
from recplug.plugins.chain import Chain
from recplug.plugins.contract import Context, Family, Modality, Seam
from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.registry import parse_names
from recplug.plugins.settings import PluginSettings
from recplug.plugins.step import Batch, Step
from recplug.plugins.table import ItemTable, find_table

Features = Modality | FeatureTable | str | os.PathLike[str] | tuple[Sequence[str], Tensor]
Encode = Callable[[Batch], Tensor]
CHILD = "recplug"
_NOT_HERE: Mapping[Seam, str] = {
    "score": "scores are made in the training loop, past the plugins; use the plugin's node mode, if it has one"
}


def attach(
    model: nn.Module,
    *,
    item_table: str = "items",
    plugins: str | Sequence[str],
    features: Mapping[str, Features] | None = None,
    factors: FactorProfiles | FactorTable | str | os.PathLike[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    item_tokens: Sequence[str] | None = None,
    edges: Tensor | None = None,
    padding_id: int = 0,
    mask_id: int | None = None,
    family: Family = "sequential",
    encode: Encode | None = None,
    user_vectors: Callable[[Tensor], Tensor] | None = None,
    score_is_dot: bool = False,
    steps_per_epoch: int = 0,
    seed: int = 0,
) -> Attachment:
    """Graft plugins onto ``model``, in place.

    From then on the embedding that ``item_table`` names gives augmented rows, in its ``forward`` (ids of two
    dimensions are histories, others candidates) and as its ``weight``. The plugins' parameters are the model's, in its
    child ``recplug``: create the optimiser after this call, or it does not train them.

    Args:
        model: any recommender with an ``nn.Embedding`` of items.
        item_table: the attribute that holds it; dotted where it is deeper.
        plugins: names, in the order in which they act.
        features: content by modality: a table or its file, or ``(tokens [n], vectors [n, d_m])``, all of which are
            aligned by ``item_tokens``; or a :class:`Modality`, whose rows are the item table's rows already.
        factors: factor profiles, as a table or its ``.factors.json``, aligned by ``item_tokens``; or as
            :class:`FactorProfiles`, whose items are the item table's rows already.
        settings: settings by plugin name.
        item_tokens: the token of every item row; row 0 is ``"[PAD]"``.
        edges: ``[2, n]`` training interactions (user id, item id), for plugins and diagnostics that read them.
        padding_id, mask_id: rows of the item table that carry no item.
        family: ``"sequential"`` or ``"graph"``; matrix factorisation counts as the second.
        encode: from a batch to user vectors ``[B, d]``, for losses that run the model's encoder again.
        user_vectors: from user ids ``[b]`` to vectors ``[b, d]`` of these users, whoever is in the batch, for losses
            that compare users (``Step.vectors_of``).
        score_is_dot: whether the model scores by the dot product of such a vector with the item table.
        steps_per_epoch: training steps in one epoch, for plugins with a schedule. An epoch begins with the first step
            after ``model.train()``.
        seed: of the plugins' parameters and noise; the global random state stays as it is.

    Raises:
        RecplugError: for a second attachment, no such embedding, wrong settings, or features that do not fit.
    """
    if hasattr(model, CHILD):
        raise RecplugError(
            "the model has plugins attached already (or an attribute 'recplug'); name all plugins at once"
        )
    names = parse_names(plugins)
    if strangers := sorted(set(settings or {}) - set(names)):
        raise RecplugError(f"settings for {strangers}, which are not among the plugins {names}")
    resolved = resolve(names, settings or {})
    embedding = find_table(model, item_table)
    if embedding is None:
        tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
        hint = did_you_mean(item_table, tables) or f"; its embeddings: {', '.join(tables) or 'none'}"
        raise RecplugError(f"{type(model).__name__} has no nn.Embedding called '{item_table}'{hint}")
    n_rows, device = embedding.num_embeddings, embedding.weight.device
    edges = torch.empty(2, 0, dtype=torch.long, device=device) if edges is None else edges.to(device)
    context = Context(
        host=type(model).__name__,
        family=family,
        n_users=int(edges[0].max()) + 1 if edges.numel() else 0,
        n_items=n_rows if mask_id is None else n_rows - 1,
        n_rows={"items": n_rows},
        width={"items": embedding.embedding_dim},
        edges=edges,
        modalities={
            name: _aligned(name, given, item_tokens, n_rows, device) for name, given in (features or {}).items()
        },
        factors=None if factors is None else _profiles(factors, item_tokens, n_rows).to(device),
        padding_id=padding_id,
        mask_id=mask_id,
        steps_per_epoch=steps_per_epoch,
        device=device,
        seed=seed,
    )
    chain = build_chain(resolved, context, encoder=encode is not None and score_is_dot, why=_NOT_HERE).to(device)
    chain.vectors = user_vectors
    ItemTable.graft(embedding, chain)
    model.add_module(CHILD, chain)
    chain.train(model.training)
    return Attachment(chain, resolved, encode, score_is_dot)


class Attachment:
    """The plugins on one model.

    Attributes:
        chain: the augmentations; also the model's child ``recplug``.
        settings: validated settings by plugin name.
        losses: the loss parts of the latest step, detached, by ``plugin.part``.
    """

    def __init__(
        self, chain: Chain, settings: Mapping[str, PluginSettings], encode: Encode | None, score_is_dot: bool
    ) -> None:
        self.chain = chain
        self.settings = dict(settings)
        self.losses: dict[str, Tensor] = {}
        self._encode, self._score_is_dot = encode, score_is_dot
        self._step: Step | None = None

    @contextmanager
    def step(
        self,
        *,
        users: Tensor | None = None,
        positives: Tensor | None = None,
        negatives: Tensor | None = None,
        sequence: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Iterator[Step]:
        """One training step: goes around the model's forward and loss, so that shared work is done once.

        Every item id that the model looks up inside belongs to one of the arguments. ``backward()`` may come later.

        Args:
            users: ``[B]`` user ids.
            positives: ``[B]`` target items.
            negatives: ``[B]`` or ``[B, k]`` sampled items; without them the loss is taken to score all items.
            sequence: ``[B, L]`` padded histories.
            lengths: ``[B]`` their lengths.
        """
        batch = Batch(users=users, positives=positives, negatives=negatives, sequence=sequence, lengths=lengths)
        with self.chain.step(batch, whole_table=negatives is None, score_is_dot=self._score_is_dot) as step:
            if self._encode is not None:
                encode = self._encode
                step.encoder = lambda: encode(batch)
            self._step = step
            try:
                yield step
            finally:
                self._step = None

    def loss(self, encoded: Tensor | None = None) -> Tensor:
        """The plugins' total loss of the step under way, to be added to the model's own; zero where they have none.

        Args:
            encoded: ``[B, d]`` user vectors that the model's own loss has computed, for plugins that read them.

        Raises:
            RecplugError: outside of :meth:`step`.
        """
        step = self._step
        if step is None:
            raise RecplugError("loss() belongs inside 'with attachment.step(...)', around the model's own loss")
        step.encoded = encoded
        total = self.chain.table("items").raw.new_zeros(())
        self.losses = {}
        for name, augmentation in self.chain.acting("losses").items():
            for part, value in augmentation.losses(step).items():
                self.losses[f"{name}.{part}"] = value.detach()
                total = total + value
        return total

    def state_dict(self) -> dict[str, Tensor]:
        """Exactly the tensors that plugins added, by ``plugin.tensor``: no host row, no frozen content vector."""
        state = self.chain.plugins.state_dict()
        return {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`state_dict` as safetensors; a reader never sees half a file.

        Raises:
            RecplugError: where the file cannot be written.
        """
        stored = save({name: t.cpu().contiguous().clone() for name, t in self.state_dict().items()})
        try:
            with replacing(path) as partial:
                partial.write_bytes(stored)
        except OSError as error:
            raise RecplugError(f"cannot write {path}: {error.strerror}; choose another place") from None

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what :meth:`save` wrote, for the same plugins and settings.

        Raises:
            RecplugError: for a file that cannot be read, or that holds other tensors.
        """
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RecplugError(f"cannot read {path}: {' '.join(str(error).split())}") from None
        own = self.state_dict()
        for name in sorted(found.keys() | own.keys()):
            if name not in found or name not in own or found[name].shape != own[name].shape:
                raise RecplugError(
                    f"{path} does not fit: '{name}' differs; attach the plugins and settings of the file"
                )
        self.chain.plugins.load_state_dict(found, strict=False)  # noise positions are not tensors, and not in the file


def _aligned(
    name: str, given: Features, item_tokens: Sequence[str] | None, n_rows: int, device: torch.device
) -> Modality:
    """Content whose rows are the item table's, on its device."""
    if isinstance(given, Modality):
        if not len(given.values) == len(given.present) <= n_rows:
            raise RecplugError(f"features '{name}' have {len(given.values)} rows, the item table has {n_rows}")
        return Modality(name, given.values.to(device), given.present.to(device))
    if isinstance(given, tuple):
        tokens, vectors = given
        given = FeatureTable(vectors.detach().cpu(), tuple(tokens), name)
    elif not isinstance(given, FeatureTable):
        given = FeatureTable.load(given)
    modality = given.align(_tokens(item_tokens, n_rows, f"features '{name}'"), name=name)
    return Modality(name, modality.values.to(device), modality.present.to(device))


def _profiles(
    given: FactorProfiles | FactorTable | str | os.PathLike[str], item_tokens: Sequence[str] | None, n_rows: int
) -> FactorProfiles:
    """Profiles of the item table's rows."""
    if not isinstance(given, FactorProfiles):
        table = given if isinstance(given, FactorTable) else FactorTable.load(given)
        given = table.align(_tokens(item_tokens, n_rows, "factors"))
    if given.n_items > n_rows:
        raise RecplugError(f"factors are of {given.n_items} items, the item table has {n_rows} rows")
    return given


def _tokens(item_tokens: Sequence[str] | None, n_rows: int, what: str) -> Sequence[str]:
    if item_tokens is None:
        raise RecplugError(f"{what} are aligned by token; pass item_tokens, the token of every item row")
    if len(item_tokens) > n_rows:
        raise RecplugError(f"{len(item_tokens)} item_tokens, but the item table has {n_rows} rows")
    return item_tokens
